"""What attention's own Triton kernels with the gate inside cost: short sequences there and back, and a query against a cache.

    python benchmarks/ops/short.py [--out FILE] [--rounds 9] [--parts contract,times,blocks,decode] [--device cpu]

bfloat16 on a CUDA device; 32,768 tokens in all, causal, beside cuDNN without a gate and `flash` and `flash-lean` with one;
decoding in one captured graph of as many layers as fit, each with a cache of its own, whose time is that of a layer and whose
floor is the cache read once at the rate of a copy. Parts are done in the order in which they are named: `contract` judges many
cases by the numeric contract; `times` judges every way of a shape on fewer sequences, and those that hold take turns in every
round; `blocks` times other blocks than those of the tables; `decode` a query against a cache, with other cuts. JSON lines go
to the terminal and to --out, medians as Markdown tables to the terminal; it leaves with 1 where something failed. --device cpu:
the contract alone, of small shapes in Triton's interpreter.
"""

import argparse
import itertools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
import torch.nn.functional as F
from rounds import Log
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gatelab.bench.floors import measure_rates
from gatelab.config import GateSpec
from gatelab.ops.gated_attention import flash, gated_attention
from gatelab.ops.gated_attention.cases import Case, inputs
from gatelab.ops.gated_decode import gated_decode

GATES = {"none": None, "headwise": GateSpec.parse("sdpa-headwise"), "elementwise": GateSpec.parse("sdpa-elementwise")}
N_TOKENS = 32768
STOCK = "short, torch's way back"
OTHERS = {
    "forward": (
        (128, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2), (64, 64, 4, 2, 128), (64, 64, 4, 3),
        (64, 64, 4, 3, 128), (64, 32, 4, 3), (128, 64, 8, 3, 128), (128, 128, 8, 2),
    ),
    "keys": ((64, 64, 4, 2), (64, 32, 4, 3), (128, 64, 8, 2), (64, 64, 4, 3, 168)),
    "queries": ((64, 64, 4, 2), (128, 64, 8, 3), (64, 32, 4, 3), (64, 32, 4, 3, 128)),
}  # fmt: skip
OTHER_CUTS = ((64, 4, 3, 4, 128), (64, 4, 3, 8, 128), (64, 4, 3, 4, 256), (128, 4, 2, 4, 128), (32, 4, 4, 4, 128))
# Query heads, key heads and channels where a query is decoded.
DECODED = (32, 8, 128)
AT = ((1, 4096), (8, 4096), (64, 4096), (1, 32768), (8, 32768), (64, 32768))
_CACHES = 6e9  # bytes of all layers' caches, so that none is in L2


class Shape(NamedTuple):
    """K channels a head, T tokens a sequence, width of all heads; `is_packed`: slices of one projection."""

    K: int
    T: int
    width: int
    is_packed: bool = False


SHAPES = (
    *(Shape(64, T, 1024) for T in (256, 512, 1024, 2048, 4096)),
    *(Shape(64, T, 2048) for T in (512, 1024, 2048)),
    Shape(32, 1024, 1024),
    *(Shape(32, T, 2048) for T in (512, 1024, 2048)),
    *(Shape(128, T, 1024) for T in (512, 1024, 2048)),
    Shape(64, 1024, 1024, is_packed=True),
)


def cases(*, is_small: bool) -> list[Case]:
    """Each width of the tables at odd and even lengths, grouped, windowed, both ways, and queries that go on."""
    if is_small:
        small = Case("small", B=1, T=37, H=4, G=2, K=16, gate="sdpa-elementwise")
        return [
            small,
            replace(small, name="window", window=9, gate="sdpa-headwise"),
            replace(small, name="none", gate=None),
        ]
    shapes = (
        Case("elementwise", T=512, H=8, G=8, gate="sdpa-elementwise"),
        Case("odd-grouped", T=77, H=8, G=2, gate="sdpa-headwise"),
        Case("ungated", T=1000, H=8, G=4),
        Case("window", T=256, H=8, G=8, gate="sdpa-headwise", window=100),
        Case("long", B=1, T=2048, H=8, G=2, gate="sdpa-elementwise"),
    )
    of_widths = [replace(case, name=f"{case.name}-{K}", K=K) for K in (16, 32, 64, 128) for case in shapes]
    return [
        *of_widths,
        Case("continued", T=100, S=377, H=8, G=4, K=64, gate="sdpa-elementwise"),
        Case("both-ways", T=333, H=8, G=4, K=64, gate="sdpa-headwise", is_causal=False),
        Case("window-both-ways", T=333, H=8, G=8, K=32, gate="sdpa-elementwise", is_causal=False, window=50),
        Case("72-channels", T=300, H=6, G=3, K=72, gate="sdpa-elementwise"),
    ]


def attend(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None,
    *,
    is_causal: bool = True,
    window: int | None = None,
    is_stock: bool = False,
    **_: Any,
) -> Tensor:
    """`short` with its own way back, or torch's where `is_stock`, whatever it would take by itself."""
    backward = flash.stock_kernel(q_BTHK, k_BSGK, is_causal=is_causal) if is_stock else "own"
    return torch.ops.gatelab.gated_short(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, is_causal, window, backward)[0]


def judge_short(log: Log, device: torch.device) -> None:
    """Both ways back, and both types on a GPU."""
    is_small = device.type == "cpu"
    dtypes = (torch.float32,) if is_small else (torch.bfloat16, torch.float16)
    for case, dtype in itertools.product(cases(is_small=is_small), dtypes):
        has_stock = case.window is None and (case.S is None or not case.is_causal)
        for is_stock in (False, True) if has_stock else (False,):
            arguments = inputs(case, seed=1, dtype=dtype, device=device.type)
            name = f"short {case.name} {dtype}{', torch way back' if is_stock else ''}"
            log.judge(name, partial(attend, is_stock=is_stock), partial(gated_attention, impl="reference"), arguments)


def judge_decode(log: Log, device: torch.device) -> None:
    """Whole caches, and sequences of their own lengths behind a window."""
    from gatelab.ops.gated_decode import kernels

    is_small = device.type == "cpu"
    (H, G, K), dtype = ((4, 2, 16), torch.float32) if is_small else (DECODED, torch.bfloat16)
    shapes = ((2, 77, 50),) if is_small else ((4, 4096, None), (5, 1000, 700), (2, 77, None))
    for (B, S, window), (word, gate) in itertools.product(shapes, GATES.items()):
        normal = partial(torch.randn, device=device, dtype=dtype)
        slots = (
            {"window": window, "first_B": torch.arange(B, device=device)}
            if window
            else {"window": None, "first_B": None}
        )
        arguments = {
            "q_B1HK": normal(B, 1, H, K), "k_BSGK": normal(B, S, G, K), "v_BSGK": normal(B, S, G, K),
            "gate_logits_B1HK": None if gate is None else normal(B, 1, H, 1 if word == "headwise" else K), "gate": gate,
            "end_B": S - 3 * torch.arange(B, device=device) if window else None, **slots,
            "grad_BTHK": torch.zeros(B, 1, H, K, device=device, dtype=dtype),
        }  # fmt: skip

        def decode(gate: GateSpec | None, gate_logits_B1HK: Tensor | None, **given: Any) -> Tensor:
            return kernels.gated_decode(**given, logits_B1HW=gate_logits_B1HK)

        log.judge(f"decode {B} behind {S} {word}", decode, partial(gated_decode, impl="reference"), arguments)


def drawn(shape: Shape, gate: str, device: torch.device) -> list[Tensor | None]:
    """q, k, v and logits, leaves or slices of one, with as many key heads as query heads."""
    B, H, K = max(1, N_TOKENS // shape.T), shape.width // shape.K, shape.K
    W = {"none": 0, "headwise": 1, "elementwise": K}[gate]
    widths = [H * K, H * K, H * K, H * W]
    if not shape.is_packed:
        sizes = [(H, K)] * 3 + [(H, W)] * (W > 0)
        leaves = [torch.randn(B, shape.T, *n, device=device, dtype=torch.bfloat16).requires_grad_() for n in sizes]
        return leaves if W else [*leaves, None]
    rest = -sum(widths) % 64
    wide_BTN = torch.randn(B, shape.T, sum(widths) + rest, device=device, dtype=torch.bfloat16).requires_grad_()
    pieces = wide_BTN.split([*widths, rest], dim=-1)
    return [*(p.unflatten(-1, (H, K)) for p in pieces[:3]), pieces[3].unflatten(-1, (H, W)) if W else None]


def by_flash(*given: Tensor | None, keeps_output: bool) -> Tensor:
    """`flash`, or `flash-lean`."""
    return flash.attention(*given, is_causal=True, keeps_output=keeps_output)[0]


def by_cudnn(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, _: None) -> Tensor:
    """Attention without a gate."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        heads = (t.transpose(1, 2) for t in (q_BTHK, k_BSGK, v_BSGK))
        return F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)


def compare(log: Log, shape: Shape, device: torch.device, rounds: int) -> dict[str, float]:
    """Medians of `gate way, work`, of the ways that keep the contract on two heads of one sequence of the shape."""
    works: dict[str, Callable[[], object]] = {}
    for gate, spec in GATES.items():
        given = drawn(shape, gate, device)
        upstream_BTHK = torch.randn_like(given[0])
        ways = {"short": attend, STOCK: partial(attend, is_stock=True)}
        ways |= {"cuDNN": by_cudnn} if gate == "none" else {
            "flash": partial(by_flash, keeps_output=True), "flash-lean": partial(by_flash, keeps_output=False)
        }  # fmt: skip
        word = None if spec is None else f"sdpa-{gate}"
        few = Case("few", B=1, T=shape.T, H=2, G=2, K=shape.K, gate=word)
        arguments = inputs(few, seed=1, dtype=torch.bfloat16, device=device.type)
        for name, way in ways.items():
            held = f"{gate} {name} of {shape.T} tokens and heads of {shape.K}"
            if not log.judge(held, partial(as_called, way), partial(gated_attention, impl="reference"), arguments):
                continue
            if name != STOCK:  # whose forward pass is that of `short`
                works[f"{gate} {name}, forward"] = partial(forward, way, given)
            works[f"{gate} {name}, both"] = partial(both, way, given, upstream_BTHK)
    found = log.turns(works, device, rounds)
    for name, times in found.items():
        log.tell("time", **shape._asdict(), what=name, **times)
    return {name: times["ms"] for name, times in found.items()}


def as_called(
    way: Callable[..., Tensor],
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """A way with the arguments of `gated_attention`."""
    return way(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK)


@torch.no_grad()
def forward(way: Callable[..., Tensor], given: list[Tensor | None]) -> Tensor:
    return way(*given)


def both(way: Callable[..., Tensor], given: list[Tensor | None], upstream_BTHK: Tensor) -> tuple[Tensor, ...]:
    """There and back; of slices, without the sum into the projection's gradient."""
    return torch.autograd.grad(way(*given), [t for t in given if t is not None], upstream_BTHK)


def race(log: Log, shape: Shape, device: torch.device, rounds: int) -> None:
    """Other blocks of the three kernels; the way back without a gate, whose own pass is not varied."""
    from gatelab.ops.gated_attention import short_kernels
    from gatelab.ops.gated_attention.short_kernels import Tiles

    q, k, v, logits = (t.detach() for t in drawn(shape, "elementwise", device))
    masks = {"is_causal": True, "window": None}
    z, lse = short_kernels.attend(q, k, v, None, **masks)
    dz = torch.randn_like(z)
    attended = partial(short_kernels.attend, q, k, v, logits, **masks)
    gradients = partial(short_kernels.gradients, dz, q, k, v, None, z, lse, **masks)
    made = {
        "forward": lambda tiles: partial(attended, tiles=tiles),
        "keys": lambda tiles: partial(gradients, key_tiles=tiles),
        "queries": lambda tiles: partial(gradients, query_tiles=tiles),
    }
    for what, make in made.items():
        works = {"of the table": make(None)} | {str(t): make(Tiles(*t)) for t in OTHERS[what]}
        for name, times in log.turns(works, device, rounds).items():
            log.tell("blocks", **shape._asdict(), kernel=what, blocks=name, **times)


def captured(steps: list[Callable[[], Tensor]]) -> Callable[[], None]:
    """All steps as one graph."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for step in steps:
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in steps:
            step()
    return graph.replay


@torch.no_grad()
def decode(log: Log, B: int, S: int, device: torch.device, rounds: int, *, bytes_per_s: float) -> dict[str, float]:
    """Microseconds a layer by way, and the floor."""
    from gatelab.ops.gated_decode.kernels import Cut
    from gatelab.ops.gated_decode.kernels import gated_decode as split

    (H, G, K), normal = DECODED, partial(torch.randn, device=device, dtype=torch.bfloat16)
    n_bytes = 2 * B * S * G * K * 2
    n_layers = max(1, min(24, int(_CACHES / n_bytes)))
    caches = [(normal(B, S, G, K), normal(B, S, G, K)) for _ in range(n_layers)]
    q_B1HK = normal(B, 1, H, K)
    logits = {"none": None, "headwise": normal(B, 1, H, 1), "elementwise": normal(B, 1, H, K)}

    def own(gate: str, cut: Cut | None, k_BSGK: Tensor, v_BSGK: Tensor) -> Tensor:
        return split(q_B1HK, k_BSGK, v_BSGK, logits[gate], window=None, first_B=None, end_B=None, cut=cut)

    def stock(gate: str, k_BSGK: Tensor, v_BSGK: Tensor) -> Tensor:
        heads = (t.transpose(1, 2) for t in (q_B1HK, k_BSGK, v_BSGK))
        y_B1HK = F.scaled_dot_product_attention(*heads, enable_gqa=True).transpose(1, 2)
        return y_B1HK if gate == "none" else y_B1HK * logits[gate].sigmoid()

    ways = {f"{gate} split": partial(own, gate, None) for gate in GATES}
    ways |= {f"{gate} SDPA": partial(stock, gate) for gate in GATES}
    ways |= {f"none split, cut {cut}": partial(own, "none", Cut(*cut)) for cut in OTHER_CUTS}
    out = {"floor": 1e6 * (n_bytes + 4 * q_B1HK.numel()) / bytes_per_s}
    made = {n: log.tried(n, partial(captured, [partial(way, *cache) for cache in caches])) for n, way in ways.items()}
    graphs = {name: replay for name, replay in made.items() if replay is not None}
    for name, times in log.turns(graphs, device, rounds).items():
        per_layer = {n: 1e3 * ms / n_layers for n, ms in times.items()}
        us = per_layer.pop("ms")
        log.tell("decode", batch=B, cache=S, layers=n_layers, what=name, us=us, **per_layer, floor_us=out["floor"])
        out[name] = us
    return out


def print_attention(found: dict[Shape, dict[str, float]]) -> None:
    """Forward and both ways, and the faster of flash over short."""
    print(
        "\n| K | T | H·K | gate | work | cuDNN alone, ms | short | short, torch's way back | best of flash | over short |"
    )
    print("|" + "---|" * 10)
    for (shape, ms), gate, work in itertools.product(found.items(), ("headwise", "elementwise"), ("forward", "both")):
        nothing = math.nan
        best = min(ms.get(f"{gate} {way}, {work}", nothing) for way in ("flash", "flash-lean"))
        own, mixed = (ms.get(f"{gate} {way}, {work}", nothing) for way in ("short", STOCK))
        words = f"{shape.K} | {shape.T} | {shape.width}{', packed' if shape.is_packed else ''} | {gate} | {work}"
        plain = ms.get(f"none cuDNN, {work}", nothing)
        back = f"{mixed:.3f}" if work == "both" else ""
        print(f"| {words} | {plain:.3f} | {own:.3f} | {back} | {best:.3f} | {best / own:.2f} |")


def print_decoding(found: dict[tuple[int, int], dict[str, float]]) -> None:
    """Microseconds a layer, gated over ungated."""
    print("\n| batch | cache | floor, µs | ungated | headwise | elementwise | SDPA ungated | SDPA, gate by torch |")
    print("|" + "---|" * 8)
    for (B, S), us in found.items():
        plain, *gated = (us.get(f"{gate} split", math.nan) for gate in GATES)
        over = " | ".join(f"{t:.1f} ({t / plain:.3f})" for t in gated)
        stock = " | ".join(f"{us.get(f'{gate} SDPA', math.nan):.1f}" for gate in ("none", "elementwise"))
        print(f"| {B} | {S} | {us['floor']:.1f} | {plain:.1f} | {over} | {stock} |")


def judge_all(log: Log, device: torch.device, _: int) -> None:
    """Every case of both operators."""
    judge_short(log, device)
    judge_decode(log, device)


def compare_all(log: Log, device: torch.device, rounds: int) -> None:
    """Every shape beside its peers."""
    print_attention({shape: compare(log, shape, device, rounds) for shape in SHAPES})


def race_all(log: Log, device: torch.device, rounds: int) -> None:
    """Other blocks, of every width."""
    for K, T in itertools.product((64, 32, 128), (512, 1024)):
        race(log, Shape(K, T, 1024), device, rounds)


def decode_all(log: Log, device: torch.device, rounds: int) -> None:
    """Every cache, with other cuts."""
    rate = measure_rates(device, torch.bfloat16).bytes_per_s
    decoded = partial(decode, log, device=device, rounds=rounds, bytes_per_s=rate)
    print_decoding({(B, S): decoded(B, S) for B, S in AT})


PARTS = {"contract": judge_all, "times": compare_all, "blocks": race_all, "decode": decode_all}


def listed(line: str) -> list[str]:
    """The parts that a line joins by commas."""
    names = line.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(PARTS)}, joined by commas")
    return names


def main() -> int:
    """1 where a contract is broken or something does not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file that JSON lines are appended to")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--parts", type=listed, default=list(PARTS), help=f"of {', '.join(PARTS)}, joined by commas")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --device cpu judges the kernels in Triton's interpreter")
    # Kernels are interpreted or compiled as this says when they are imported.
    os.environ["TRITON_INTERPRET"] = "1" if given.device == "cpu" else "0"
    torch.manual_seed(0)
    device, log = torch.device(given.device), Log(given.out)
    name = "cpu" if given.device == "cpu" else torch.cuda.get_device_name()
    log.tell("about", device=name, torch=torch.__version__, tokens=N_TOKENS, rounds=given.rounds)
    for part in given.parts if given.device == "cuda" else ("contract",):
        PARTS[part](log, device, given.rounds)
    print(f"\n{len(log.failed)} failed{': ' if log.failed else ''}{'; '.join(log.failed)}")
    return int(bool(log.failed))


if __name__ == "__main__":
    sys.exit(main())
