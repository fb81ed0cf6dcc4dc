"""What kind of work a kernel of a training step is, by its name and its place, and the least that each kind can take.

Notable: names tell most. Two things are told by place: the products of the head are those about a cross-entropy kernel, one
before it and two behind it, as `ops.linear_cross_entropy`'s chunks have them; and the update of the weights begins where the
gradients are put side by side, and ends where the next batch comes. On a CPU, whose operations have other names, the same
patterns find products and copies, and call the rest elementwise.
"""

import re
from dataclasses import dataclass

from gatelab.bench.floors import Rates, attention_ms, gate_bytes
from gatelab.config.model import ModelConfig
from gatelab.models.sizes import count_parameters
from gatelab.train.cost import attention_flops_per_token, model_flops_per_token

BODY, HEAD, ENTROPY, ATTENTION, PREPARE = (
    "products, body", "products, head", "cross-entropy", "attention", "attention, before its way back",
)  # fmt: skip
GATE, FUSED, GATHERED, NORM, OPTIMIZER = (
    "gate", "norms and elementwise", "gradients side by side", "gradient norm", "optimizer",
)  # fmt: skip
COPIES, OTHER = "copies and fills", "other"
KINDS = (BODY, HEAD, ENTROPY, ATTENTION, PREPARE, GATE, FUSED, GATHERED, NORM, OPTIMIZER, COPIES, OTHER)
# The first that is found in a name says what it is. CuTe's kernels here are FlashAttention-4's, with our gate inside.
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in (
    (ENTROPY, r"cross_entropy_kernel"),
    (PREPARE, r"^prepare_kernel|bwd_preprocess|compute_dot_do_o"),
    (ATTENTION, r"kernel_cutlass|cudnn|flash|fmha|^(forward|queries|keys)_kernel|scaled_dot_product"),
    (GATE, r"^(gate|gradients)_kernel"),
    (BODY, r"nvjet|gemm|cutlass|splitK|gemv|triton_tem_|^aten::(\w*mm|baddbmm|bmm)$"),
    (GATHERED, r"CatArray"),
    (FUSED, r"^triton_"),
    (COPIES, r"^Mem(cpy|set)|FillFunctor|copy_kernel|CopyFunctor|^aten::(copy_|fill_|zero_|cat)$"),
    (FUSED, r"^aten::"),
    (OTHER, r""),
))  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """One that ran: its name, and when, in microseconds."""

    name: str
    start_us: float
    end_us: float


def kinds_of(kernels: list[Kernel]) -> list[str]:
    """The kind of each, in the order in which they ran."""
    found: list[str] = []
    last_product, of_head, is_update = [], 0, False
    for i, kernel in enumerate(kernels):
        kind = next(kind for kind, pattern in _PATTERNS if pattern.search(kernel.name))
        if kind == BODY:
            # The sum of a product in parts is that product's.
            if "splitK" in kernel.name and "reduce" in kernel.name and last_product:
                kind = found[last_product[0]]
                last_product.append(i)
            else:
                kind = HEAD if of_head else BODY
                last_product, of_head = [i], max(0, of_head - 1)
        elif kind == ENTROPY:
            for j in last_product:
                found[j] = HEAD
            of_head = 2
        if kind == GATHERED:
            is_update = True
        elif kind in (BODY, HEAD, ATTENTION) or "HtoD" in kernel.name:
            is_update = False
        elif kind == FUSED and is_update:
            kind = OPTIMIZER if kernel.name.startswith("triton_poi") else NORM
        found.append(kind)
    return found


def floors_ms(model: ModelConfig, rates: Rates, used: str, *, tokens: int, context: int, runs: int) -> dict[str, float]:
    """The least that a kind can take in a step of `runs` of `tokens` each, at the rates of one large product and of a copy.

    Products by 6 operations a weight and token; attention as `floors.attention_ms` has it; the cross-entropy's kernel reads and
    writes the logits once, a gate's kernels after attention move what `floors.gate_bytes` says (inside of attention's there is
    none); AdamW reads 16 bytes a weight and writes 12, and reads which weights decay once for all runs; the norm reads 4 bytes
    a weight, and putting gradients side by side moves 8.
    """
    c, all_tokens, weights = model, tokens * runs, count_parameters(model)
    attention_flops, head_flops = attention_flops_per_token(c, context), 6 * c.vocab_size * c.d_model
    body_flops = model_flops_per_token(c, context) - attention_flops - head_flops
    layer_ms = attention_ms(
        rates, B=all_tokens // context, T=context, H=c.n_heads, G=c.n_kv_heads, K=c.head_dim, itemsize=2,
        work="forward + backward",
    )  # fmt: skip
    out = {
        BODY: rates.ms(0, body_flops * all_tokens),
        HEAD: rates.ms(0, head_flops * all_tokens),
        ENTROPY: rates.ms(4 * all_tokens * c.vocab_size, 0),
        ATTENTION: c.n_layers * layer_ms,
        GATHERED: rates.ms(8 * weights * runs, 0),
        NORM: rates.ms(4 * weights * runs, 0),
        OPTIMIZER: rates.ms((28 * runs + 4) * weights, 0),
    }
    after = [g for g in c.all_gates if g.site == "sdpa" and g.granularity in ("headwise", "elementwise")]
    if after and "flash" in used:
        passed = gate_bytes(2 * all_tokens * c.n_heads * c.head_dim, after[0].granularity, "forward + backward")
        out[GATE] = rates.ms(c.n_layers * passed, 0)
    return out


def busy_us(kernels: list[Kernel]) -> float:
    """The time in which at least one ran."""
    busy, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda k: k.start_us):
        busy += max(0.0, kernel.end_us - max(end, kernel.start_us))
        end = max(end, kernel.end_us)
    return busy
