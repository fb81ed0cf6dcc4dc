"""Which keys of which heads an edit means, `first`, `strongest`, a position, or others at random; and what becomes of them.

Notable: a key is the first where its own token sees no earlier one, so that padding on the left and packed documents have
their own; others are drawn from the middle half of the keys that are no padding.
"""

import math
import re

import numpy as np
import torch
from torch import Tensor

from .intervention import Given, Intervention


def chosen(
    edit: Intervention, layer: int, n_heads: int, first_BS: Tensor, valid_BS: Tensor, given: Given
) -> Tensor | None:
    """The keys that are edited, [B, H, S] boolean; None when the layer has none.

    Args:
        first_BS, valid_BS: which keys are first in their documents, and which are no padding.

    Raises:
        ValueError: a position beyond the text, a table that lacks a named head, a text without as many other keys.
    """
    heads = edit.heads(layer, n_heads, given.seed)
    is_other, name = re.fullmatch(r"(other-)?(.*)", edit.at).groups()
    if name == "strongest" and given.positions is not None and not edit.places:
        heads = [(layer, h) in given.positions for h in range(n_heads)]
    if not any(heads):
        return None
    B, S = first_BS.shape
    if name == "first":
        keys_BHS = first_BS[:, None].expand(-1, n_heads, -1)
    else:
        keys_BHS = first_BS.new_zeros(B, n_heads, S)
        for h in range(n_heads):
            if heads[h]:
                keys_BHS[:, h, _position(edit, name, layer, h, S, given)] = True
    if is_other:
        keys_BHS = _others(edit, keys_BHS, valid_BS, given.seed)
    return keys_BHS & torch.tensor(heads, device=first_BS.device)[None, :, None]


def edited_values(edit: Intervention, v_BGSK: Tensor, keys_BGS: Tensor, valid_BS: Tensor) -> Tensor:
    """Values after the edit of the chosen keys; computed in float32 at least, and rounded once."""
    wide = v_BGSK.to(torch.promote_types(v_BGSK.dtype, torch.float32))
    if edit.kind == "mean-value":
        counted_B1S1 = valid_BS[:, None, :, None]
        target = (wide * counted_B1S1).sum(dim=2, keepdim=True) / counted_B1S1.sum(dim=2, keepdim=True)
    else:
        target = wide * (float(edit.value) if edit.kind == "value" else 0.0)
    edited = torch.lerp(wide, target.expand_as(wide), edit.dose).to(v_BGSK.dtype)
    return torch.where(keys_BGS[..., None], edited, v_BGSK)


def added_logit(edit: Intervention, dtype: torch.dtype | None = None) -> float:
    """What masking adds to a key's logit. All of it is −∞; given a type, a number in the place of −∞ that is below any logit
    and above what transformers' masks put there."""
    if edit.dose < 1:
        return math.log1p(-edit.dose)
    return -math.inf if dtype is None else torch.finfo(dtype).min / 8


def differs_by_head(edit: Intervention) -> bool:
    """Whether heads that share a kv head may be edited differently."""
    return edit.at.endswith("strongest") or any(head is not None for _, head in edit.places)


def first_keys(mask: Tensor | None, n_sequences: int, n_keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which keys are first, and which are no padding, [B, S] boolean each, by a mask as transformers gives it: [B or 1, H or
    1, T, S], boolean (True: may see) or added to the logits, or None."""
    if mask is None:
        first_BS = torch.zeros(n_sequences, n_keys, dtype=torch.bool, device=device)
        first_BS[:, 0] = True
        return first_BS, torch.ones_like(first_BS)
    seen_BTS = may_see(mask)[:, 0].expand(n_sequences, n_keys, n_keys)
    valid_BS = seen_BTS.diagonal(dim1=1, dim2=2)  # a token that does not see itself is padding
    earliest_BT = seen_BTS.byte().argmax(dim=2)
    return valid_BS & (earliest_BT == torch.arange(n_keys, device=device)), valid_BS


def may_see(mask: Tensor) -> Tensor:
    """A mask as a boolean one; True: may see."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _position(edit: Intervention, name: str, layer: int, head: int, n_keys: int, given: Given) -> int:
    if name == "strongest":
        if given.positions is None or (layer, head) not in given.positions:
            raise ValueError(
                f"{edit.word}: no strongest key is known of head {head} in layer {layer}; hand over positions, a table "
                "(layer, head) -> position such as `strongest_keys` makes of a probe's rows"
            )
        position = given.positions[layer, head]
    else:
        position = int(name)
    if not 0 <= position < n_keys:
        raise ValueError(f"{edit.word}: this text has keys 0 to {n_keys - 1}, and none at position {position}")
    return position


def _others(edit: Intervention, keys_BHS: Tensor, valid_BS: Tensor, seed: int) -> Tensor:
    """As many keys of each head, none of them its own, the same for heads with the same keys."""
    others_BHS = torch.zeros_like(keys_BHS)
    for b, valid_S in enumerate(valid_BS):
        places = valid_S.nonzero().flatten().tolist()
        n = len(places)
        middle = np.random.default_rng(seed).permutation(places[n // 4 : max(n // 4 + 1, 3 * n // 4)]).tolist()
        for h, keys_S in enumerate(keys_BHS[b]):
            own = keys_S.nonzero().flatten().tolist()
            free = [s for s in middle if s not in own]
            if len(free) < len(own):
                raise ValueError(
                    f"{edit.word}: a text of {n} tokens has {len(free)} other keys in its middle half, and {len(own)} are "
                    "edited; take a longer text"
                )
            others_BHS[b, h, free[: len(own)]] = True
    return others_BHS
