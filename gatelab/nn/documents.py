"""Documents that lie one after another in a row: their numbers from their lengths, and each token's place in its own.

ids_BT = segments([5, 3, 8])                      # or segments(cu_seqlens.diff())
y_BTD = attention(x_BTD, segment_ids_BT=ids_BT, positions_BT=positions(ids_BT))
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def segments(lengths: Sequence[int] | Tensor, *, device: torch.device | str | None = None) -> Tensor:
    """The number of each token's document, from 0, [1, T] in int64, T the sum of the lengths; rows are joined by `torch.cat`.

    Of cumulative lengths (`cu_seqlens`, 0 first) `lengths` are the differences. As many as a row has are counted on its device.

    Raises:
        ValueError: lengths that are no row of whole numbers from 0.
    """
    lengths_N = torch.as_tensor(lengths, device=device)
    is_whole = lengths_N.dtype in (torch.int32, torch.int64) or not lengths_N.numel()
    if lengths_N.dim() != 1 or not is_whole or (lengths_N < 0).any():
        raise ValueError(
            f"lengths={lengths}: expected the tokens of each document, whole numbers from 0, as in [5, 3, 8]"
        )
    numbers_N = torch.arange(len(lengths_N), device=lengths_N.device)
    return numbers_N.repeat_interleave(lengths_N.long())[None]


def positions(segment_ids_BT: Tensor) -> Tensor:
    """Each token's place in its document, from 0, [B, T] in int64; a document is a stretch of one number."""
    own_T = torch.arange(segment_ids_BT.shape[1], device=segment_ids_BT.device)
    is_first_BT = torch.ones_like(segment_ids_BT, dtype=torch.bool)
    is_first_BT[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return own_T - torch.where(is_first_BT, own_T, 0).cummax(dim=1).values
