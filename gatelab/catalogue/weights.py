"""What gates weigh and say: formulas of weights and equations in the letters of docs/gates.md, and counts.

Notable: the number of weights beside a gate is counted on a model of the paper's shape, never written down.
"""

from ..config import ACTIVATIONS, SITES, Change, GateSpec, ModelConfig, MoE, override
from ..models.sizes import count_parameters

# The mixture of experts of arXiv 2505.06708, on which weights are counted; its vocabulary is not printed and adds nothing.
PAPER_SHAPE = ModelConfig(
    d_model=2048, n_layers=24, n_heads=32, n_kv_heads=4, head_dim=128, qk_norm="rms",
    moe=MoE(n_experts=128, top_k=8, d_expert=768), vocab_size=151_936, max_seq_len=4096,
).resolved(151_936, 4096)  # fmt: skip


def added_weights(change: Change) -> int:
    """Weights that a change of the model (`gate`, `preset`, …) adds to a model of the paper's shape."""
    return count_parameters(changed(change)) - count_parameters(PAPER_SHAPE)


def gate_weights(spec: GateSpec) -> str:
    """The formula of a gate's weights in a layer: d = d_model, H heads, G key/value heads, K = head_dim."""
    site = SITES[spec.site]
    width = {"K": "K", "D": "d"}[site.width] if spec.granularity == "elementwise" else "1"
    out = "·".join(n for n in (site.heads, width) if n != "1") or "1"
    if not spec.has_projection:
        return out
    kind, inner = spec.source_kind, spec.mlp if spec.rank is None else spec.rank
    bias = f" + {out}" if spec.bias else ""
    if kind == "head_slice":
        # Each head's d/heads channels, so d in all.
        if inner is None:
            return f"{_times('d', width)}{bias}"
        m = _share(inner, f"d/{site.heads}")
        rest = f"2·{site.heads}" if width == "1" else f"{site.heads} + {site.heads}·{width}"
        return f"{m}·(d + {rest}){bias}"
    wide = {"value": "G·K", "output": "H·K", "hybrid": "(d + H·K)", "first": _share(spec.source.partition(":")[2], "d")}
    d_in = wide.get(kind, "d")
    if inner is None:
        return f"{_times(d_in, out)}{bias}"
    m = _share(inner, d_in)
    return f"{m}·({d_in} + {out})" + (f" + {m}" if spec.mlp is not None else "") + bias


def equation(spec: GateSpec) -> str:
    """The gate in one line: what becomes of the tensor, and what z is."""
    tensor, act = SITES[spec.site].tensor, ACTIVATIONS[spec.activation].formula
    each = {"H": "_h", "G": "_g", "1": ""}[SITES[spec.site].heads] if spec.granularity == "headwise" else ""
    score = f"mean over heads of {act}" if spec.sharing == "shared" else act
    score = f"({score})" if " " in score else score
    if spec.form == "forget":
        return f"P = softmax(logits + Σ ln {score} over the tokens after the key), z = {_logits(spec)}"
    sign = {"mul": "·" if each else "⊙", "add": "+"}[spec.form]
    return f"{tensor}{each} {sign} {score}, z = {_logits(spec)}"


def _logits(spec: GateSpec) -> str:
    if not spec.has_projection:
        return "θ" if spec.source == "static" else "lse + θ"
    first = f"x[:{_share(spec.source.partition(':')[2], 'd')}]"
    read = {"value": "V", "output": "y", "hybrid": "[x, y]", "head_slice": "x_h", "first": first}.get(
        spec.source_kind, "x"
    )
    if spec.rank is not None:
        read = f"{read} W_down"
    if spec.mlp is not None:
        read = f"relu({read} W_down + b_down)"
    return f"{read} W_g" + (" + b" if spec.bias else "")


def _times(left: str, right: str) -> str:
    return left if right == "1" else right if left == "1" else f"{left}·{right}"


def _share(channels: int | str, of: str) -> str:
    """A number, or a share of `of` channels, as it stands in a formula."""
    above, slash, below = str(channels).partition("/")
    return f"{'' if above == '1' else above + '·'}{of}/{below}" if slash else above


def changed(change: Change) -> ModelConfig:
    return override(PAPER_SHAPE, change).resolved(0, 0)
