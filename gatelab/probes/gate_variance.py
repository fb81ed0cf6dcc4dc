"""What a gate's scores depend on: the token's id, its position, the layer and the head, or none of these.

Shares of variance as in a one-way analysis of variance, with ε² in the place of η² so that many groups of a few tokens do
not explain by chance (Kelley, 1935, doi 10.1073/pnas.21.9.554).
"""

from collections import defaultdict
from typing import ClassVar

import torch
from torch import Tensor

from ..config.run import ProbeConfig
from ..ops.attention_stats import Gates, Scores, Statistic, octave
from ..record import Row
from .filed import Key
from .probe import AttentionView, Probe, over_layers


class GateVariance(Probe):
    """Of each head's mean score over channels, by site, over the tokens of all sequences: what share of its variance the
    token's id explains (where a capture was told the ids), what the octave of its position; and of all scores of a model
    what share lies between layers, and between heads of a layer."""

    name = "gate_variance"
    metrics: ClassVar = {"gate_variance": "1", "gate_variance_explained": "share"}

    def __init__(self, config: ProbeConfig, domains: tuple[str, ...]):
        super().__init__(config, domains)
        self._seen: dict[Key, list[tuple[Tensor, Tensor, Tensor | None]]] = defaultdict(list)

    def asks(self, gates: Gates) -> tuple[type[Statistic], ...]:
        """Nothing without a gate."""
        return (Scores,) if gates else ()

    def attention(self, view: AttentionView) -> None:
        """One layer: its scores are kept until the rows are asked for, a number a token and head."""
        if view.is_short or not view.last.gates or view.stack == "cross":
            return
        position_T = octave(torch.arange(view.n_queries))
        for site, scores in view.of(Scores).sites.items():
            mean_BTH = scores.mean_BTH.float().cpu()
            if mean_BTH.shape[1] == view.n_queries:  # else a constant, which does not vary
                key = tuple(sorted((view.where | {"site": site}).items()))
                tokens_BT = None if view.tokens_BS is None else view.tokens_BS.cpu()
                self._seen[key].append((mean_BTH, position_T.expand(mean_BTH.shape[:2]), tokens_BT))

    def rows_of(self, runs: list[str], step: int) -> list[list[Row]]:
        """`rows` of each run, of the scores that are kept of it."""
        parts = [type(self)(self.config, self.domains) for _ in runs]
        n = len(parts)
        for key, seen in self._seen.items():
            for mean_BTH, position_BT, tokens_BT in seen:
                tokens = [None] * n if tokens_BT is None else tokens_BT.chunk(n)
                for part, *own in zip(parts, mean_BTH.chunk(n), position_BT.chunk(n), tokens, strict=True):
                    part._seen[key].append(tuple(own))
        return [part.rows(run, step) for part, run in zip(parts, runs, strict=True)]

    def rows(self, run: str, step: int) -> list[Row]:
        """Heads' and layers' shares, and the model's."""
        rows: list[Row] = []

        def put(metric: str, value: float, **coordinates: object) -> None:
            if value == value:  # nothing varied: no share of it
                rows.append(Row(run, step, self.name, metric, value, self.metrics[metric], **coordinates))

        for key, seen in self._seen.items():
            where = dict(key)
            scores_NH = torch.cat([mean_BTH.flatten(0, 1) for mean_BTH, _, _ in seen]).double()
            groups = {"position": torch.cat([position_BT.flatten() for _, position_BT, _ in seen])}
            if all(tokens_BT is not None for _, _, tokens_BT in seen):
                groups["token"] = torch.cat([tokens_BT.flatten() for _, _, tokens_BT in seen])
            variance_H = scores_NH.var(dim=0, correction=0)
            put("gate_variance", variance_H.mean().item(), **where)
            for name, group_N in groups.items():
                share_H = explained(scores_NH, group_N)
                put("gate_variance_explained", share_H.nanmean().item(), **where, domain=name)
                for head, share in enumerate(share_H.tolist()):
                    put("gate_variance_explained", share, **where, head=head, domain=name)
        rows += over_layers(rows, self.metrics)
        for (site, stack), layers in self._by_site().items():
            at = {"site": site} | ({} if stack is None else {"stack": stack})
            # Heads count alike, however many a layer has.
            mean_H = torch.cat([mean for mean, _ in layers])
            own_H = torch.cat([mean.mean().expand_as(mean) for mean, _ in layers])
            within = torch.cat([variance for _, variance in layers]).mean()
            between_layers, between_heads = own_H.var(correction=0), (mean_H - own_H).square().mean()
            total = between_layers + between_heads + within
            # What rounding leaves of equal scores is no variance.
            if total > (1e-6 * mean_H.abs().mean()) ** 2:
                put("gate_variance_explained", (between_layers / total).item(), **at, domain="layer")
                put("gate_variance_explained", (between_heads / total).item(), **at, domain="head")
        return rows

    def summaries(self, rows: list[Row]) -> list[Row]:
        """`rows` gives them."""
        return []

    def _by_site(self) -> dict[tuple[str, str | None], list[tuple[Tensor, Tensor]]]:
        """By site and stack, of each layer: every head's mean score, and its variance over tokens."""
        found: dict[tuple[str, str | None], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for key, seen in self._seen.items():
            where = dict(key)
            scores_NH = torch.cat([mean_BTH.flatten(0, 1) for mean_BTH, _, _ in seen]).double()
            mean_and_variance = scores_NH.mean(dim=0), scores_NH.var(dim=0, correction=0)
            found[where["site"], where.get("stack")].append(mean_and_variance)
        return found


def explained(scores_NH: Tensor, group_N: Tensor) -> Tensor:
    """ε² of groups, [H]: 1 − (SS_within / (N − k)) / (SS_total / (N − 1)), at least 0; not-a-number where nothing varies or
    every score is a group of its own."""
    _, index_N = group_N.unique(return_inverse=True)
    k, N = int(index_N.max()) + 1, len(index_N)
    if k == N:
        return torch.full_like(scores_NH[0], torch.nan)
    count_K = torch.bincount(index_N, minlength=k)
    sum_KH = torch.zeros(k, scores_NH.shape[1], dtype=scores_NH.dtype).index_add_(0, index_N, scores_NH)
    within_NH = scores_NH - (sum_KH / count_K[:, None])[index_N]
    total_H = (scores_NH - scores_NH.mean(dim=0)).square().sum(dim=0)
    share_H = 1 - within_NH.square().sum(dim=0) / (N - k) * (N - 1) / total_H
    # What rounding leaves of equal scores is no variance.
    is_flat_H = total_H <= N * (1e-6 * scores_NH.abs().mean(dim=0)).square()
    return share_H.clamp(min=0).masked_fill(is_flat_H, torch.nan)
