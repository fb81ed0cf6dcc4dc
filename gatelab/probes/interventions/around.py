"""An edit of keys in a model of transformers: what stands around its attention functions; shapes [B, H or G, T or S, K].

Notable: without a mask, the causal sequence that the fused kernels know, a key is masked by channels of q and k, so that
memory stays linear in T. Where a kv head serves query heads that are edited differently, keys and values are repeated.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.gated_attention.fused import pieces
from ..external.interpose import Attend
from .anatomy import Anatomy
from .intervention import Given, Intervention
from .keys import added_logit, chosen, differs_by_head, edited_values, first_keys, may_see

# Channels that carry what masking adds to a logit; the fused kernels want a multiple of eight.
_MORE = 8


class Around:
    """What is called in the place of an attention function; `met` notes the layers."""

    def __init__(self, edit: Intervention, anatomy: Anatomy, given: Given, met: set[int]):
        self.edit, self.anatomy, self.given, self.met = edit, anatomy, given, met

    def __call__(
        self,
        attend: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        **keywords: Any,
    ) -> Any:
        """What attend returns, of the edited keys."""
        layer = self.anatomy.layers.get(module)
        if layer is None or not self.edit.acts_in(layer) or getattr(module, "is_cross_attention", False):
            return attend(module, query, key, value, attention_mask, **keywords)
        B, H, T, K = query.shape
        G, S = key.shape[1:3]
        if T != S:
            raise ValueError(
                f"{self.edit.word}: {T} queries meet {S} keys; run whole sequences without a cache (use_cache=False)"
            )
        self.met.add(layer)
        mask = None if attention_mask is None else attention_mask[..., :S]
        first_BS, valid_BS = first_keys(mask, B, S, query.device)
        keys_BHS = chosen(self.edit, layer, H, first_BS, valid_BS, self.given)
        if keys_BHS is None:
            return attend(module, query, key, value, attention_mask, **keywords)
        is_repeated = G != H and differs_by_head(self.edit)
        if is_repeated:
            key, value = (t.repeat_interleave(H // G, dim=1) for t in (key, value))
        is_widened = self.edit.kind == "mask-key" and mask is None
        if is_widened:
            keywords |= {"scaling": keywords.get("scaling") or K**-0.5}
            added = added_logit(self.edit, query.dtype) / keywords["scaling"]
            query, key, value = _widened(query, key, value, keys_BHS, added, _is_causal(attend, module, keywords))
        elif self.edit.kind == "mask-key":
            attention_mask = _masked(mask, keys_BHS, added_logit(self.edit, query.dtype), query.dtype)
        else:
            # Heads that share a kv head have the same keys here.
            value = edited_values(self.edit, value, keys_BHS[:, :: H // value.shape[1]], valid_BS)
        with _ungrouped(module) if is_repeated else nullcontext():
            output = attend(module, query, key, value, attention_mask, **keywords)
        # Some families go on with a view of it.
        return (output[0][..., :-_MORE].contiguous(), *output[1:]) if is_widened else output


def _widened(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, keys_BHS: Tensor, added: float, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with channels whose product is `added` at the chosen keys, in rows that see another key.

    With no mask those are all rows but the first of a causal sequence.
    """
    B, H, T, _ = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    keys_BGS = keys_BHS if G == H else keys_BHS.any(dim=1, keepdim=True).expand(-1, G, -1)
    # Divided by the scale it may have left the type's range.
    added = max(added, torch.finfo(k_BGSK.dtype).min / 8)
    column_BGS = keys_BGS.to(torch.promote_types(k_BGSK.dtype, torch.float32)) * added
    # Three pieces of bfloat16 hold the 24 bits of a float32.
    more_k = F.pad(torch.stack(pieces(column_BGS, k_BGSK.dtype, 3), dim=-1), (0, _MORE - 3))
    rows_T = torch.arange(T, device=q_BHTK.device) >= (1 if is_causal else int(S == 1))
    more_q = (keys_BHS.any(dim=2)[:, :, None] & rows_T)[..., None].expand(-1, -1, -1, _MORE).to(q_BHTK.dtype)
    wide = torch.cat([q_BHTK, more_q], dim=-1), torch.cat([k_BGSK, more_k.expand(B, -1, -1, -1)], dim=-1)
    return *wide, F.pad(v_BGSK, (0, _MORE))


def _masked(mask: Tensor, keys_BHS: Tensor, added: float, dtype: torch.dtype) -> Tensor:
    """A mask that also adds to the logits of the chosen keys, where a query sees another; one a head only where heads
    differ."""
    seen = may_see(mask)
    bias = torch.zeros_like(mask, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min) if seen is mask else mask
    keys_BH1S = (keys_BHS[:, :1] if bool((keys_BHS == keys_BHS[:, :1]).all()) else keys_BHS)[:, :, None]
    has_other = (seen & ~keys_BH1S).any(dim=-1, keepdim=True)
    return torch.where(keys_BH1S & has_other & seen, bias + added, bias)


def _is_causal(attend: Attend, module: nn.Module, keywords: dict[str, Any]) -> bool:
    """Whether the function hides later keys where no mask is given."""
    given = keywords.get("is_causal")
    return attend.is_sdpa and (getattr(module, "is_causal", True) if given is None else given)


@contextmanager
def _ungrouped(module: nn.Module) -> Iterator[None]:
    """Tells a module's attention function that each query head has its own key and value."""
    before = getattr(module, "num_key_value_groups", None)
    if before is None:
        yield
        return
    module.num_key_value_groups = 1
    try:
        yield
    finally:
        module.num_key_value_groups = before
