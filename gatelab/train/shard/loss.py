"""The head and its cross-entropy among tensor ranks: all have the hidden state and the head whole, and each takes some tokens.

Notable: a vocabulary of 128,256 is a fifth of a step of 1.2 billion weights, which each rank would compute alone. What travels
instead is the gradient of the hidden state, as after any layer, and that of the head.
"""

from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ...data import IGNORED
from ...models.model import Model
from ...nn.moe import Routing
from ...nn.watch import Watch
from ...ops.linear_cross_entropy import linear_cross_entropy
from ..objectives import Loss, hidden_of
from .exchange import enter, leave


def target_loss_among(group: ProcessGroup) -> Loss:
    """`objectives.target_loss`, the same number on all ranks of a group that share layers."""
    return partial(_target_loss, group)


def _target_loss(
    group: ProcessGroup,
    model: Model,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    segment_ids_BT: Tensor | None = None,
    decoder_inputs_BT: Tensor | None = None,
    routed: list[Routing] | None = None,
    watch: Watch | None = None,
) -> Tensor:
    x_BTD = hidden_of(model, inputs_BT, segment_ids_BT, decoder_inputs_BT, routed, watch)
    x_ND = _own(enter(x_BTD.flatten(0, 1), group), group)
    weight_VD, targets_N = enter(model.head.weight, group), _own(targets_BT.flatten(), group)
    return leave(linear_cross_entropy(x_ND[None], weight_VD[None], targets_N[None], ignored=IGNORED)[0], group)


def _own(of_tokens: Tensor, group: ProcessGroup) -> Tensor:
    return torch.tensor_split(of_tokens, group.size())[group.rank()]
