"""What the device must spend: bytes and operations by formula, over rates that are measured in the same run.

Notable: the rates are a copy's (read and write) and one large product's; the counts are those of one fused kernel each
way beside attention. A gate inside of the attention kernel moves less than that, and may come out under the floor.
"""

from dataclasses import dataclass

import torch

from .timing import Budget, Work, take_turns

# Of H100 and H200, dense bfloat16; what MFU is stated over there.
HOPPER_FLOPS = 989e12
# How often the gate's one kernel each way touches a tensor as large as the output: forward it reads it, and the logits of an
# elementwise gate, and writes; backward it reads the gradient, the output and the logits and writes two gradients.
_PASSES = {
    ("elementwise", "forward"): 3, ("elementwise", "backward"): 5,
    ("headwise", "forward"): 2, ("headwise", "backward"): 3,
}  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """Measured: bytes a second of a copy, read and write; operations a second of a product of `side` × `side` matrices."""

    bytes_per_s: float
    flops_per_s: float
    side: int

    def ms(self, n_bytes: float, flops: float) -> float:
        """Of work that is bound by the slower of the two."""
        return 1e3 * max(n_bytes / self.bytes_per_s, flops / self.flops_per_s)


def measure_rates(device: torch.device, dtype: torch.dtype, *, seconds: float = 2.0) -> Rates:
    """Of a tensor of 1 GiB and a product of 8192³ on CUDA, and of 64 MiB and 512³ elsewhere, in about so many seconds."""
    n_bytes, side = (1 << 30, 8192) if device.type == "cuda" else (64 << 20, 512)
    source = torch.ones(n_bytes, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    works = {"copy": Work(lambda _: copy.copy_(source)), "product": Work(lambda _: a @ b)}
    # Each for itself, so that there is time for both however little there is.
    turns = {name: take_turns({name: work}, device, budget=Budget.of(seconds / 2)) for name, work in works.items()}
    copied, multiplied = (turns[name].times[name].median / 1e3 for name in works)
    return Rates(2 * n_bytes / copied, 2 * side**3 / multiplied, side)


def gate_bytes(tensor_bytes: int, granularity: str, work: str, *, more_passes: int = 0) -> int:
    """That the gate's kernel moves, `work` being forward, backward or both, for an output of `tensor_bytes`.

    Args:
        more_passes: of the backward kernel: 1 where it makes the ungated output again, −1 where attention's own kernel
            takes the gate in with the log-sum-exp.
    """
    parts = ("forward", "backward") if work == "forward + backward" else (work,)
    passes = sum(_PASSES[granularity, part] for part in parts)
    return tensor_bytes * (passes + more_passes * ("backward" in parts))


def attention_ms(
    rates: Rates, *, B: int, T: int, H: int, G: int, K: int, itemsize: int, work: str, pairs: float | None = None
) -> float:
    """Causal attention: 2 B H T² K operations forward and 2.5 times as many backward, or each tensor moved once. `pairs`: of a
    query and a key that it sees, where they are not T²/2 in a sequence."""
    flops, queries, keys = (
        4 * B * H * (T * T / 2 if pairs is None else pairs) * K,
        B * T * H * K * itemsize,
        B * T * G * K * itemsize,
    )
    forward = rates.ms(2 * queries + 2 * keys, flops)
    # Read q, k, v, o and its gradient, write those of q, k and v.
    backward = rates.ms(4 * queries + 4 * keys, 2.5 * flops)
    return forward if work == "forward" else backward if work == "backward" else forward + backward
