"""Sinks at any position: the key that gets most, wherever it stands, what it is, and whether it is drained.

Notable: a key counts when enough queries see it. The last keys of a causal sequence are seen by a few, of which the
token itself is one, so that their importance is large in any head that looks at its neighbourhood.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ..config.run import ProbeConfig
from ..ops.attention_stats import Columns, FirstKey, ValueNorms
from ..record import Row
from .probe import AttentionView, Probe, layers_of, over_layers
from .residual import ResidualView

# Queries that must see a key; half of what the most seen key has, in shorter sequences. Where every query looks at the
# token before it, a key's importance is 1 / the number of queries that see it: with 16 this is below a threshold of 0.1.
MIN_QUERIES = 16
# How many times the mass of uniform attention a key must get for its token to be listed.
LISTED_EXCESS = 2.0


class Anywhere(Probe):
    """Of each head and sequence, the strongest key: the one of the largest importance α_k (arXiv 2410.10781) among those
    that enough queries see. In self-attention ids and domains tell the keys apart."""

    name = "anywhere"
    metrics: ClassVar = {
        "sink_importance": "share",
        "sink_excess": "ratio",
        "sink_rate_any": "share",
        "sink_elsewhere": "share",
        "sink_position": "share",
        "sink_value_drain": "ratio",
        "sink_residual_peak": "ratio",
        "sink_token": "share",
        "key_mass": "share",
        "key_mass_uniform": "share",
    }
    statistics: ClassVar = (FirstKey, Columns, ValueNorms)
    takes_layers = True
    places: ClassVar = {"sink_position": ("key", 1), "sink_token": ("key", 5)}

    def __init__(self, config: ProbeConfig, domains: tuple[str, ...]):
        super().__init__(config, domains)
        # By stack and layer, where its strongest head looks, and at how many keys: for the residual after it.
        self._looked: dict[tuple[str | None, int], tuple[Tensor, int]] = {}

    def attention(self, view: AttentionView) -> None:
        """One layer: per head, and the layer's mean over heads."""
        if view.is_short:
            return
        columns, where = view.of(Columns), view.where | {"length": view.n_queries}
        importance_BH, key_BH = strongest(columns)
        excess_BH = importance_BH / columns.uniform_BS.gather(1, key_BH)
        is_first_BH = key_BH == (0 if view.stack == "cross" else view.of(FirstKey).first_BT.gather(1, key_BH))
        self.add_heads("sink_importance", importance_BH, where)
        self.add_heads("sink_excess", excess_BH, where)
        self.add_rate("sink_rate_any", importance_BH, where)
        self.add_rate("sink_elsewhere", importance_BH.masked_fill(is_first_BH, 0.0), where, axis=None)
        # Weights that are not numbers have no strongest key.
        place_BH = key_BH.masked_fill(importance_BH.isnan(), -1)
        self.add_head_places("sink_position", place_BH, where)
        norm_BSG = view.of(ValueNorms).norm_BSG
        norm_BHS = norm_BSG.repeat_interleave(key_BH.shape[1] // norm_BSG.shape[2], dim=2).transpose(1, 2)
        self.add_heads("sink_value_drain", against_others(norm_BHS, key_BH), where)
        if view.stack == "cross":
            return
        key_B1 = key_BH.gather(1, importance_BH.argmax(dim=1, keepdim=True))
        layers = layers_of(view)
        for layer, key_B in zip(layers, key_B1.view(len(layers), -1).unbind(0), strict=True):
            self._looked[view.stack, layer] = key_B, view.n_keys
        if view.tokens_BS is not None:
            token_BH = view.tokens_BS.gather(1, key_BH).masked_fill(~(excess_BH >= LISTED_EXCESS), -1)
            self.add_place("sink_token", token_BH, **{k: v for k, v in where.items() if k != "layer"})
        if view.domain_BT is not None:
            self._by_domain(columns, view.domain_BT, where)

    def residual(self, view: ResidualView) -> None:
        """One block, or several."""
        layers = layers_of(view)
        norm_LBT = view.norm_BT.unflatten(0, (len(layers), -1))
        looked = [self._looked.pop((view.stack, layer), None) for layer in layers]
        # A view may show a part of the batch, or of its tokens: then the places are not those of the residual.
        same = [i for i, at in enumerate(looked) if at and norm_LBT.shape[1:] == (len(at[0]), at[1])]
        if not same:
            return
        norm_LBT = norm_LBT if len(same) == len(layers) else norm_LBT[same]
        peak_LB = against_others(norm_LBT, torch.stack([looked[i][0] for i in same]))
        where = {} if view.stack is None else {"stack": view.stack}
        self.add("sink_residual_peak", peak_LB.flatten(), layer=tuple(layers[i] for i in same), **where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers; the largest peak of any layer."""
        means = over_layers(rows, [metric for metric in self.metrics if metric != "sink_residual_peak"])
        return means + over_layers(rows, ["sink_residual_peak"], "max")

    def _by_domain(self, columns: Columns, domain_BS: Tensor, where: dict[str, object]) -> None:
        for i, domain in enumerate(self.domains):
            is_kind_BS = (domain_BS == i).float()
            share_BH = torch.einsum("bhs,bs->bh", columns.mass_BHS, is_kind_BS) / columns.mass_BHS.sum(dim=-1)
            uniform_B = (columns.uniform_mass_BS * is_kind_BS).sum(dim=1) / columns.uniform_mass_BS.sum(dim=1)
            self.add("key_mass", share_BH.nanmean(dim=1), **where, domain=domain)
            self.add("key_mass_uniform", uniform_B, **where, domain=domain)


def strongest(columns: Columns) -> tuple[Tensor, Tensor]:
    """Importance and position of the strongest key of each head, [B, H]; of equal ones the first."""
    n_BS = columns.n_queries_BS
    is_seen_BS = n_BS >= (n_BS.amax(dim=1, keepdim=True) / 2).clamp(max=MIN_QUERIES)
    importance_BHS = columns.importance_BHS.masked_fill(~is_seen_BS[:, None], -torch.inf)
    # Equal to rounding is equal: where all keys are alike, the position is that of the first.
    largest_BH1 = importance_BHS.amax(dim=-1, keepdim=True)
    key_BH = (importance_BHS >= largest_BH1 - 1e-6 * largest_BH1.abs()).float().argmax(dim=-1)
    return largest_BH1.squeeze(-1), key_BH


def against_others(norm: Tensor, key: Tensor) -> Tensor:
    """The norm at a key over the median of all others, along the last axis; of two in the middle the lower."""
    others = norm.scatter(-1, key[..., None], torch.nan).nanmedian(dim=-1).values
    return norm.gather(-1, key[..., None]).squeeze(-1) / others
