"""Decoders of experts with Llama's layout: Mixtral, Qwen2-MoE, Qwen3-MoE, in and out; and Qwen3-Next's experts.

Layout: an expert's matrices lie apart, `…experts.3.w1` in Mixtral and `…experts.3.gate_proj` in the others, ours one above the
other, [X, out, in]; transformers 5 has w1 over w3 in one tensor of all experts, `gate_up_proj`, and stores them apart unless it
is told otherwise. The router is `gate`; the shared expert of Qwen2-MoE and Qwen3-Next is weighed by a σ of its own
(`shared_expert_gate`).
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ...config import ModelConfig, validate
from .family import Family, refusal
from .llama import fields, llama_name
from .llama import origin as dense_origin
from .positions import dynamic_note
from .tensors import Origin, Tensors

# The module of the experts below a layer, and their matrices in the order w1, w2, w3.
_MIXTRAL = ("block_sparse_moe", ("w1", "w2", "w3"))
_QWEN = ("mlp", ("gate_proj", "down_proj", "up_proj"))
_OURS = re.compile(r"^(.*)\.mlp\.w([123])\.weight$")
_JOINED = re.compile(r"^(.*\.)mlp\.experts\.(gate_up_proj|down_proj)$")


def model(config: Any) -> ModelConfig:
    """Our configuration of such a model.

    Raises:
        ValueError: naming the key of the configuration that cannot be expressed.
    """
    moe = moe_fields(config)
    return validate(ModelConfig, fields(config) | {"d_ff": moe["d_expert"], "moe": moe})


def moe_fields(config: Any) -> dict[str, Any]:
    """The fields of our experts.

    Raises:
        ValueError: a shared expert whose width is no multiple of the others'.
    """
    c, is_mixtral = config, config.model_type == "mixtral"
    width = c.intermediate_size if is_mixtral else c.moe_intermediate_size
    n_shared = 0
    if c.model_type in ("qwen2_moe", "qwen3_next"):
        n_shared, rest = divmod(c.shared_expert_intermediate_size, width)
        if rest or not n_shared:
            key = "shared_expert_intermediate_size"
            raise refusal(c, key, f"cannot be expressed: multiples of moe_intermediate_size={width} can")
    return {
        "n_experts": c.num_local_experts if is_mixtral else c.num_experts,
        "top_k": c.num_experts_per_tok,
        "d_expert": width,
        "n_shared": n_shared,
        "shared_weight": "sigmoid" if n_shared else "one",
        "normalise_top_k": is_mixtral or c.norm_topk_prob,
    }


def origin(name: str, shape: tuple[int, ...], ours: ModelConfig, config: Any) -> Origin:
    """Where one of our parameters comes from."""
    names = expert_names(name, config.model_type, ours.moe.n_experts)
    if names:
        (first, own), *others = ((theirs, shape[1:]) for theirs in names)
        return Origin(first, own, move=lambda *experts: torch.stack(experts), beside=tuple(others))
    if ".mlp." in name:
        return Origin(_rest(name, config.model_type), shape)
    return dense_origin(name, shape, ours, config)


def expert_names(ours: str, family: str, n_experts: int) -> list[str]:
    """What a family calls each expert's part of one of our parameters; nothing where it is of no expert."""
    found = _OURS.match(ours)
    module, words = _of(family)
    if not found:
        return []
    word = words[int(found[2]) - 1]
    return [llama_name(f"{found[1]}.{module}.experts.{expert}.{word}.weight") for expert in range(n_experts)]


def experts_plan(family: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Origin]:
    """Where each tensor of theirs comes from that holds experts, routers or shared experts of ours."""
    plan = {}
    for name, shape in shapes.items():
        if ".mlp." not in name:
            continue
        names = expert_names(name, family, shape[0])
        plan |= {theirs: Origin(name, shape, part=expert) for expert, theirs in enumerate(names)}
        plan |= {} if names else {_rest(name, family): Origin(name, shape)}
    return plan


def apart(tensors: Tensors, config: Any) -> Tensors:
    """The tensors with joined experts under the names of experts that lie apart, as they are stored elsewhere."""
    if not any(_JOINED.match(name) for name in tensors.shapes):
        return tensors
    module, words = _of(config.model_type)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    reads: dict[str, Callable[[], Tensor]] = {}
    for name, shape in tensors.shapes.items():
        found = _JOINED.match(name)
        if not found or len(shape) != 3:
            own = name.replace(".mlp.gate.", f".{module}.gate.")
            shapes[own], dtypes[own], reads[own] = shape, tensors.dtypes[name], partial(tensors.read, name)
            continue
        parts = (words[0], words[2]) if found[2] == "gate_up_proj" else (words[1],)
        n_rows = shape[1] // len(parts)
        for expert, (i, word) in product(range(shape[0]), enumerate(parts)):
            own = f"{found[1]}{module}.experts.{expert}.{word}.weight"
            shapes[own], dtypes[own] = (n_rows, shape[2]), tensors.dtypes[name]
            reads[own] = partial(_rows, tensors, name, expert, slice(i * n_rows, (i + 1) * n_rows))
    return Tensors(tensors.title, shapes, dtypes, lambda name: reads[name]())


def _rows(tensors: Tensors, name: str, expert: int, rows: slice) -> Tensor:
    return tensors.part(name, expert)[rows]


def _rest(ours: str, family: str) -> str:
    """Their name of a router or a shared expert of ours."""
    module, _ = _of(family)
    for pattern, theirs in (
        (r"\.mlp\.router\.", f".{module}.gate."),
        (r"\.mlp\.shared_router\.", ".mlp.shared_expert_gate."),
        (r"\.mlp\.shared\.w1\.", ".mlp.shared_expert.gate_proj."),
        (r"\.mlp\.shared\.w2\.", ".mlp.shared_expert.down_proj."),
        (r"\.mlp\.shared\.w3\.", ".mlp.shared_expert.up_proj."),
    ):
        ours = re.sub(pattern, theirs, ours)
    return llama_name(ours)


def _of(family: str) -> tuple[str, tuple[str, str, str]]:
    return _MIXTRAL if family == "mixtral" else _QWEN


EXPERTS = Family(
    model,
    origin,
    exact={"hidden_act": ("silu", "swish"), "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    view=apart,
    notes=dynamic_note,
)
