"""Losses. Next-token cross-entropy, so far."""

import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # a target that does not count


def next_token_loss(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor, segment_ids_BT: Tensor | None) -> Tensor:
    """Sum over positions of the cross-entropy in nats, float32; targets of −100 do not count."""
    logits_BTV = model(inputs_BT, segment_ids_BT=segment_ids_BT)
    # The log-sum-exp over the vocabulary needs float32.
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )
