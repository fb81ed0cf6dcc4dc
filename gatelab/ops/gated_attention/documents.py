"""Documents packed into rows, as spans: which keys each query sees, and which queries see each key.

Notable: with documents that follow one another, causality and a window, what a token sees is one stretch of positions, whose
ends do not fall along a row. So a kernel needs four numbers a token, and nothing of how many documents there are: the
shapes depend on no value, and no value comes to the host.
"""

import torch
from torch import Tensor

_FALLS = "segment_ids_BT falls along a row: impl='hopper' takes documents that follow one another, with rising numbers"


@torch.library.custom_op("gatelab::document_spans", mutates_args=())
def spans(segment_ids_BT: Tensor, is_causal: bool, window: int | None) -> Tensor:
    """First visible key and one past the last one of each query, then first and one past the last query that sees each
    key: [4, B, T] in int32, of the positions in a row.

    Args:
        segment_ids_BT: numbers of documents that do not fall along a row; asserted on the device.
        window: as `gated_attention` takes it.
    """
    B, T = segment_ids_BT.shape
    ids_BT = segment_ids_BT.contiguous()
    torch._assert_async((ids_BT[:, 1:] >= ids_BT[:, :-1]).all(), _FALLS)
    own_T = torch.arange(T, dtype=torch.int32, device=ids_BT.device)
    first_BT = torch.searchsorted(ids_BT, ids_BT, out_int32=True)
    last_BT = torch.searchsorted(ids_BT, ids_BT, right=True, out_int32=True)
    if window is not None and window < T:
        first_BT = torch.maximum(first_BT, own_T - (window - 1))
        last_BT = torch.minimum(last_BT, own_T + window)
    own_BT = own_T.expand(B, T)
    ends = (first_BT, own_BT + 1, own_BT, last_BT) if is_causal else (first_BT, last_BT, first_BT, last_BT)
    return torch.stack(ends)


@spans.register_fake
def _(segment_ids_BT: Tensor, is_causal: bool, window: int | None) -> Tensor:
    return segment_ids_BT.new_empty(4, *segment_ids_BT.shape, dtype=torch.int32)
