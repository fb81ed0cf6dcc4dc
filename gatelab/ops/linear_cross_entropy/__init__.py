"""The head and its cross-entropy as one function of the hidden state, so that no one need hold the logits. The public
function checks its inputs and calls the implementation that was named."""

import torch
from torch import Tensor

from . import chunked, reference

IMPLEMENTATIONS = {"reference": reference.linear_cross_entropy, "chunked": chunked.linear_cross_entropy}

# Bytes of logits from which `auto` does not hold them, by device.
_HELD_BELOW = {"cpu": 32 * 2**20, "cuda": 32 * 2**20}


def choose(impl: str, *, n_logits: int, dtype: torch.dtype, device: torch.device) -> str:
    """The implementation that `auto` means for M·N·V logits; callers store the name with their results.

    `auto` is `reference` while the logits are small (`_HELD_BELOW`) and `chunked` above, where that can run. On one CPU
    thread (AMD EPYC, torch 2.13; forward and backward, medians of 5) `chunked` took 0.7 of the reference's time at 32 to
    128 MB of float32 logits, 0.8 at 8 MB; of bfloat16 0.9 at 16 MB, and 1.5 to 1.7 at 4 MB.

    Raises:
        ValueError: for a name that does not exist, or `chunked` where it cannot run.
    """
    if impl not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"impl={impl!r}: expected one of auto, {', '.join(IMPLEMENTATIONS)}")
    if impl == "reference":
        return impl
    obstacle = chunked.obstacle(dtype, device)
    if impl == "auto":
        is_held = n_logits * dtype.itemsize < _HELD_BELOW.get(device.type, _HELD_BELOW["cpu"])
        return "reference" if is_held or obstacle is not None else "chunked"
    if obstacle is not None:
        raise ValueError(f"impl='chunked': {obstacle}; or take impl='reference'")
    return impl


def linear_cross_entropy(
    x_MND: Tensor, weight_MVD: Tensor, targets_MN: Tensor, *, ignored: int = -100, impl: str = "auto"
) -> Tensor:
    """loss_m = Σ over the targets t of model m of −ln softmax(W_m x)_t in nats, [M] in float32 (float64 stays).

    Differentiable once in x and the weight. Rounding rule: logits and their gradients are rounded to x's type, the
    softmax between them is taken in float32. The gradient of a float32 weight is float32 from `chunked`; from
    `reference` it has been rounded to x's type.

    Args:
        x_MND: hidden states of M stacked models, N tokens each, in the type to compute in; need not be contiguous.
        weight_MVD: a head a model, in any floating type; it is cast to x's, as `gatelab.nn.linear.Linear` does.
        targets_MN: int64, in 0 … V − 1; those equal to `ignored` count nothing and give no gradient. Where they are half or
            more, as where answers alone are predicted, a CPU computes no logits for them; a GPU, whose shapes must stay, does.
        impl: `reference`, `chunked` or `auto`; never replaced silently.

    Raises:
        ValueError: shapes or types that do not fit, an unknown implementation, one that cannot run here, and on a CPU
            targets out of range. A GPU is not made to wait for that check: there `chunked` makes such a loss
            not-a-number, and `reference` stops at torch's own assertion. Neither looks inside torch.compile, which
            cannot branch on values.
    """
    if not _fits(x_MND, weight_MVD, targets_MN):
        shapes = ", ".join(str(tuple(t.shape)) for t in (x_MND, weight_MVD, targets_MN))
        raise ValueError(f"x, weight, targets of shapes {shapes}: expected [M,N,D], [M,V,D], [M,N] with V ≥ 1")
    types = (x_MND.dtype, weight_MVD.dtype, targets_MN.dtype)
    if not x_MND.is_floating_point() or not weight_MVD.is_floating_point() or targets_MN.dtype != torch.int64:
        given = ", ".join(str(t).removeprefix("torch.") for t in types)
        raise ValueError(
            f"x, weight, targets of types {given}: convert x and weight to floating types and the targets to int64"
        )
    V = weight_MVD.shape[1]
    if targets_MN.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(targets_MN, V, ignored)
        x_MND, targets_MN = _counted(x_MND, targets_MN, ignored)
    name = choose(impl, n_logits=targets_MN.numel() * V, dtype=x_MND.dtype, device=x_MND.device)
    return IMPLEMENTATIONS[name](x_MND, weight_MVD, targets_MN, ignored=ignored)


def _fits(x_MND: Tensor, weight_MVD: Tensor, targets_MN: Tensor) -> bool:
    if x_MND.dim() != 3 or weight_MVD.dim() != 3 or targets_MN.shape != x_MND.shape[:2]:
        return False
    (M, _, D), V = x_MND.shape, weight_MVD.shape[1]
    return V >= 1 and weight_MVD.shape == (M, V, D)


def _counted(x_MND: Tensor, targets_MN: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """The tokens that count of each model, in their order, and as many others as fill the shorter models up; all of them where
    more than half count."""
    counts_MN = targets_MN != ignored
    n_rows = max(int(counts_MN.sum(dim=1).max()), 1) if counts_MN.numel() else 0
    if 2 * n_rows > targets_MN.shape[1]:
        return x_MND, targets_MN
    rows_MN = counts_MN.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :n_rows]
    return x_MND.take_along_dim(rows_MN.unsqueeze(-1), dim=1), targets_MN.gather(1, rows_MN)


def _check_range(targets_MN: Tensor, V: int, ignored: int) -> None:
    outside = targets_MN[((targets_MN < 0) | (targets_MN >= V)) & (targets_MN != ignored)]
    if outside.numel():
        raise ValueError(
            f"{outside.numel()} targets out of range, the first {outside[0].item()}: expected 0 … {V - 1}, or {ignored} "
            "where a token does not count"
        )


__all__ = ["IMPLEMENTATIONS", "choose", "linear_cross_entropy"]
