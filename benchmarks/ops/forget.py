"""What a forget gate's exact gradients are worth and what they cost: errors against float64, and time there and back.

    python benchmarks/ops/forget.py [--rounds 9] [--tokens 256 1024 2048 4096] [--device cpu]

bfloat16, causal. "forget": as `sdpa` trains it; "channels alone": the gradients that the fused kernel gives, as without
`gatelab.ops.gated_attention.forget`; "plain path": the whole matrix (`reference`). Errors are ‖g − g₆₄‖ / ‖g₆₄‖ of one draw, a
bias's of four. All ways of a length take turns in every round, and ratios are of one round. Markdown to the terminal.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
from torch import Tensor

from gatelab.nn.attention import GatedAttention
from gatelab.ops.gated_attention import forget, gated_attention, sdpa
from gatelab.ops.gated_attention.cases import Case, inputs

FORGET = "scores-headwise-forget"
# With heads of 64 channels nothing but `forget` depends on the type being a low one.
CHANNELS_ALONE = partial(patch.object, sdpa, "LOW_PRECISION", ())
WAYS: dict[str, tuple[str, Callable[[], AbstractContextManager[Any]]]] = {
    "forget": ("sdpa", nullcontext),
    "channels alone": ("sdpa", CHANNELS_ALONE),
    "plain path": ("reference", nullcontext),
}
NAMES = {"d scores": "score_logits_BSH", "d q": "q_BTHK", "d k": "k_BSGK"}


def gradients(arguments: dict[str, Any], dtype: torch.dtype, impl: str) -> dict[str, Tensor]:
    """Of what is learned, in float64, after a pass in `dtype`."""
    own = {
        name: t.detach().to(dtype).requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t
        for name, t in arguments.items()
    }
    grad_BTHK = own.pop("grad_BTHK")
    gated_attention(**own, impl=impl).backward(grad_BTHK)
    return {short: own[name].grad.double() for short, name in NAMES.items()}


def bias_gradient(n_tokens: int, dtype: torch.dtype, impl: str, device: str) -> Tensor:
    """Of the bias of a layer's forget gate, in float64, in four draws."""
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        layer = GatedAttention(d_model=128, n_heads=2, gate="forgetting-transformer", impl=impl)
        layer.bfloat16().to(device, dtype)
        x_BTD, grad_BTD = (torch.randn(1, n_tokens, 128).bfloat16().to(device, dtype) for _ in range(2))
        layer(x_BTD).backward(grad_BTD)
        found.append(layer.gates["scores"].g_proj.bias.grad.double())
    return torch.stack(found)


def error(found: Tensor, truth: Tensor) -> str:
    return f"{100 * ((found - truth).norm() / truth.norm()).item():.2f}"


def errors(lengths: list[int], device: str) -> None:
    """Of an open gate (logits around 0) and one that forgets (around −6); then of a layer's bias."""
    print("| T | logits around | of | " + " | ".join(f"{way}, %" for way in WAYS) + " |")
    print("|" + "---|" * (3 + len(WAYS)))
    for n_tokens in lengths:
        for mean in (0.0, -6.0):
            case = Case("errors", B=1, T=n_tokens, H=2, G=2, K=64, scores=FORGET, scores_mean=mean)
            arguments = inputs(case, seed=0, dtype=torch.bfloat16, device=device)
            truth, found = gradients(arguments, torch.float64, "sdpa"), {}
            for way, (impl, context) in WAYS.items():
                with context():
                    found[way] = gradients(arguments, torch.bfloat16, impl)
            for name in NAMES:
                of_each = " | ".join(error(found[way][name], truth[name]) for way in WAYS)
                print(f"| {n_tokens} | {mean:g} | {name} | {of_each} |", flush=True)
        truth, of_each = bias_gradient(n_tokens, torch.float64, "sdpa", device), []
        for impl, context in WAYS.values():
            with context():
                of_each.append(error(bias_gradient(n_tokens, torch.bfloat16, impl, device), truth))
        print(f"| {n_tokens} | 0 | d bias of a layer | {' | '.join(of_each)} |", flush=True)


def seconds(arguments: dict[str, Any], context: Callable[[], AbstractContextManager[Any]]) -> float:
    """Of one pass there and back through `sdpa`."""
    for t in arguments.values():
        if isinstance(t, Tensor):
            t.grad = None
    own = arguments.copy()
    grad_BTHK = own.pop("grad_BTHK")
    is_cuda = grad_BTHK.is_cuda
    if is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    with context():
        gated_attention(**own, impl="sdpa").backward(grad_BTHK)
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def times(lengths: list[int], n_rounds: int, device: str) -> None:
    """Medians, and the first to third quartile of the ratios; and what the float32 blocks take, by formula."""
    print("\n| T | no gate, ms | channels alone, ms | forget, ms | channels alone / no gate | forget / no gate |"
          " forget / channels alone | float32 blocks and copies, MiB |")  # fmt: skip
    print("|" + "---|" * 8)
    for n_tokens in lengths:
        shape = {"B": 1, "T": n_tokens, "H": 4, "G": 4, "K": 64}
        plain, gated = (
            inputs(Case("times", **shape, scores=scores), seed=0, dtype=torch.bfloat16, device=device)
            for scores in (None, FORGET)
        )
        ways = {
            "no gate": (plain, nullcontext),
            "channels alone": (gated, CHANNELS_ALONE),
            "forget": (gated, nullcontext),
        }
        of: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(n_rounds + 1):
            for way, asked in ways.items():
                taken = seconds(*asked)
                if turn:
                    of[way].append(taken)
        medians = [f"{1e3 * statistics.median(of[way]):.1f}" for way in ways]
        pairs = (("channels alone", "no gate"), ("forget", "no gate"), ("forget", "channels alone"))
        ratios = []
        for way, base in pairs:
            low, middle, high = statistics.quantiles([a / b for a, b in zip(of[way], of[base], strict=True)], n=4)
            ratios.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        print(f"| {n_tokens} | {' | '.join(medians + ratios)} | {mebibytes(n_tokens, device):.1f} |", flush=True)


def mebibytes(n_tokens: int, device: str, n_heads: int = 4, head_dim: int = 64) -> float:
    """Of P and dO Vᵀ of a block, and of q, k, v and dO with the bias's 8 channels, of one sequence."""
    rows = min(n_tokens, max(1, forget._BLOCKS.get(device, forget._BLOCK) // (n_heads * n_tokens)))
    blocks, copies = 2 * n_heads * rows * n_tokens, 4 * n_heads * n_tokens * (head_dim + 8)
    return 4 * (blocks + copies) / 2**20


def main() -> None:
    """Prints what was measured where, and both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 2048, 4096])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(
        f"{arguments.device}, torch {torch.__version__}, {torch.get_num_threads()} thread, {arguments.rounds} rounds\n"
    )
    errors(arguments.tokens, arguments.device)
    times(arguments.tokens, arguments.rounds, arguments.device)


if __name__ == "__main__":
    main()
