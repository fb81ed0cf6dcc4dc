"""Qwen3, and the gated checkpoints of arXiv 2505.06708, whose configuration is Qwen3's with one switch more.

Layout: of each kv head the rows of `q_proj` are those of its queries, then those of their gates, K a head
(`elementwise_attn_output_gate`) or one (`headwise_attn_output_gate`). The code that goes with these checkpoints has one switch
for all biases of attention, `qkv_bias`, the gate's among them, and q/k-norms only with `use_qk_norm`; transformers reads
none of the four.
"""

from typing import Any

from ...config import ModelConfig, validate
from ..layouts import LAYOUTS, Geometry
from ..layouts.layout import part_sizes
from .family import Family, refusal
from .llama import LLAMA, fields, llama_name
from .llama import origin as dense_origin
from .tensors import Origin

_G_PROJ = ".gates.sdpa.g_proj."


def model(config: Any) -> ModelConfig:
    """Our configuration of such a model.

    Raises:
        ValueError: naming the key of the configuration that cannot be expressed.
    """
    granularity, own = _granularity(config), fields(config)
    if getattr(config, "qkv_bias", False):
        own["bias"] = True
    if not getattr(config, "use_qk_norm", True):
        own["qk_norm"] = "none"
    if granularity:
        own["gate"] = f"sdpa-{granularity}" + ("-bias" if getattr(config, "qkv_bias", False) else "")
    return validate(ModelConfig, own)


def origin(name: str, shape: tuple[int, ...], ours: ModelConfig, config: Any) -> Origin:
    """Where one of our parameters comes from."""
    granularity, is_gate = _granularity(config), _G_PROJ in name
    module, _, last = name.rpartition(".")
    if granularity and (is_gate or module.endswith(".attention.q_proj")):
        g = Geometry(d_model=ours.d_model, n_heads=ours.n_heads, n_kv_heads=ours.n_kv_heads, head_dim=ours.head_dim)
        sizes, part = part_sizes(g, granularity), "gate" if is_gate else "q"
        (block,) = LAYOUTS[f"qwen-gated-{granularity}"].blocks("q_proj", granularity)
        n_rows = sum(heads * rows for heads, rows in (sizes["q"], sizes["gate"]))
        theirs = llama_name(name.replace(_G_PROJ, ".q_proj."))
        return Origin(theirs, (n_rows, *shape[1:]), move=lambda rows: block.split(rows, sizes, g)[part].flatten(0, 1))
    if last == "bias" and getattr(config, "qkv_bias", False) and ".attention." in name:
        return Origin(llama_name(name), shape)
    return dense_origin(name, shape, ours, config)


def _granularity(config: Any) -> str | None:
    is_headwise, is_elementwise = (
        bool(getattr(config, f"{word}_attn_output_gate", False)) for word in ("headwise", "elementwise")
    )
    if is_headwise and is_elementwise:
        raise refusal(config, "elementwise_attn_output_gate", "and headwise_attn_output_gate exclude each other")
    return "headwise" if is_headwise else "elementwise" if is_elementwise else None


def _code(config: Any) -> str:
    return "arXiv 2505.06708's code" if hasattr(config, "use_qk_norm") else "transformers' own qwen3"


QWEN3 = Family(
    model,
    origin,
    exact={
        **LLAMA.exact,
        "headwise_attn_output_gate": (None, False, True),
        "elementwise_attn_output_gate": (None, False, True),
    },
    copies=LLAMA.copies,
    notes=LLAMA.notes,
    code=_code,
)
