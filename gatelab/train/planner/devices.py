"""What a GPU does in a second, as measured or as published, and the constants that measured steps and their profiles have set.

Notable: the rates of a product, a copy and attention on H100 and H200 are measurements of this project; an A100's are what its
maker states times an H100's share of what its maker states. Links are the makers' numbers, so that what they give is the least
that communication can take; steps of three meshes of two GPUs were timed (`measured`). What meshes with experts add was measured
on one GPU that plays both ranks ("played" below: `benchmarks/expert_parts.py --played`, `moe-480m`, 12 layers, 8 sequences of 4,096
tokens, one H200, torch 2.11.0+cu130, code of 9d3cc8a; benchmarks/results/expert_parts_h200_2026-11.json).
"""

from dataclasses import dataclass
from math import log2

# Set by two of the measured steps (`measured` says which): the share of a large product's rate that layers' products reach, and
# how often a byte that is kept for the backward pass is moved in a step.
PRODUCTS, MOVED = 0.945, 4.2
# Of whole tiles the share of a large product's rate that grouped products reach, by an expert's channels, from two profiles.
# 1,408: 34.2 ms of kernels (played, `captured`). 168: of 17.7 ms of products those that are not planned for layers, head and
# router (`moe-80m`, H100; benchmarks/results/training_h100_2026-11.md).
EXPERTS: dict[int, float] = {168: 0.52, 1408: 0.757}
# The same of a router's products, which are float32: 2.65 ms of kernels (played, `captured`), whose tiles are of 32 experts by
# their names.
ROUTER, ROUTER_TILE = 0.037, 32
# By count: the row of a token and a choice is gathered, put back, weighted and summed, and so are its gradients.
MOVED_PAIRS = 11
# On meshes, by kernels' time at a copy's rate. Where experts are shared out, moves of each of those rows beside what blocks of
# whole experts do: 8.1 ms (played, `ep` over `blocks`, less 3.0 of copies that stand for the wire). By count 8 are its way into
# the order of experts and back, and its gradient's; the others are gathers and sums that are not compiled into one. And around
# a router, which is not compiled, bytes a channel of a token: 3.0 ms (played, `blocks` over `captured`); by count 18 are its
# float32.
MOVED_ON_THE_WAY, ROUTED = 22, 32
# How many rows the busier of two ranks has for each that it would have were all alike: twice its share of 0.58 (played, `ep
# busier`, routers as they begin, on random tokens; trained ones were not measured). Of more ranks the busiest has no less.
UNEVEN = 1.17
# Seconds a layer with experts that a GPU stands still where kernels are launched one by one: 7.8 ms a step, 1.8 of a captured
# one (played, `blocks` and `captured`).
LAUNCHED = 0.5e-3
# Seconds that a GPU stands still when a host has waited for it: 3.3 ms more in a step of 12 waits (played, `ep` over `blocks`;
# `ep busier` 3.6). One rank that is late for another was not measured.
WAIT = 0.28e-3
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


def experts_rate(channels: int) -> float:
    """The share of a large product's rate that grouped products of whole tiles reach; between the measured ones by logarithm."""
    (few, low), (many, high) = sorted(EXPERTS.items())
    at = log2(min(max(channels, few), many) / few) / log2(many / few)
    return (1 - at) * low + at * high
