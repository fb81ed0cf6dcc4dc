"""What the head and its cross-entropy cost: forward and backward time and peak memory of every way to compute them.

    python benchmarks/ops/linear_cross_entropy.py [--rounds 12] [--seconds 80] [--chunks 64,256,512]

bfloat16 over a float32 weight on a CUDA device, one model, a tenth of the targets ignored; the upstream number is 1/N.
First each way's loss and gradients are judged by the numeric contract on a small case. Then all ways take turns in every
round, and a ratio is to the compiled reference of the same round. The floor is 6·N·D·V FLOP at the rate that a square
product of 8192 reaches on this device. Ways of other libraries are there if they can be imported: `liger_kernel`, and
torch's own from 2.13 on. Without a GPU: the same steps at sizes that say nothing, in float32.
"""

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab.bench.timing import Work, wall_clock
from gatelab.ops.contract import check
from gatelab.ops.linear_cross_entropy import IMPLEMENTATIONS, chunked
from gatelab.ops.linear_cross_entropy.cases import Case, inputs

IS_CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if IS_CUDA else ("cpu", torch.float32)
CLOCK = wall_clock(torch.device(DEVICE))
N = 32768 if IS_CUDA else 512
WIDTHS, VOCABULARIES = ((512, 768, 1024), (16384, 50304)) if IS_CUDA else ((32,), (1024, 3001))
BASE = "reference, compiled"
JUDGED = Case("judged", N=300, D=64, V=1000, weight_dtype=torch.float32)
REFERENCE = IMPLEMENTATIONS["reference"]

Way = Callable[..., Tensor]


def of_torch(x_MND: Tensor, weight_MVD: Tensor, targets_MN: Tensor) -> Tensor:
    """torch's chunks, its own choices, kept for a second backward pass as ours are."""
    options = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)
    weight_VD = weight_MVD[0].to(x_MND.dtype)
    return F.linear_cross_entropy(x_MND[0], weight_VD, targets_MN[0], reduction="sum", options=options)[None]


def of_liger(x_MND: Tensor, weight_MVD: Tensor, targets_MN: Tensor) -> Tensor:
    """Liger's chunks, its weight gradient summed in float32 as ours is."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss = liger_fused_linear_cross_entropy(
        x_MND[0], weight_MVD[0].to(x_MND.dtype), targets_MN[0], reduction="sum", accum_dtype=torch.float32
    )
    return loss[None]


def in_chunks_of(mebibytes: int, **arguments: Tensor) -> Tensor:
    """Ours, with chunks of another size."""
    M, n_tokens, _ = arguments["x_MND"].shape
    n_bytes = n_tokens * arguments["weight_MVD"].shape[1] * DTYPE.itemsize * M
    n_chunks = max(1, round(n_bytes / (mebibytes * 2**20)))
    return chunked.linear_cross_entropy(**arguments, chunk=-(-n_tokens // n_chunks))


def ways(chunks: list[int]) -> dict[str, Way]:
    """All that can run here, by name."""
    out: dict[str, Way] = {
        "reference": REFERENCE,
        BASE: torch.compile(REFERENCE, dynamic=False),
        "chunked": chunked.linear_cross_entropy,
        **{f"chunked, {c} MiB": partial(in_chunks_of, c) for c in chunks},
    }
    if hasattr(F, "linear_cross_entropy"):
        out["torch's"] = of_torch
    if IS_CUDA and importlib.util.find_spec("liger_kernel") is not None:
        out["Liger's"] = of_liger
    return out


def drawn(D: int, V: int) -> dict[str, Tensor]:
    """A model's arguments on the device; random hidden states of norm √D and logits of deviation 1."""
    g = torch.Generator(DEVICE).manual_seed(0)
    targets_MN = torch.randint(0, V, (1, N), generator=g, device=DEVICE)
    targets_MN[:, ::10] = -100
    x_MND = torch.randn(1, N, D, generator=g, device=DEVICE).to(DTYPE)
    weight_MVD = torch.randn(1, V, D, generator=g, device=DEVICE) * D**-0.5
    return {"x_MND": x_MND.requires_grad_(), "weight_MVD": weight_MVD.requires_grad_(), "targets_MN": targets_MN}


def step(way: Way, arguments: dict[str, Tensor]) -> None:
    """Forward and backward; gradients are new each time."""
    arguments["x_MND"].grad = arguments["weight_MVD"].grad = None
    (way(**arguments).sum() / N).backward()


def seconds(work: Callable[[], object]) -> float:
    """Of one call; the device has finished."""
    return CLOCK(Work(lambda _: work())) / 1e3


def peak_bytes(work: Callable[[], object], arguments: dict[str, Tensor]) -> int:
    """The most there was at once beyond the arguments; the gradients' own bytes are in it."""
    arguments["x_MND"].grad = arguments["weight_MVD"].grad = None
    if not IS_CUDA:
        return 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def product_rate() -> float:
    """FLOP a second of a square product, the median of 10."""
    size = 8192 if IS_CUDA else 256
    a, b = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
    times = [seconds(partial(torch.mm, a, b)) for _ in range(13)][3:]
    return 2 * size**3 / statistics.median(times)


def judged(listed: dict[str, Way]) -> dict[str, bool]:
    """Whether each way keeps the contract; prints what it is off by."""
    out = {}
    for name, way in listed.items():
        verdicts = check(way, REFERENCE, inputs(JUDGED, seed=0, dtype=DTYPE, device=DEVICE))
        out[name] = all(v.holds for v in verdicts)
        errors = ", ".join(f"{v.tensor} {v.error:.1e} of {v.allowed:.1e}" for v in verdicts)
        print(f"{'holds ' if out[name] else 'BROKEN'} {name}: {errors}", flush=True)
    return out


def compared(listed: dict[str, Way], arguments: dict[str, Tensor], rounds: int, until: float) -> dict[str, list[float]]:
    """Seconds of every way in every round; rounds end early, after three at the least, when the time is up."""
    times: dict[str, list[float]] = {name: [] for name in listed}
    for done in range(rounds):
        if done >= 3 and time.perf_counter() > until:
            break
        for name, way in listed.items():
            times[name].append(seconds(partial(step, way, arguments)))
    return times


def main() -> None:
    """Judges, times, prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=80, help="of all shapes together, compiling included")
    parser.add_argument("--chunks", default="128,256,512", help="other sizes of chunks in MiB, joined by commas")
    given = parser.parse_args()
    listed = ways([int(c) for c in given.chunks.split(",") if c])
    start, holds = time.perf_counter(), judged(listed)
    rate = product_rate()
    device = torch.cuda.get_device_name() if IS_CUDA else f"{platform.machine()} CPU, {torch.get_num_threads()} thread"
    print(f"\n{device}, torch {torch.__version__}, {DTYPE}; {N} tokens; products {rate / 1e12:.3g} TFLOP/s")
    shapes = [(D, V) for V in VOCABULARIES for D in WIDTHS]
    for index, (D, V) in enumerate(shapes, start=1):
        torch._dynamo.reset()  # it compiles a function for so many shapes only
        arguments, floor = drawn(D, V), 6 * N * D * V / rate
        peaks = {}
        for name, way in listed.items():
            step(way, arguments)
            peaks[name] = peak_bytes(partial(step, way, arguments), arguments)
        until = start + given.seconds * index / len(shapes)
        times = compared(listed, arguments, given.rounds, until)
        print(f"\nD = {D}, V = {V}; floor {1e3 * floor:.2f} ms; {len(times[BASE])} rounds\n")
        print(f"| way | median ms | first to third quartile | of the floor | of the {BASE} | peak MiB |")
        print("|---|---|---|---|---|---|")
        for name, found in times.items():
            low, middle, high = (1e3 * t for t in statistics.quantiles(found, n=4))
            ratio = statistics.median(a / b for a, b in zip(found, times[BASE], strict=True))
            told = f"{ratio:.2f}" if holds[name] and holds[BASE] else "contract broken"
            print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {middle / 1e3 / floor:.2f} | {told} | "
                  f"{peaks[name] / 2**20:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
