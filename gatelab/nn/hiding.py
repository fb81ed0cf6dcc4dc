"""What queries do not see beside later keys: padding, keys outside of a window, the first key; as the op takes it.

Notable: padding looks at padding, so that every query sees a key and no output is a not-a-number. A call that says nothing of
these makes no tensor here.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.gate import GateSpec
from .cache import Cache

# How the first key is hidden from a head: one number a key, added to its logit, as a gate on the scores does it. Beside any
# other key the weight is then exactly 0, a query that sees no other still sees it, and float16 holds the number times √K.
HIDES = GateSpec(site="scores", granularity="headwise", form="add", activation="identity")
_HIDDEN = -1000.0


class Sight(NamedTuple):
    """Arguments of `gated_attention` that say which keys queries see, and what is added to their logits; `first_BSH` is
    that of the first key, as the logits of `HIDES`."""

    is_causal: bool
    window: int | None = None
    segment_ids_BT: Tensor | None = None
    mask_BTS: Tensor | None = None
    bias_BHTS: Tensor | None = None
    first_BSH: Tensor | None = None

    @property
    def is_bare(self) -> bool:
        """Whether causality, or nothing, is all there is."""
        return all(rule is None for rule in self[1:])


def sight(
    is_causal: bool,
    window: int | None,
    segment_ids_BT: Tensor | None,
    is_token_BS: Tensor | None,
    bias_BHTS: Tensor | None,
) -> Sight:
    """Of whole sequences: tokens look at tokens, padding at padding."""
    mask_BTS = None if is_token_BS is None else is_token_BS[:, :, None] == is_token_BS[:, None]
    return Sight(is_causal, window, segment_ids_BT, mask_BTS, bias_BHTS)


def sight_of_context(is_token_BS: Tensor | None, bias_BHTS: Tensor | None) -> Sight:
    """Of cross-attention: every query sees the context's tokens, and where it has none its padding."""
    if is_token_BS is None:
        return Sight(is_causal=False, bias_BHTS=bias_BHTS)
    mask_B1S = (is_token_BS | ~is_token_BS.any(dim=1, keepdim=True))[:, None]
    return Sight(is_causal=False, mask_BTS=mask_B1S, bias_BHTS=bias_BHTS)


def sight_in_cache(
    is_causal: bool, window: int | None, cache: Cache, n_queries: int, n_keys: int, bias_BHTS: Tensor | None
) -> Sight:
    """Of queries that end a cache's keys; for a single query a bias is all that is needed, since a mask would be joined with
    others in every layer."""
    window = None if window is None or n_keys <= window else window
    if bias_BHTS is not None:
        bias_BHTS = bias_BHTS[..., -n_keys:]  # a cache may have kept fewer than there were
    if cache.padding is None:
        return Sight(is_causal, window, bias_BHTS=bias_BHTS)
    end = cache.length + n_queries
    if n_queries > 1:
        mask_BTS = cache.padding.mask_BTS(end, n_queries, n_keys)
        return Sight(is_causal, window, mask_BTS=mask_BTS, bias_BHTS=bias_BHTS)
    padding_B11S = cache.padding.bias_B11S(end, n_keys)
    return Sight(is_causal, window, bias_BHTS=padding_B11S if bias_BHTS is None else bias_BHTS + padding_B11S)


def positions_of_tokens(is_token_BS: Tensor) -> Tensor:
    """Each token's place among its row's tokens, [B, S] from 0; padding has that of the last token before it, or 0."""
    return (is_token_BS.cumsum(dim=1) - 1).clamp(min=0)


def hidden_heads(n_heads: int, first_hidden_from: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """What the first key's logit gets in each head, [H] in float32."""
    hidden = [_HIDDEN if h in first_hidden_from else 0.0 for h in range(n_heads)]
    return torch.tensor(hidden, device=device)


def hidden_first(hidden_H: Tensor, n_keys: int, is_token_BS: Tensor | None = None) -> Tensor:
    """`hidden_H` at the first key, or at each row's first token, and 0 elsewhere: [1 or B, S, H]; of the last `n_keys` where
    `is_token_BS` is of more."""
    if is_token_BS is None:
        return F.pad(hidden_H[None, None], (0, 0, 0, n_keys - 1))
    is_first_BS = is_token_BS & (is_token_BS.cumsum(dim=1) == 1)
    return is_first_BS[:, -n_keys:, None] * hidden_H
