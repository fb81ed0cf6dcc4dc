"""What a GPU does in a second, as measured or as published, and the three constants that measured steps have set.

Notable: the rates of a product, a copy and attention on H100 and H200 are measurements of this project; an A100's are what its
maker states times an H100's share of what its maker states. Links are the makers' numbers, so that what they give is the least
that communication can take; steps of three meshes of two GPUs were timed (`measured`).
"""

from dataclasses import dataclass
from math import log2

# Set by three of the measured steps (`measured` says which): the share of a large product's rate that layers' products reach, that
# of grouped products of whole tiles, and how often a byte that is kept for the backward pass is moved in a step.
PRODUCTS, EXPERTS, MOVED = 0.945, 0.49, 4.2
# By count: the row of a token and a choice is gathered, put back, weighted and summed, and so are its gradients.
MOVED_PAIRS = 11
# By count (benchmarks/expert_parts.py), on meshes. Where experts are shared out each of those rows is put into the order of experts
# and back where it came to, and so is its gradient, 8 moves; and routers, which are not compiled, read a token's channels in
# float32: so many bytes a channel to make them, to round their gradient and to add it.
MOVED_ON_THE_WAY, ROUTED = 8, 18
# Seconds that a GPU stands still when a host has waited for it, taken as what a host needs to launch a layer's forward pass: a
# third of what 4 layers more took of a compiled step that was not captured (H200, from 8.17 ms of 4 small layers to 11.83 of 8;
# benchmarks/results/training_h200_2026-11.md). What a wait itself takes was not timed.
WAIT = 0.3e-3
# Channels of an expert that a grouped product takes at a time; a part of it costs as much as the whole.
TILE = 128

# TFLOP/s of cuDNN's causal attention forward and backward (2.5 times the operations), by channels a head and length; H100,
# bfloat16, 32,768 tokens, 16 heads; benchmarks/results/ops_h100_2026-11.md and the ceilings measured before it.
ATTENTION: dict[int, dict[int, tuple[float, float]]] = {
    64: {1024: (335, 232), 2048: (392, 312), 4096: (411, 374), 8192: (429, 417), 16_384: (436, 435), 32_768: (460, 429)},
    128: {1024: (433, 295), 2048: (511, 390), 4096: (554, 451), 8192: (561, 491), 16_384: (605, 510), 32_768: (595, 553)},
}  # fmt: skip


@dataclass(frozen=True)
class Device:
    """A GPU and its place in a machine of `node` of them.

    `product` operations a second of a large bfloat16 product, `copy` bytes a second read and written, `peak` what its maker
    states (for MFU), `memory` bytes. `link` and `network`: bytes a second that it sends to another of its machine, and to
    another machine. `attention`: its rate over an H100's. `is_measured`: product and copy, here.
    """

    name: str
    product: float
    copy: float
    peak: float
    memory: float
    link: float
    network: float
    attention: float = 1.0
    is_measured: bool = True
    node: int = 8


# Memory is as the names say, 80 and 141 thousand million bytes: what the drivers give beyond is left to workspaces and NCCL.
# NVLink one way and a network card a GPU: NVIDIA's data sheets of DGX A100, H100 and H200.
_H100 = Device("H100", 774e12, 3.02e12, 989e12, 80e9, 450e9, 50e9)
DEVICES: dict[str, Device] = {
    "h100": _H100,
    "h200": Device("H200", 788e12, 4.3e12, 989e12, 141e9, 450e9, 50e9),
    "a100": Device(
        "A100",
        312e12 * _H100.product / 989e12,
        2.039e12 * _H100.copy / 3.35e12,
        312e12,
        80e9,
        300e9,
        25e9,
        attention=312 / 989,
        is_measured=False,
    ),
}


def attention_seconds(flops: float, device: Device, *, head_dim: int, length: int) -> tuple[float, float]:
    """Forward and backward, of `flops` operations of both as `train.cost` counts them: two thirds are the backward pass's,
    which computes the weights again (2.5 times the forward's). Between the measured lengths by their logarithm."""
    table = ATTENTION[64 if head_dim <= 64 else 128]
    at = min(max(log2(max(length, 1)), 10.0), 15.0)
    low = min(int(at), 14)
    share = at - low
    forward, backward = ((1 - share) * a + share * b for a, b in zip(table[2**low], table[2 ** (low + 1)], strict=True))
    one = flops / 3 / device.attention / 1e12
    return one / forward, 2.5 * one / backward
