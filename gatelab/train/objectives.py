"""Losses: the cross-entropy of what any architecture says about a batch, and what an experts' router adds to it.

Notable: all are sums over a part of a batch divided by numbers of the whole, so that micro-batches and ranks add up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.moe import MoE
from ..data import IGNORED
from ..models.model import Model
from ..nn.linear import of_each
from ..nn.moe import Routing, router_losses
from ..nn.watch import Watch
from ..ops.linear_cross_entropy import linear_cross_entropy
from .parallel import Ranks

Loss = Callable[..., Tensor]


def logits_of(
    model: Model,
    inputs_BT: Tensor,
    segment_ids_BT: Tensor | None = None,
    decoder_inputs_BT: Tensor | None = None,
    routed: list[Routing] | None = None,
) -> Tensor:
    """Logits for every target of a batch, of a model of any architecture; a decoder's inputs are for one of two stacks."""
    if decoder_inputs_BT is None:
        return model(inputs_BT, segment_ids_BT=segment_ids_BT, routed=routed)
    return model(inputs_BT, decoder_inputs_BT, routed=routed)


def target_loss(
    model: Model,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    segment_ids_BT: Tensor | None = None,
    decoder_inputs_BT: Tensor | None = None,
    routed: list[Routing] | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Sum over targets of the cross-entropy in nats, float32; targets that are IGNORED do not count."""
    x_BTD = hidden_of(model, inputs_BT, segment_ids_BT, decoder_inputs_BT, routed, watch)
    weight_1VD, targets_1N = model.head.weight[None], targets_BT.flatten()[None]
    return linear_cross_entropy(x_BTD.flatten(0, 1)[None], weight_1VD, targets_1N, ignored=IGNORED)[0]


def target_losses(
    model: Model,
    n_models: int,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    segment_ids_BT: Tensor | None = None,
    decoder_inputs_BT: Tensor | None = None,
    routed: list[Routing] | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """`target_loss` of each of M stacked models (or of a plain one), [M]; the batch holds their sequences one after the other."""
    x_BTD = hidden_of(model, inputs_BT, segment_ids_BT, decoder_inputs_BT, routed, watch)
    x_MND, targets_MN = of_each(x_BTD, n_models), targets_BT.reshape(n_models, -1)
    weight_MVD = model.head.weight.view(n_models, -1, x_BTD.shape[-1])
    return linear_cross_entropy(x_MND, weight_MVD, targets_MN, ignored=IGNORED)


def hidden_of(
    model: Model,
    inputs_BT: Tensor,
    segment_ids_BT: Tensor | None,
    decoder_inputs_BT: Tensor | None,
    routed: list[Routing] | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """What the head reads at every target of a batch, of a model of any architecture, [B, T, D]."""
    if decoder_inputs_BT is None:
        return model.hidden(inputs_BT, segment_ids_BT=segment_ids_BT, routed=routed, watch=watch)
    return model.hidden(inputs_BT, decoder_inputs_BT, routed=routed, watch=watch)


@dataclass(frozen=True)
class Choices:
    """What the routers chose in the global batch: choices of each expert, and tokens, a layer; of M stacked models [L, M, X]."""

    counts_LX: Tensor
    n_tokens_L: tuple[int, ...]


def choices(passes: list[list[Routing]], ranks: Ranks) -> Choices:
    """The sum over one forward pass each of this rank's micro-batches, and over all ranks."""
    counts_LX = torch.stack([torch.stack([r.counts_X for r in routed]) for routed in passes]).sum(dim=0)
    ranks.sum_(counts_LX)
    n_tokens_L = tuple(ranks.n_data * sum(r.n_tokens for r in layer) for layer in zip(*passes, strict=True))
    return Choices(counts_LX, n_tokens_L)


def router_loss(routed: list[Routing], moe: MoE, chosen: Choices) -> Tensor:
    """A micro-batch's part of the load-balancing loss and the z-loss, times their coefficients (arXiv 2501.11873); of stacked
    models [M]."""
    balance, z = router_losses(routed, moe, chosen.counts_LX, chosen.n_tokens_L)
    return moe.balance * balance + moe.z * z
