"""Through torch's fused attention; slots, gates on the log-sum-exp and the output's gate follow on its result.

Notable: a slot is a gate σ(lse − s), so no kernel sees it; a gate on the scores is one number a key, which scales the
values or enters the product q·k as more channels, so it costs no T×S bias. The channels of a forget gate hold c_i and
−c_j, whose gradients the kernels round before they are summed over positions: in a low precision these come from
`forget` instead, and with them what the kernels' gradients of q and k lack. Without a slot, a gate on the lse or a forget
gate that learns so this is `F.scaled_dot_product_attention` and nothing else.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import Normaliser
from ..gate_apply import apply_gate
from .call import LOW_PRECISION, Call
from .forget import with_exact_sums
from .fused import attention_with_lse, cudnn_overflows, is_fused, pieces
from .rows import aligned
from .scoring import Scoring, key_bias, key_scale, visible


def unserved(normaliser: Normaliser, call: Call | None = None) -> str | None:
    """Why `sdpa` does not serve a call, to follow its name in a sentence; None where it does. Without a call, as far as the
    normaliser decides it. Torch's attention drops weights, and its kernel that gives the log-sum-exp does not."""
    if not normaliser.is_softmax:
        return f"computes a softmax, and {normaliser.kind} is none"
    if call is not None and call.softcap is not None:
        return f"caps no logits, and softcap={call.softcap} came"
    if call is None or not call.dropout:
        return None
    if normaliser.has_slot or (call.gate is not None and call.gate.source == "lse") or "score_gate" in call.extras:
        return f"reads the log-sum-exp or gates the scores here, and dropout={call.dropout} came"
    is_bare = call.is_causal and call.n_queries == call.n_keys and call.window is None and not call.extras
    is_low = call.dtypes[0] in LOW_PRECISION or torch.is_autocast_enabled("cuda")
    is_trained = call.device.type == "cuda" and is_low and call.has_gradients
    if is_trained and (call.n_queries == 1 or cudnn_overflows(call.n_keys, is_bare_causal=is_bare)):
        return f"avoids torch's own choice of kernels for {call.n_keys} keys, and dropout={call.dropout} came"
    return None


def gated_attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None,
    gate: GateSpec | None,
    s: Scoring,
) -> Tensor:
    """Same function as the reference, for normalisers that are a softmax; see `gatelab.ops.gated_attention`."""
    return _attend(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, gate, s, reads_lse=False)[0]


def gated_attention_and_lse(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None,
    gate: GateSpec | None,
    s: Scoring,
) -> tuple[Tensor, Tensor]:
    """`gated_attention`, and ln of each row's denominator, the slot's share in it, [B, H, T] in float32 (float64 stays) and
    without gradient. It costs nothing beside a slot or a gate on the lse, and else takes the kernel that gives the lse in
    the place of torch's own choice."""
    y_BTHK, lse_BHT1 = _attend(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, gate, s, reads_lse=True)
    lse_BHT1, slot_BHT1 = lse_BHT1.detach(), s.normaliser.slot_logits(q_BTHK.detach(), s.learned)
    if slot_BHT1 is not None:
        lse_BHT1 = torch.logaddexp(lse_BHT1, slot_BHT1.detach())
    return y_BTHK, lse_BHT1.squeeze(-1)


def _attend(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None,
    gate: GateSpec | None,
    s: Scoring,
    *,
    reads_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gated output, and the log-sum-exp over the keys [B, H, T, 1] where it is read, here or by the caller."""
    T, H, K = q_BTHK.shape[1:]
    S, scale = k_BSGK.shape[1], 1 / math.sqrt(K)
    slot_BHT1 = s.normaliser.slot_logits(q_BTHK, s.learned)
    scale_BSH = key_scale(s.score_logits_BSH, s.score_gate)
    if scale_BSH is not None:
        v_BSGK = (_repeated(v_BSGK, H) * scale_BSH[..., None]).to(v_BSGK.dtype)
        k_BSGK = _repeated(k_BSGK, H)
    bias_BSH = key_bias(s.score_logits_BSH, s.score_gate)
    is_stock = slot_BHT1 is None and (gate is None or gate.source != "lse")
    needs_sums = False
    if bias_BSH is not None:
        if is_stock and torch.is_autocast_enabled(q_BTHK.device.type):
            # Before the pieces are made, since torch's attention would round each number of the bias to one.
            low = torch.get_autocast_dtype(q_BTHK.device.type)
            q_BTHK, k_BSGK, v_BSGK = (t.to(low) for t in (q_BTHK, k_BSGK, v_BSGK))
        is_forget = s.score_gate.form == "forget"
        needs_sums = is_forget and bias_BSH.requires_grad and q_BTHK.dtype in LOW_PRECISION
        if q_BTHK.dtype not in LOW_PRECISION:
            # Long sums times a power of 2 keep their bits.
            power = 2.0 ** round(math.log2(scale))
            q_BTHK, scale = q_BTHK * (scale / power), power
        key_BSH = bias_BSH.detach() if needs_sums else bias_BSH
        if is_forget:
            # Counted from a query in the middle: the two sums that a dot product takes from each other are then shorter, and
            # so is what it rounds. Nothing depends on where they are counted from.
            key_BSH = key_BSH - key_BSH[:, S - 1 - T // 2 : S - T // 2].detach()
        own_BTH = key_BSH[:, S - T :] if is_forget else torch.zeros_like(key_BSH[:, :1])
        q_BTHK, k_BSGK, v_BSGK = _with_bias(q_BTHK, k_BSGK, v_BSGK, -own_BTH / scale, key_BSH / scale)
    q_BHTK, k_BGSK, v_BGSK = (aligned(t).transpose(1, 2) for t in (q_BTHK, k_BSGK, v_BSGK))
    mask_BHTS, is_causal = _mask(q_BTHK, S, s)

    lse_BHT1: Tensor | None = None
    is_trained = torch.is_grad_enabled() and any(t.requires_grad for t in (q_BTHK, k_BSGK, v_BSGK))
    if is_stock and not reads_lse and not needs_sums and not (is_trained and _avoids_cudnn(q_BTHK, S, is_causal)):
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            attn_mask=mask_BHTS,
            dropout_p=s.dropout,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=k_BGSK.shape[1] != H,
        )
    else:
        k_BHSK, v_BHSK = k_BGSK, v_BGSK
        device = q_BTHK.device.type
        if is_stock and torch.is_autocast_enabled(device):
            # Autocast rounds what enters torch's attention, and knows nothing of the op below.
            q_BHTK = q_BHTK.to(torch.get_autocast_dtype(device))
        # As torch does, so that the sums of gradients over a group keep their order, and so their bits.
        if not (is_stock and device == "cpu" and q_BTHK.numel()):
            k_BHSK, v_BHSK = _repeated(k_BGSK, H, dim=1), _repeated(v_BGSK, H, dim=1)
        added_BHTS = _added(mask_BHTS, q_BTHK.dtype)
        y_BHTK, lse_BHT1 = attention_with_lse(
            q_BHTK, k_BHSK, v_BHSK, bias_BHTS=added_BHTS, is_causal=is_causal, scale=scale
        )
        if needs_sums:
            y_BHTK, lse_BHT1 = with_exact_sums(
                y_BHTK,
                lse_BHT1,
                bias_BSH,
                (q_BHTK, k_BHSK, v_BHSK),
                mask_BHTS=mask_BHTS,
                scale=scale,
                is_fused=is_fused(q_BHTK, added_BHTS),
            )
    y_BTHK = y_BHTK.transpose(1, 2)
    if bias_BSH is not None:
        y_BTHK = y_BTHK[..., :K]  # without the channels of the bias
    if slot_BHT1 is not None:
        y_BTHK = (y_BTHK * (lse_BHT1 - slot_BHT1).sigmoid().transpose(1, 2)).to(y_BTHK.dtype)
    y_BTHK = s.normaliser.finish(y_BTHK, s.learned, s.heads)
    if gate is None:
        return y_BTHK, lse_BHT1
    if gate.source == "lse":
        gate_logits_BTHK = gate_logits_BTHK + lse_BHT1.transpose(1, 2)
    return apply_gate(y_BTHK, gate_logits_BTHK, gate), lse_BHT1


def _avoids_cudnn(q_BTHK: Tensor, n_keys: int, is_bare_causal: bool) -> bool:
    """Whether torch is not left to choose its kernel; the one that gives the log-sum-exp is never cuDNN's."""
    is_low = q_BTHK.dtype in LOW_PRECISION or torch.is_autocast_enabled("cuda")
    # One query alone: cudnn-frontend issue 1072, gradients of keys and values with 128 keys.
    is_alone = q_BTHK.shape[1] == 1
    return q_BTHK.is_cuda and is_low and (is_alone or cudnn_overflows(n_keys, is_bare_causal=is_bare_causal))


def _mask(q_BTHK: Tensor, n_keys: int, s: Scoring) -> tuple[Tensor | None, bool]:
    """What the kernel takes as its mask, boolean or added to the logits, and whether it hides later keys by itself."""
    n_queries, bias_BHTS = q_BTHK.shape[1], s.bias_BHTS
    if bias_BHTS is not None:
        bias_BHTS = bias_BHTS.to(q_BTHK.dtype)
    is_bare = s.window is None and s.mask_BTS is None
    # torch's causal mask is aligned to the first key, ours to the last: they agree only when T = S.
    if is_bare and bias_BHTS is None and s.is_causal and n_queries == n_keys:
        return None, True
    # Causality hides nothing from the last query.
    if is_bare and (not s.is_causal or n_queries == 1):
        return bias_BHTS, False
    allowed_B1TS = visible(
        n_queries, n_keys, is_causal=s.is_causal, window=s.window, mask_BTS=s.mask_BTS, device=q_BTHK.device
    )[:, None]
    return allowed_B1TS if bias_BHTS is None else bias_BHTS.masked_fill(~allowed_B1TS, -math.inf), False


def _with_bias(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, row_BTH: Tensor, column_BSH: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q·k + row + column as a product of 8 more channels, six of them in use; v has zeros there.

    Three pieces of bfloat16 hold the 24 bits of a float32, and the kernels sum products in float32. They come first: row and
    column are large where their sum is small, and would take q·k's last bits with them.
    """
    H = q_BTHK.shape[2]
    q_BTHK = torch.cat([_pieces(row_BTH, q_BTHK), q_BTHK.new_ones(*q_BTHK.shape[:3], 3), q_BTHK], dim=-1)
    k_BSHK = _repeated(k_BSGK, H)
    k_BSHK = torch.cat([k_BSHK.new_ones(*k_BSHK.shape[:3], 3), _pieces(column_BSH, k_BSHK), k_BSHK], dim=-1)
    return F.pad(q_BTHK, (2, 0)), F.pad(k_BSHK, (2, 0)), F.pad(_repeated(v_BSGK, H), (0, 8))


def _pieces(value_BTH: Tensor, like_BTHK: Tensor) -> Tensor:
    return torch.stack(pieces(value_BTH.expand(like_BTHK.shape[:3]), like_BTHK.dtype, 3), dim=-1)


def _repeated(t: Tensor, n_heads: int, *, dim: int = 2) -> Tensor:
    """Each kv head once a query head that reads it."""
    return t if t.shape[dim] == n_heads else t.repeat_interleave(n_heads // t.shape[dim], dim=dim)


def _added(mask_BHTS: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask as a bias of 0 and −∞; a bias as it is."""
    if mask_BHTS is None or mask_BHTS.dtype != torch.bool:
        return mask_BHTS
    return torch.zeros_like(mask_BHTS, dtype=dtype).masked_fill(~mask_BHTS, -math.inf)
