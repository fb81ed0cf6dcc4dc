"""Reading a mask: which tokens of a sequence take part, and by which rule they see one another.

transformers gives an attention function a dense mask, boolean or added to the logits, or none. The probes want the rule
(causal, window, documents), since rules are evaluated by blocks. A rule is guessed from the first and last rows and then
compared with every entry: a mask that none of them equals is not read, and what it masks is not observed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.gated_attention import visible

_BLOCK = 256


@dataclass(frozen=True)
class Part:
    """Sequences `rows` of a batch (None: all of them) between tokens `start` and `end`; what is outside is padding.

    `segment_ids_T` numbers the documents, or the chunks, of tokens that see only their own; None without.
    """

    rows: int | None
    start: int
    end: int
    is_causal: bool
    window: int | None = None
    segment_ids_T: Tensor | None = None


def of_part(part: Part, values: Tensor) -> Tensor:
    """The part's sequences; an axis of 1 is of every sequence."""
    return values if part.rows is None or values.shape[0] == 1 else values[part.rows : part.rows + 1]


def of_tokens(part: Part, values: Tensor, dim: int) -> Tensor:
    """The part's sequences, and of the axis `dim` its tokens; an axis of 1 is of every token."""
    values, n = of_part(part, values), part.end - part.start
    return values if values.shape[dim] in (1, n) else values.narrow(dim, part.start, n)


def read_mask(
    mask: Tensor | None, n_queries: int, n_keys: int, *, is_causal: bool, is_cross: bool
) -> list[Part] | None:
    """The parts of a batch by the rule they follow; None for a mask of another kind.

    Args:
        mask: [B or 1, 1, T or 1, S], boolean (True: may see) or added to the logits; None hides nothing but, if `is_causal`,
            what is later.
        is_cross: the keys are of other tokens: every query sees the same ones, and `start` and `end` are of the keys.
    """
    if mask is None:
        return None if is_causal and is_cross else [Part(None, 0, n_keys, is_causal)]
    masks_BTS = _sees(mask, n_queries)
    if masks_BTS is None:
        return None
    is_shared = len(masks_BTS) == 1 or (len(masks_BTS) > 1 and bool((masks_BTS == masks_BTS[:1]).all()))
    parts = []
    for b in range(1 if is_shared else len(masks_BTS)):
        part = (_cross if is_cross else _self)(masks_BTS[b], None if is_shared else b)
        if part is None:
            return None
        parts.append(part)
    return parts


def read_stretch(mask: Tensor | None, n_queries: int, n_keys: int) -> Part | None:
    """The part that queries make which go on from a cache: the last of the keys are their own tokens. None for a mask that
    is neither causal nor a window's."""
    if mask is None:
        return Part(None, 0, n_keys, is_causal=True)
    masks_BTS = _sees(mask, n_queries)
    if masks_BTS is None or masks_BTS.shape[-1] != n_keys:
        return None
    causal_TS = visible(n_queries, n_keys, is_causal=True, mask_BTS=None, device=mask.device)[0]
    if (masks_BTS & ~causal_TS).any():
        return None
    if (masks_BTS == causal_TS).all():
        return Part(None, 0, n_keys, is_causal=True)
    # What the last query sees last is itself; a window shows as much to every query.
    window = int(masks_BTS[0, -1].sum())
    if (
        window
        and (
            masks_BTS == visible(n_queries, n_keys, is_causal=True, window=window, mask_BTS=None, device=mask.device)
        ).all()
    ):
        return Part(None, 0, n_keys, is_causal=True, window=window)
    return None


def _sees(mask: Tensor, n_queries: int) -> Tensor | None:
    """A mask [B or 1, 1, T or 1, S], boolean or added to the logits, as what a query sees, [B or 1, T, S]."""
    if mask.dim() != 4 or mask.shape[1] != 1:
        return None
    if mask.dtype != torch.bool:
        # What is neither 0 nor out of reach is a bias, not a mask.
        hidden = mask <= torch.finfo(mask.dtype).min / 2
        if not (hidden | (mask == 0)).all():
            return None
        mask = ~hidden
    return mask[:, 0].expand(-1, n_queries, -1)


def _range(seen_S: Tensor) -> tuple[int, int] | None:
    """The first and one past the last of the keys that are seen, when none between them is hidden from all."""
    index = seen_S.nonzero().flatten().tolist()
    if not index or index[-1] - index[0] + 1 != len(index):
        return None
    return index[0], index[-1] + 1


def _cross(mask_TS: Tensor, row: int | None) -> Part | None:
    found = _range(mask_TS[0])
    if found is None or not (mask_TS == mask_TS[:1]).all():
        return None
    return Part(row, *found, is_causal=False)


def _self(mask_TS: Tensor, row: int | None) -> Part | None:
    if mask_TS.shape[0] != mask_TS.shape[1]:
        return None
    found = _range(mask_TS.diagonal())  # a token that does not see itself is padding
    if found is None:
        return None
    start, end = found
    if mask_TS[start:end, :start].any() or mask_TS[start:end, end:].any():
        return None
    inner_TS = mask_TS[start:end, start:end]
    for part in _guesses(inner_TS, row, start, end):
        if _equals(inner_TS, part):
            return part
    return None


def _guesses(inner_TS: Tensor, row: int | None, start: int, end: int) -> list[Part]:
    n = end - start
    first_T = torch.cat([inner_TS[t : t + _BLOCK].byte().argmax(dim=1) for t in range(0, n, _BLOCK)])
    reach = int((torch.arange(n, device=first_T.device) - first_T).max()) + 1
    is_causal = n == 1 or not bool(inner_TS[0, 1:].any())
    parts = [Part(row, start, end, is_causal), Part(row, start, end, is_causal, window=reach)]
    if is_causal:
        segment_ids_T = torch.cat([first_T.new_zeros(1), (first_T.diff() != 0).long().cumsum(0)])
        parts.append(Part(row, start, end, is_causal, segment_ids_T=segment_ids_T))
    return parts


def _equals(inner_TS: Tensor, part: Part) -> bool:
    n = len(inner_TS)
    for t in range(0, n, _BLOCK):
        u = min(t + _BLOCK, n)
        expected = visible(
            u - t, n, is_causal=part.is_causal, window=part.window, mask_BTS=None, device=inner_TS.device, start=t
        )[0]
        if part.segment_ids_T is not None:
            expected = expected & (part.segment_ids_T[t:u, None] == part.segment_ids_T[None])
        if not torch.equal(expected, inner_TS[t:u]):
            return False
    return True
