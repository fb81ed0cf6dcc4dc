"""Whether `flash` and `flash-lean` keep the numeric contract on this GPU: one line a shape, implementation and kernel of
torch's, with PASS or FAIL and the tensor nearest to its limit.

The inputs of a shape are slices of one tensor, as a packed projection gives them, or tensors of their own. Each shape runs
with cuDNN's kernel where it has one, and with it switched off. A warning, such as cuDNN's about a gradient it has to copy, is
printed and fails. Usage: python benchmarks/ops/gate_check_gpu.py; leaves with 1 where a line failed. --compiled: one shape
through torch.compile too. --quick: tiny shapes on a CPU.
"""

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
from torch import Tensor

from gatelab.config import GateSpec
from gatelab.ops.contract import check
from gatelab.ops.gated_attention import flash, gated_attention

GATES = {None: None, **{g: GateSpec.parse(f"sdpa-{g}") for g in ("headwise", "elementwise")}}


class Shape(NamedTuple):
    """What is drawn. `is_packed`: views of one tensor, with `before` channels in front of them."""

    B: int
    T: int
    H: int
    G: int
    K: int
    gate: str | None
    is_packed: bool = True
    before: int = 0
    is_causal: bool = True
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        words = [f"B{self.B} T{self.T} H{self.H}/{self.G} K{self.K}", self.gate or "no gate"]
        words += ["packed" if self.is_packed else "apart", *([] if self.is_causal else ["both ways"])]
        return " ".join([*words, str(self.dtype).removeprefix("torch.")])


SHAPES = (
    Shape(2, 512, 8, 8, 128, "elementwise"),
    Shape(2, 512, 8, 8, 128, "headwise"),
    Shape(2, 509, 8, 2, 128, "elementwise"),
    Shape(2, 509, 8, 2, 128, "headwise"),
    Shape(2, 300, 8, 4, 64, "elementwise", before=8),
    Shape(2, 301, 8, 4, 64, "headwise", is_packed=False),
    Shape(1, 64 * 7 + 64, 6, 1, 64, "headwise"),  # six gate channels: rows that do not begin at 16 bytes
    Shape(3, 37, 6, 3, 96, "elementwise"),
    Shape(3, 129, 4, 2, 72, "headwise", is_causal=False),
    Shape(1, 200, 4, 2, 256, "elementwise"),
    Shape(2, 1, 4, 2, 64, "elementwise"),
    Shape(2, 333, 8, 2, 128, None),
    Shape(2, 320, 8, 2, 128, "elementwise", dtype=torch.float16),
    Shape(2, 320, 8, 2, 64, "headwise", dtype=torch.float16, is_causal=False),
)
QUICK = (Shape(2, 9, 4, 2, 16, "elementwise"), Shape(1, 7, 4, 1, 12, "headwise", before=4), Shape(1, 5, 2, 2, 8, None))


def called(attend: Callable[..., Tensor], shape: Shape, **leaves: Tensor) -> Tensor:
    """Attention of the leaves, joined and cut apart again where packed: then gradients are still told apart."""
    heads = list(leaves.values())
    if shape.is_packed:
        front_BTN = heads[0].new_zeros(shape.B, shape.T, shape.before)
        joined_BTN = torch.cat([front_BTN, *(t.flatten(2) for t in heads)], dim=-1)
        _, *slices = joined_BTN.split([shape.before, *(t.shape[2] * t.shape[3] for t in heads)], dim=-1)
        heads = [piece.unflatten(-1, t.shape[2:]) for piece, t in zip(slices, heads, strict=True)]
    logits = heads[3] if shape.gate is not None else None
    return attend(*heads[:3], logits, GATES[shape.gate], is_causal=shape.is_causal)


def drawn(shape: Shape, device: str) -> dict[str, Any]:
    """q, k, v and logits as leaves, and an upstream gradient."""
    g = torch.Generator().manual_seed(0)

    def normal(n_heads: int, width: int) -> Tensor:
        return torch.randn(shape.B, shape.T, n_heads, width, generator=g).to(device, shape.dtype)

    H, G, K = shape.H, shape.G, shape.K
    leaves = {"q": normal(H, K), "k": normal(G, K), "v": normal(G, K)}
    if shape.gate is not None:
        leaves["logits"] = normal(H, K if shape.gate == "elementwise" else 1)
    return {name: t.requires_grad_() for name, t in leaves.items()} | {"grad_BTHK": normal(H, K)}


def lines(shape: Shape, device: str, *, compiled: bool = False) -> Iterator[tuple[bool, str]]:
    """Whether a line passed, and the line; for each implementation and each of torch's kernels that serves the shape."""
    arguments = drawn(shape, device)
    upstream = arguments["grad_BTHK"]
    kernels = {}
    for allows_cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(allows_cudnn)
        kernels.setdefault(flash.stock_kernel(upstream, upstream, is_causal=shape.is_causal), allows_cudnn)
    for kernel, allows_cudnn in kernels.items():
        torch.backends.cuda.enable_cudnn_sdp(allows_cudnn)
        for impl in flash.KEEPS_OUTPUT:
            candidate = partial(called, partial(gated_attention, impl=impl), shape)
            if compiled:
                # Compiled code keeps the kernel that it was compiled with.
                torch.compiler.reset()
                candidate = torch.compile(candidate, fullgraph=True)
            reference = partial(called, partial(gated_attention, impl="reference"), shape)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    verdicts = check(candidate, reference, arguments)
                except Exception as error:
                    yield False, f"FAIL {kernel:5} {impl:10} {shape.name}: {type(error).__name__}: {error}"
                    continue
            closest = max(verdicts, key=lambda v: math.inf if math.isnan(v.error) else v.error / v.allowed)
            sentences = {str(w.message).splitlines()[0] for w in told if "grad" in str(w.message)}
            holds = all(v.holds for v in verdicts) and not sentences
            nearest = f"{closest.tensor} {closest.error:.1e} of {closest.allowed:.1e}"
            word = f"{'PASS' if holds else 'FAIL'} {kernel:5} {impl:10} {shape.name}{' compiled' if compiled else ''}"
            yield holds, f"{word}: {nearest} {' '.join(sentences)}".rstrip()
    torch.backends.cuda.enable_cudnn_sdp(True)


def main() -> int:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    given = parser.parse_args()
    device, start, n_failed = "cpu" if given.quick else "cuda", time.perf_counter(), 0
    shapes = QUICK if given.quick else SHAPES
    for shape, compiled in [*((s, False) for s in shapes), *([(shapes[0], True)] if given.compiled else [])]:
        for holds, line in lines(shape, device, compiled=compiled):
            n_failed += not holds
            print(line, flush=True)
    print(f"{n_failed} failed, {time.perf_counter() - start:.1f} s, torch {torch.__version__}")
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
