"""Attention and its log-sum-exp from torch's fused kernels, both differentiable: what slots and gates on the lse need.

Notable: torch's kernels return the log-sum-exp and take no gradient for it. With D the row sums of dO ∘ O, the gradient
of the logits is dS = P ∘ (dO Vᵀ − (D − dlse)), and the kernels form D from dO and O: two more channels, 1 and 1 in dO
and −dlse in two pieces in O, turn D into D − dlse, while those channels of V are 0 and leave dO Vᵀ as it is. In two
pieces, since bfloat16 would keep 8 bits of one. So the backward pass is the stock kernel on K + 8 channels, and on K where
the lse is only read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import aligned

aten = torch.ops.aten


def attention_with_lse(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, *, bias_BHTS: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(scale · q kᵀ + bias) v, [B, H, T, K] in q's type, and its log-sum-exp, [B, H, T, 1] in float32 (float64
    stays); both differentiable once.

    Args:
        q_BHTK, k_BHSK, v_BHSK: H heads each; on CPUs without a bias k and v may have G that divide H. Every query must see a
            key.
        bias_BHTS: added to the logits, −∞ where a key is hidden; 1 or the size on each of B and H.
        is_causal: only with as many queries as keys, and without a bias.

    A bias that is learned has no fused backward on CPUs: there the whole matrix is built, as torch itself does.
    """
    # Autocast leaves what a norm made in float32, and knows nothing of the op below.
    k_BHSK, v_BHSK = k_BHSK.to(q_BHTK.dtype), v_BHSK.to(q_BHTK.dtype)
    if not is_fused(q_BHTK, bias_BHTS):
        return _whole_matrix(q_BHTK, k_BHSK, v_BHSK, bias_BHTS, is_causal, scale)
    y_BHTK, lse_BHT, _, _ = _attention(q_BHTK, k_BHSK, v_BHSK, bias_BHTS, is_causal, scale)
    return y_BHTK, lse_BHT[:, :, : q_BHTK.shape[2], None]


def is_fused(q_BHTK: Tensor, bias_BHTS: Tensor | None) -> bool:
    """Whether `attention_with_lse` takes a kernel, and not the whole matrix in float32."""
    device, is_learned = q_BHTK.device.type, bias_BHTS is not None and bias_BHTS.requires_grad
    return device in ("cpu", "cuda") and not (device == "cpu" and is_learned) and q_BHTK.numel() > 0


def cudnn_overflows(n_keys: int, *, is_bare_causal: bool) -> bool:
    """Whether cuDNN's backward pass may give a gradient of q that is not a number, with inputs and output that are.

    Its tiles come in pairs of 64 keys, and the half of a pair that no key fills counts as keys of logit 0: exp(0 − lse) is
    infinite where a row's log-sum-exp is below −88.7, −ln of the largest float32. So of lengths that leave 64 of 128, unless
    causality alone, no mask, hides what lies behind the last key. pytorch issue 196678 names masks; it is so without one too:
    an encoder's layer of 64 keys on an H200, whose lowest row stood at −88.97.
    """
    return n_keys % 128 == 64 and not is_bare_causal


def pieces(values: Tensor, dtype: torch.dtype, n: int) -> list[Tensor]:
    """n tensors of a type that sum to float32 values, 8 bits of each; only the first takes part in differentiation.

    By masking bits: compilers leave out the rounding of a value that they hold in float32 anyway.
    """
    if dtype.itemsize >= 4:
        return [values.to(dtype), *[torch.zeros_like(values, dtype=dtype)] * (n - 1)]
    rest, out = values.detach(), []
    for _ in range(n - 1):
        out.append((rest.view(torch.int32) & -0x10000).view(torch.float32))
        rest = rest - out[-1]
    out = [*out, rest]
    out[0] = out[0] + (values - values.detach())
    return [piece.to(dtype) for piece in out]


@torch.library.custom_op("gatelab::attention_with_lse", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, its log-sum-exp of at least T queries, and two tensors that CUDA's backward kernels ask for (else empty)."""
    return _forward(q, k, v, bias, is_causal, scale)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    K = q.shape[-1]
    q, k, v = (_readable(t, -K % 8) for t in (q, k, v))
    kernel = _kernel(q, bias)
    if kernel == "cpu":
        y, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, attn_mask=bias, scale=scale)
        random = lse.new_empty(0), lse.new_empty(0)
    elif kernel == "flash":
        y, lse, *_, seed, offset, _ = aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, is_causal, False, scale=scale
        )
        random = seed, offset
    else:
        y, lse, *random = aten._scaled_dot_product_efficient_attention(
            q, k, v, _whole_rows(bias, q, k), True, 0.0, is_causal, scale=scale
        )
    return y[..., :K], lse, *random


# The kernels know their own shapes and strides.
_attention.register_fake(_forward)


def _keep(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.is_causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    # A gradient that does not come is None, not zeros: it costs channels.
    ctx.set_materialize_grads(False)


def _backward(ctx, dy: Tensor | None, dlse: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    q, k, v, bias, y, lse, seed, offset = ctx.saved_tensors
    T, K = q.shape[2:]
    n, kernel = -K % 8, _kernel(q, bias)
    dy = torch.zeros_like(y) if dy is None else dy
    if dlse is not None:
        minus = torch.stack(pieces(-dlse[..., :T], q.dtype, 2), dim=-1)
        y, dy, n = torch.cat([y, minus], dim=-1), torch.cat([dy, torch.ones_like(minus)], dim=-1), n + 8
    y, dy = (_by_position(_padded(t, K + n - t.shape[-1])) for t in (y, dy))
    q, k, v = (_readable(t, n) for t in (q, k, v))
    dbias = None
    if kernel == "cpu":
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dy, q, k, v, y, lse, 0.0, ctx.is_causal, attn_mask=bias, scale=ctx.scale
        )
    elif kernel == "flash":
        lengths = (None, None, T, k.shape[2])
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
            dy, q, k, v, y, lse, *lengths, 0.0, ctx.is_causal, seed, offset, scale=ctx.scale
        )
    else:
        wanted = [True, True, True, ctx.needs_input_grad[3]]
        dq, dk, dv, dbias = aten._scaled_dot_product_efficient_attention_backward(
            dy, q, k, v, _whole_rows(bias, q, k), y, lse, seed, offset, 0.0, wanted, ctx.is_causal, scale=ctx.scale
        )
        dbias = dbias.sum_to_size(bias.shape).to(bias.dtype) if wanted[3] else None
    return dq[..., :K], dk[..., :K], dv[..., :K], dbias, None, None


_attention.register_autograd(_backward, setup_context=_keep)


def _kernel(q: Tensor, bias: Tensor | None) -> str:
    if q.device.type == "cpu":
        return "cpu"
    # The widest flash kernel has 256 channels, and the backward pass takes 8 to 15 more than q has.
    is_flash = bias is None and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 240
    return "flash" if is_flash else "efficient"


def _whole_rows(bias: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The bias in q's type and whole shape, its rows a multiple of 16 apart in memory, as the kernel wants them."""
    if bias is None:
        return None
    B, H, T, _ = q.shape
    S = k.shape[2]
    rows = F.pad(bias.to(q.dtype).expand(-1, -1, T, S), (0, -S % 16))
    return rows[..., :S].expand(B, H, T, S)


def _by_position(t: Tensor) -> Tensor:
    """[B, H, T, K] with the heads of a position side by side in memory, as CUDA's backward kernel takes for granted."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def _readable(t: Tensor, n: int) -> Tensor:
    """[B, H, T, K + n], the channels that come zeros, in rows that the kernels can read; a copy has the heads of a position
    side by side."""
    return aligned(_padded(t, n).transpose(1, 2)).transpose(1, 2)


def _padded(t: Tensor, n: int) -> Tensor:
    """n channels of zeros at the end."""
    return F.pad(t, (0, n)) if n else t


def _whole_matrix(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    logits_BHTS = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * scale
    if bias is not None:
        logits_BHTS = logits_BHTS + bias.to(wide)
    if is_causal:
        hidden = torch.ones(logits_BHTS.shape[-2:], dtype=torch.bool, device=q.device).triu(diagonal=1)
        logits_BHTS = logits_BHTS.masked_fill(hidden, float("-inf"))
    y_BHTK = (logits_BHTS.softmax(dim=-1) @ v.to(wide)).to(q.dtype)
    return y_BHTK, logits_BHTS.logsumexp(dim=-1, keepdim=True)
