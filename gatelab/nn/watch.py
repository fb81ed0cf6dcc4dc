"""Watch: what a forward pass tells of its attention while it runs, given along as the list that routers write to is.

Notable: the log-sum-exp is there when attention is done, so the first-token mass costs one read of the queries. What a layer
has no log-sum-exp of is not computed in another way: its numbers are no numbers, and the pass stays as cheap as it was.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops.attention_stats import mean_first_token_mass


@dataclass
class Watch:
    """Of one forward pass. `skip_queries`: how many of the first queries are left out of the means, as in the probe `sinks`;
    `first_mass_BH`: one entry a layer of causal self-attention, in order, its first-token mass a sequence and head in
    float32, without gradient."""

    skip_queries: int = 1
    first_mass_BH: list[Tensor] = field(default_factory=list)

    def add(self, q_BTHK: Tensor, k_BSGK: Tensor, lse_BHT: Tensor | None) -> None:
        """Append a layer's masses; not-a-number where lse_BHT, ln of the rows' denominators, is None or no query is left."""
        B, T, H, _ = q_BTHK.shape
        if lse_BHT is None or self.skip_queries >= T:
            mass_BH = torch.full((B, H), torch.nan, device=q_BTHK.device)
        else:
            mass_BH = mean_first_token_mass(q_BTHK, k_BSGK, lse_BHT, skip=self.skip_queries)
        self.first_mass_BH.append(mass_BH)

    def sums_MLH(self, n_models: int = 1) -> Tensor:
        """By layer and head, summed over the sequences of each of M stacked models, which stand one after the other."""
        if not self.first_mass_BH:
            return torch.zeros(n_models, 0, 0)
        return torch.stack(self.first_mass_BH, dim=1).unflatten(0, (n_models, -1)).sum(dim=1)
