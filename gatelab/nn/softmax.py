"""LearnedNormaliser: the parameters that a normaliser of `gatelab.config.normaliser` learns in one attention layer."""

import torch
from torch import Tensor, nn

from ..config.normaliser import Heads, Normaliser


class LearnedNormaliser(nn.Module):
    """Holds `normaliser.learned(heads)` as parameters under the same names: a sink logit is `sink_logit_H`.

    Each starts as its entry says: at `init`, or normal around it.
    """

    def __init__(self, normaliser: Normaliser, heads: Heads):
        super().__init__()
        self.normaliser, self.heads = normaliser, heads
        self.names = tuple(normaliser.learned(heads))
        for name, start in normaliser.learned(heads).items():
            values = (
                start.init + start.std * torch.randn(start.shape) if start.std else torch.full(start.shape, start.init)
            )
            self.register_parameter(name, nn.Parameter(values))

    def learned(self, n_sequences: int = 1) -> dict[str, Tensor]:
        """The parameters by name, as the attention op takes them; of M stacked models for each of so many sequences."""
        n_dims = {name: len(start.shape) for name, start in self.normaliser.learned(self.heads).items()}
        values = {name: getattr(self, name) for name in self.names}
        return {
            name: x if x.dim() == n_dims[name] else x.repeat_interleave(n_sequences // len(x), dim=0)
            for name, x in values.items()
        }

    def extra_repr(self) -> str:
        """The kind."""
        return self.normaliser.kind
