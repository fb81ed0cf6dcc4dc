"""The gradient of a forget gate's sums, in float32: what the fused kernels cannot give in a low precision.

Notable: with b_j − b_i on the logits (b = −c, c the sums of log gates), db is the column sums of dS minus its row sums, and the
gate's gradient sums db from each token on: all but the queries after a token on the keys before it cancels. What is rounded
after dS was summed over queries does not: the kernels' gradients of channels are such sums, and add up like a random walk. So
dS is made again here in blocks of queries, and rows and columns are sums of the same numbers, whatever their own rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .fused import pieces

# Numbers of dS at once, over all heads. A CPU wants them in its caches (measured: 16 times as many take 1.4 to 1.7 times as long
# in all); a GPU has keys read again less often, and 128 MiB in float32.
_BLOCKS = {"cpu": 2**20}
_BLOCK = 2**25


def with_exact_sums(
    y_BHTK: Tensor,
    lse_BHT1: Tensor | None,
    bias_BSH: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    *,
    mask_BHTS: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """y and its log-sum-exp as they are, with the gradient of `bias_BSH`, b_j − b_i on the logit of key j and query i.

    Args:
        bias_BSH: b in float32; 1 in the place of H is for all heads.
        qkv: as they entered the kernel that made y, [B, H, T or S, K], b among their channels without a gradient to it, and
            two channels of zeros at v's end. The T queries are the last of S tokens, and see none after theirs.
        mask_BHTS: what that kernel took as its mask, boolean or added to the logits; None hides what comes after a query.
    """
    B, H = y_BHTK.shape[:2]
    bias_BSH = bias_BSH.expand(B, -1, H)
    mask_BHTS = None if mask_BHTS is None else mask_BHTS.detach()
    return _ExactSums.apply(y_BHTK, lse_BHT1, bias_BSH, *(t.detach() for t in qkv), mask_BHTS, scale)


class _ExactSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        y: Tensor,
        lse: Tensor | None,
        bias: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(y, q, k, v, mask)
        ctx.scale, ctx.bias_dtype = scale, bias.dtype
        ctx.set_materialize_grads(False)
        return y.view_as(y), None if lse is None else lse.view_as(lse)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        y, q, k, v, mask = ctx.saved_tensors
        dbias = None
        if dy is not None or dlse is not None:
            dbias = _sums(torch.zeros_like(y) if dy is None else dy, dlse, y, q, k, v, mask, ctx.scale)
            dbias = dbias.to(ctx.bias_dtype)
        return dy, dlse, dbias, None, None, None, None, None


@torch.library.custom_op("gatelab::forget_sums", mutates_args=())
def _sums(
    dy: Tensor, dlse: Tensor | None, y: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Column sums of dS minus row sums at each key's own query, [B, S, H] in float32.

    dS = P ∘ (dO Vᵀ − D + dlse), D the row sums of dO ∘ O; the last two enter the product in place of v's channels of zeros. An
    error of D is the same in rows and columns, and cancels where they do.
    """
    B, H, T, _ = q.shape
    S = k.shape[2]
    wide = torch.float32
    shift = -(dy.to(wide) * y.to(wide)).sum(dim=-1, keepdim=True)
    shift = shift if dlse is None else shift + dlse
    dy = torch.cat([dy[..., :-2], *pieces(shift, dy.dtype, 2)], dim=-1)
    v = F.pad(v[..., :-2], (0, 2), value=1.0)
    out_BHS = torch.zeros(B, H, S, dtype=wide, device=q.device)
    n_rows = max(1, _BLOCKS.get(q.device.type, _BLOCK) // max(1, B * H * S))
    for first in range(0, T, n_rows):
        rows, end = slice(first, min(first + n_rows, T)), S - T + min(first + n_rows, T)
        p = _weights(
            q[:, :, rows], k[:, :, :end], None if mask is None else mask.expand(-1, -1, T, S)[:, :, rows], scale
        )
        ds = p.mul_(dy[:, :, rows] @ v[:, :, :end].transpose(-1, -2))
        out_BHS[:, :, :end] += ds.sum(dim=-2)
        out_BHS[:, :, S - T + first : end] -= ds.sum(dim=-1)
    return out_BHS.transpose(1, 2).contiguous()


@_sums.register_fake
def _(
    dy: Tensor, dlse: Tensor | None, y: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    B, H = q.shape[:2]
    return q.new_empty(B, k.shape[2], H, dtype=torch.float32)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The softmax of queries that end the keys, in float32; products in their type, as on the plain path."""
    logits = (q @ k.transpose(-1, -2)).mul_(scale)
    n, end = logits.shape[-2:]
    if mask is None:
        logits[..., end - n :].masked_fill_(torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1), float("-inf"))
    elif mask.dtype == torch.bool:
        logits.masked_fill_(~mask[..., :end], float("-inf"))
    else:
        logits += mask[..., :end]
    return logits.softmax(dim=-1, dtype=torch.float32)
