"""A chunk of tokens at a time: its logits become its loss, then, in place, their own gradient, and are forgotten.

Notable: since a model's loss is one number, what the backward pass would multiply its gradients by is one number too.
They can therefore be made in the forward pass, while the logits are there, and multiplied when that number comes: no
logits are kept and none are computed twice (as Liger's kernels do, arXiv 2410.10989). What is kept instead are the
gradients of x, in its type, and of the weight: M·V·D·4 bytes, summed in float32 whatever the weight's type, and once more
that while the backward pass multiplies them. Beyond these a forward pass holds one chunk, and the weight in x's type.
On CPUs a chunk narrower than float32 is there three times, since its products are float32.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

# Asked once: a compiler cannot follow the question.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
# Logits of one chunk of all M models. Each chunk reads and writes the weight's whole gradient in float32, which on a GPU takes
# as long as 340 tokens' products: chunks of thousands.
_CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
# Matrix products on a GPU waste no tile of a chunk of this many tokens.
_EVEN = 128


def obstacle(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why this cannot run here, or None."""
    if _has_kernel(dtype, device) and not _HAS_TRITON:
        return "on CUDA it needs triton, which is not installed"
    return None


def linear_cross_entropy(
    x_MND: Tensor, weight_MVD: Tensor, targets_MN: Tensor, *, ignored: int = -100, chunk: int | None = None
) -> Tensor:
    """Same function as the reference; see `gatelab.ops.linear_cross_entropy.linear_cross_entropy`.

    Gradients are computed only of what needs one. `chunk`: tokens a chunk; None takes what `chunk_of` says.
    """
    wanted = [torch.is_grad_enabled() and t.requires_grad for t in (x_MND, weight_MVD)]
    return _loss(x_MND, weight_MVD, targets_MN, ignored, chunk, *wanted)[0]


def chunk_of(M: int, N: int, V: int, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens of each model in a chunk: as equal as whole tiles allow, of `_CHUNK_BYTES` together."""
    n_chunks = -(-M * N * V * dtype.itemsize // _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cpu"]))
    chunk = max(1, -(-N // max(1, n_chunks)))
    return chunk if n_chunks < 2 or device.type != "cuda" else -(-chunk // _EVEN) * _EVEN


@torch.library.custom_op("gatelab::linear_cross_entropy", mutates_args=())
def _loss(
    x: Tensor, weight: Tensor, targets: Tensor, ignored: int, chunk: int | None, wants_dx: bool, wants_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each model, and its gradients by x and by the weight (of no elements where not wanted)."""
    (M, N, _), V = x.shape, weight.shape[1]
    chunk = chunk_of(M, N, V, x.dtype, x.device) if chunk is None else chunk
    wide = torch.promote_types(x.dtype, torch.float32)
    loss_MN = x.new_empty(M, N, dtype=wide)
    dx_MND = x.new_empty(x.shape if wants_dx else 0)
    dweight_MVD = x.new_zeros(weight.shape if wants_dweight else 0, dtype=wide)
    compute_weight = weight.to(x.dtype)
    # The type to compute in is x's; autocast would take another.
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, N, chunk):
            part = slice(start, start + chunk)
            # In a function, so that a chunk's logits are gone when the next are made.
            loss_MN[:, part] = _turn(
                x[:, part], compute_weight, targets[:, part], ignored,
                dx_MND[:, part] if wants_dx else None, dweight_MVD if wants_dweight else None,
            )  # fmt: skip
    return loss_MN.sum(dim=1), dx_MND, dweight_MVD.to(weight.dtype)


@_loss.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, ignored: int, chunk: int | None, wants_dx: bool, wants_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss_M = x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    return loss_M, x.new_empty(x.shape if wants_dx else 0), weight.new_empty(weight.shape if wants_dweight else 0)


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    gradients = output[1:]
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients)


def _backward(ctx, dloss_M: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "create_graph=True: the gradients of the chunked linear_cross_entropy have no graph; take impl='reference'"
        )
    if dloss_M is None:
        return (None,) * 7
    dx_MND, dweight_MVD = (
        # Into their own type at once: upstream numbers such as 1/N, rounded to bfloat16, would be wrong for all alike.
        torch.mul(gradient, dloss_M[:, None, None], out=torch.empty_like(gradient)) if is_needed else None
        for gradient, is_needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:2], strict=True)
    )
    return dx_MND, dweight_MVD, None, None, None, None, None


_loss.register_autograd(_backward, setup_context=_keep)


def _turn(
    x_MND: Tensor, weight_MVD: Tensor, targets_MN: Tensor, ignored: int, dx_MND: Tensor | None, dweight_MVD: Tensor | None
) -> Tensor:  # fmt: skip
    """The loss of every token of a chunk, [M, N]; writes the chunk's dx, and adds to dweight, where they are given."""
    logits_MNV = torch.bmm(x_MND, weight_MVD.mT)
    is_turned = dx_MND is not None or dweight_MVD is not None
    loss_N = _softmax_work(logits_MNV)(
        logits_MNV.flatten(0, 1), targets_MN.flatten(), ignored=ignored, is_turned=is_turned
    )
    if dx_MND is not None:
        torch.bmm(logits_MNV, weight_MVD, out=dx_MND)
    if dweight_MVD is not None:
        _add_product(dweight_MVD, logits_MNV.mT, x_MND)
    return loss_N.view(targets_MN.shape)


def cross_entropy_(logits_NV: Tensor, targets_N: Tensor, *, ignored: int, is_turned: bool) -> Tensor:
    """The loss of every row, [N] in float32 (float64 stays); where `is_turned` the logits become softmax − one-hot, zeros
    in ignored rows, rounded once to their type; else they are used up."""
    counts_N1 = (targets_N != ignored)[:, None]
    index_N1 = targets_N[:, None].where(counts_N1, 0)
    work_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    work_NV.sub_(work_NV.amax(dim=1, keepdim=True))
    own_N1 = work_NV.gather(1, index_N1)
    total_N1 = work_NV.exp_().sum(dim=1, keepdim=True)
    loss_N1 = (total_N1.log() - own_N1).where(counts_N1, 0)
    if is_turned:
        work_NV.div_(total_N1).scatter_add_(1, index_N1, torch.full_like(total_N1, -1))
        logits_NV.copy_(work_NV.masked_fill_(~counts_N1, 0))
    return loss_N1.squeeze(1)


def _softmax_work(logits: Tensor) -> Callable[..., Tensor]:
    if not _has_kernel(logits.dtype, logits.device):
        return cross_entropy_
    from . import kernels

    return kernels.cross_entropy_


def _has_kernel(dtype: torch.dtype, device: torch.device) -> bool:
    # The kernel computes in float32.
    return device.type == "cuda" and dtype != torch.float64


def _add_product(sum_MVD: Tensor, a_MVN: Tensor, b_MND: Tensor) -> None:
    if a_MVN.dtype != sum_MVD.dtype and sum_MVD.is_cuda:
        torch.baddbmm(sum_MVD, a_MVN, b_MND, out_dtype=sum_MVD.dtype, out=sum_MVD)
    else:
        # CPUs have no product that leaves its sums in float32.
        sum_MVD.baddbmm_(a_MVN.to(sum_MVD.dtype), b_MND.to(sum_MVD.dtype))
