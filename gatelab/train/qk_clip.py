"""QK-Clip: a head whose largest attention logit exceeded a threshold has its queries scaled down (Kimi K2, arXiv
2507.20534, section 2.1).

Notable: with grouped queries several heads read one key, so the queries take the whole factor and no other head is
touched. Logits are measured by hooks in the step's own forward passes, in blocks of queries: one more product q kᵀ a
layer and step, in float32, and no T×S matrix. What a relative position or a gate adds to a logit is not counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.attention import GatedAttention
from ..ops.gated_attention import visible
from .parallel import Ranks

# Bounds the memory of a look, not its result: so many float32 logits at a time (256 MiB).
_LOGITS = 2**26

LargestLogits = dict[GatedAttention, Tensor]


@contextmanager
def largest_logits(model: nn.Module) -> Iterator[LargestLogits]:
    """Watches the forward passes of an uncompiled model; afterwards the largest logit of each head, float32 [H], by layer.

    A logit is q·k/√K of a query and a key that it sees.
    """
    found: LargestLogits = {}
    handles: list[Any] = []
    try:
        for module in model.modules():
            if isinstance(module, GatedAttention):
                handles += _watch(module, found)
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def clip_queries(found: LargestLogits, threshold: float, ranks: Ranks, has_ended: Tensor | None = None) -> None:
    """Multiply the query weights (and biases) of each head whose largest logit is above the threshold by threshold /
    largest; the largest is that of all ranks. The weights of other heads keep every bit, and so do all where `has_ended`, a
    number on the device, is 1."""
    if not found:
        return
    largest_LH = torch.stack(list(found.values()))
    ranks.max_(largest_LH)
    is_above_LH = largest_LH > threshold
    if has_ended is not None:
        is_above_LH = is_above_LH & (has_ended == 0)
    factor_LH = torch.where(is_above_LH, threshold / largest_LH, 1.0)
    for attention, factor_H in zip(found, factor_LH, strict=True):
        for parameter in attention.q_proj.parameters():
            factor_R = factor_H.to(parameter.dtype).repeat_interleave(attention.head_dim)
            if hasattr(parameter, "device_mesh"):
                # Data ranks share the rows out. Imported here, since it takes seconds.
                from torch.distributed.tensor import distribute_tensor

                mesh, placements = parameter.device_mesh, parameter.placements
                factor_R = distribute_tensor(factor_R, mesh, placements, src_data_rank=None).to_local()
                parameter = parameter.to_local()
            parameter.mul_(factor_R.view(-1, *[1] * (parameter.dim() - 1)))


def _watch(attention: GatedAttention, found: LargestLogits) -> list[Any]:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    @torch.no_grad()
    def finish(_module: nn.Module, _args: Any, keywords: dict[str, Any], _output: Tensor) -> None:
        is_cross = keywords.get("is_cross", False) or keywords.get("context_BSD") is not None
        largest_H = _largest(
            seen.pop("q"),
            seen.pop("k"),
            is_causal=keywords.get("is_causal", True) and not is_cross,
            window=attention.window,
            segment_ids_BT=keywords.get("segment_ids_BT"),
        )
        found[attention] = torch.maximum(found.get(attention, largest_H), largest_H)

    handles = [attention.tap_q.register_forward_hook(keep("q")), attention.tap_k.register_forward_hook(keep("k"))]
    return [*handles, attention.register_forward_hook(finish, with_kwargs=True)]


def _largest(
    q_BTHK: Tensor, k_BSGK: Tensor, *, is_causal: bool, window: int | None, segment_ids_BT: Tensor | None
) -> Tensor:
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    k_BSGK, largest_H = k_BSGK.to(wide), q_BTHK.new_full((H,), -torch.inf, dtype=torch.float32)
    size = max(1, _LOGITS // (B * H * S))
    for first in range(0, T, size):
        q_BTGRK = q_BTHK[:, first : first + size].to(wide).unflatten(2, (G, H // G))
        logits_BHTS = torch.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK).flatten(1, 2) / K**0.5
        mask_BTS = None
        if segment_ids_BT is not None:
            mask_BTS = segment_ids_BT[:, first : first + size, None] == segment_ids_BT[:, None, :]
        seen_BTS = visible(
            q_BTGRK.shape[1],
            S,
            is_causal=is_causal,
            window=window,
            mask_BTS=mask_BTS,
            device=q_BTHK.device,
            start=first,
        )
        logits_BHTS = logits_BHTS.masked_fill(~seen_BTS[:, None], -torch.inf)
        largest_H = torch.maximum(largest_H, logits_BHTS.amax(dim=(0, 2, 3)).float())
    return largest_H
