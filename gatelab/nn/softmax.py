"""Normalisers other than the plain softmax. A learned sink logit a head, so far: the control that is not a gate."""

import torch
from torch import nn


class SinkLogitHeads(nn.Module):
    """One learned logit a head in the softmax's denominator, without a value; starts at `init`.

    softmax with sink s = softmax · σ(lse − s): a headwise gate in disguise, which a test holds.
    """

    def __init__(self, n_heads: int, init: float):
        super().__init__()
        self.init = init
        self.sink_logit_H = nn.Parameter(torch.full((n_heads,), init))
