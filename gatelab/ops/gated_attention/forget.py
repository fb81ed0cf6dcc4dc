"""The gradient of a forget gate's sums, in float32, and what the fused kernels' other gradients lack in a low precision.

Notable: with b_j − b_i on the logits (b = −c, c the sums of log gates), db is the column sums of dS minus its row sums, and the
gate's gradient sums db from each token on: all but the queries after a token on the keys before it cancels. What is rounded
after dS was summed over queries does not: the kernels' gradients of channels are such sums, and add up like a random walk. So
dS is made again here in blocks of queries, from float32 throughout, and rows and columns are sums of the same numbers.

With dS = P ∘ (dO Vᵀ − D), the kernels take D from dO and the rounded output. A gate that forgets leaves rows of almost one key,
where dO Vᵀ − D is small and that rounding is most of it. D is exact here, and goes to the kernel as a gradient of the
log-sum-exp, which moves D. Not where a gate's logits do not learn, nor for a bias matrix as steep: both keep the kernel's D.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# Numbers of dS at once, over all heads. A CPU wants them in its caches (measured: 16 times as many take 1.4 to 1.7 times as long
# in all); a GPU has keys read again less often, and 128 MiB in float32.
_BLOCKS = {"cpu": 2**20}
_BLOCK = 2**25


def with_exact_sums(
    y_BHTK: Tensor,
    lse_BHT1: Tensor,
    bias_BSH: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    *,
    mask_BHTS: Tensor | None,
    scale: float,
    is_fused: bool,
) -> tuple[Tensor, Tensor]:
    """y and its log-sum-exp as they are, with the gradient of `bias_BSH`, b_j − b_i on the logit of key j and query i.

    Args:
        bias_BSH: b in float32; 1 in the place of H is for all heads.
        qkv: as they entered what made y, [B, H, T or S, K], b among their channels without a gradient to it. The T queries
            are the last of S tokens, and see none after theirs.
        mask_BHTS: what that took as its mask, boolean or added to the logits; None hides what comes after a query. A row
            without a key has weights of 0.
        is_fused: whether that was a kernel, whose D the gradient of `lse_BHT1` repairs.
    """
    B, H = y_BHTK.shape[:2]
    bias_BSH = bias_BSH.expand(B, -1, H)
    mask_BHTS = None if mask_BHTS is None else mask_BHTS.detach()
    return _ExactSums.apply(y_BHTK, lse_BHT1, bias_BSH, *(t.detach() for t in qkv), mask_BHTS, scale, is_fused)


class _ExactSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        y: Tensor,
        lse: Tensor,
        bias: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        is_fused: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(y, q, k, v, mask)
        ctx.scale, ctx.is_fused, ctx.bias_dtype = scale, is_fused, bias.dtype
        ctx.set_materialize_grads(False)
        return y.view_as(y), lse.view_as(lse)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        y, q, k, v, mask = ctx.saved_tensors
        dbias = None
        if dy is not None or dlse is not None:
            dbias, exact = _sums(torch.zeros_like(y) if dy is None else dy, dlse, q, k, v, mask, ctx.scale)
            dbias = dbias.to(ctx.bias_dtype)
            if dy is not None and ctx.is_fused:
                missing = (dy.float() * y.float()).sum(dim=-1, keepdim=True) - exact
                dlse = missing if dlse is None else dlse + missing
        return dy, dlse, dbias, None, None, None, None, None, None


@torch.library.custom_op("gatelab::forget_sums", mutates_args=())
def _sums(
    dy: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Column sums of dS minus row sums at each key's own query, [B, S, H], and D, the row sums of P ∘ dO Vᵀ, [B, H, T, 1];
    in float32. dS = P ∘ (dO Vᵀ − D + dlse)."""
    B, H, T, _ = q.shape
    S = k.shape[2]
    q, k, v, dy = (t.float() for t in (q, k, v, dy))
    mask = None if mask is None else mask.expand(-1, -1, T, S)
    out_BHS, exact_BHT1 = q.new_zeros(B, H, S), q.new_zeros(B, H, T, 1)
    n_rows = max(1, _BLOCKS.get(q.device.type, _BLOCK) // max(1, B * H * S))
    # A way back inside of autocast would round the products.
    with torch.autocast(q.device.type, enabled=False):
        for first in range(0, T, n_rows):
            rows, end = slice(first, min(first + n_rows, T)), S - T + min(first + n_rows, T)
            p = _weights(q[:, :, rows], k[:, :, :end], None if mask is None else mask[:, :, rows, :end], scale)
            ds = (dy[:, :, rows] @ v[:, :, :end].transpose(-1, -2)).mul_(p)
            exact_BHT1[:, :, rows] = shift = ds.sum(dim=-1, keepdim=True)
            ds.addcmul_(p, shift if dlse is None else shift - dlse[:, :, rows], value=-1)
            out_BHS[:, :, :end] += ds.sum(dim=-2)
            out_BHS[:, :, S - T + first : end] -= ds.sum(dim=-1)
    return out_BHS.transpose(1, 2).contiguous(), exact_BHT1


@_sums.register_fake
def _(
    dy: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    B, H, T, _ = q.shape
    return q.new_empty(B, k.shape[2], H, dtype=torch.float32), q.new_empty(B, H, T, 1, dtype=torch.float32)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The softmax of queries that end the keys; 0 in a row that the mask leaves no key."""
    logits = (q @ k.transpose(-1, -2)).mul_(scale)
    if mask is None:
        n, end = logits.shape[-2:]
        logits[..., end - n :].masked_fill_(torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1), float("-inf"))
        return logits.softmax(dim=-1)
    if mask.dtype == torch.bool:
        logits.masked_fill_(~mask, float("-inf"))
    else:
        logits += mask
        mask = mask > float("-inf")
    return logits.softmax(dim=-1).masked_fill_(~mask.any(dim=-1, keepdim=True), 0)
