"""What a probe is: it reads what was gathered of a layer in a forward pass, keeps small per-sequence numbers, gives rows.

Notable: statistics are asked of the view, `view.of(Columns)`; those that the probes of one capture name in `statistics` come
from one pass over a layer's weights. A long sequence comes in stretches, each with a cache of what was before; what is
gathered of them adds up, so that a probe sees no difference.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ..config.run import ProbeConfig
from ..ops.attention_stats import FirstKey, Gates, Statistic, Stretch, one_pass
from ..record import COORDINATES, Row
from .filed import Filed, by_layer, fetched, filed_as, means_of
from .residual import ResidualView

# What tells rows of one run and one metric apart, but for the layer, which is a row's first coordinate.
_OTHER_COORDINATES = attrgetter(*COORDINATES[1:])
AnyStatistic = TypeVar("AnyStatistic", bound=Statistic)


@dataclass
class AttentionView:
    """One attention layer in one forward pass, or in the passes over the stretches of a sequence.

    `stack` is None for causal self-attention, `encoder` for one that sees both ways, `cross` for one that looks at a
    context of other tokens. `domain_BT` numbers the domain of each query (−1: none), or is None; `tokens_BS` are the ids of
    the keys' tokens (−1: none), or None. `last` is the stretch that was added last; `n_queries` and `n_keys` count all.
    `layer` is the layer's number, or those of layers that `side_by_side` put into one view, one after the other in each
    batch axis.
    """

    layer: int | tuple[int, ...]
    stack: str | None
    domain_BT: Tensor | None = None
    tokens_BS: Tensor | None = None
    last: Stretch | None = None
    n_queries: int = 0
    n_keys: int = 0
    has_slot: bool = False
    has_documents: bool = False
    sizes: tuple[object, ...] = ()
    device: torch.device | None = None
    _taken: dict[type[Statistic], Statistic] = field(default_factory=dict, repr=False)

    @property
    def where(self) -> dict[str, object]:
        """The coordinates of the layer."""
        return {"layer": self.layer} | ({} if self.stack is None else {"stack": self.stack})

    @property
    def is_short(self) -> bool:
        """One query, or one key: every query is left out of the means, and an importance of 1 says nothing."""
        return min(self.n_queries, self.n_keys) < 2

    def add(self, stretch: Stretch, kinds: Iterable[type[Statistic]]) -> None:
        """Gather the statistics of these kinds from a stretch; the kinds are the same for all stretches."""
        for kind in kinds:
            self._taken.setdefault(kind, kind())
        # Float32 also where a training has lower precision chosen for it.
        with torch.autocast(stretch.device.type, enabled=False):
            one_pass(self._taken.values(), stretch)
        self.last, self.device = stretch, stretch.device
        self.has_slot = stretch.weights_BHTS is None and stretch.normaliser.has_slot
        self.has_documents = stretch.segment_ids_BT is not None
        B, H, *_ = stretch.shape
        # Sequences, heads, key/value heads, and what decides which numbers there are.
        self.sizes = B, H, None if stretch.v_BSGK is None else stretch.v_BSGK.shape[2], stretch.normaliser.is_softmax
        self.n_queries += stretch.shape[2]
        self.n_keys = stretch.start_key + stretch.shape[3]

    def of(self, kind: type[AnyStatistic]) -> AnyStatistic:
        """A statistic that a probe named.

        Raises:
            ValueError: for another one.
        """
        if kind not in self._taken:
            raise ValueError(f"{kind.__name__} was not gathered; name it in the probe's `statistics`")
        return self._taken[kind]

    def counted_BT(self, skip_queries: int) -> Tensor:
        """Which queries means are over: all, but in causal self-attention none of the first `skip_queries` positions of a
        document."""
        first = self.of(FirstKey)
        if self.stack is not None:
            return torch.ones_like(first.uniform_BT, dtype=torch.bool)
        # 1/visible keys counts the position within the document: skip the first ones.
        return first.uniform_BT < 1.0 / skip_queries - 1e-9


def layers_of(view: "AttentionView | ResidualView") -> tuple[int, ...]:
    """The layers of a view, one or several."""
    return view.layer if isinstance(view.layer, tuple) else (view.layer,)


class _Joined:
    """The numbers of several layers' statistics as those of one, along the batch."""

    def __init__(self, members: list[Statistic]):
        self._members = members

    def __getattr__(self, name: str) -> Tensor | None:
        parts = [getattr(member, name) for member in self._members]
        joined = None if parts[0] is None else torch.cat(parts)
        setattr(self, name, joined)  # asked once
        return joined


def abreast(views: list[AttentionView]) -> AttentionView:
    """A view of the layers of several views, of which nothing is gathered yet; of one alone itself."""
    if len(views) == 1:
        return views[0]
    layers = tuple(layer for view in views for layer in layers_of(view))
    given = [
        None if getattr(views[0], name) is None else torch.cat([getattr(view, name) for view in views])
        for name in ("domain_BT", "tokens_BS")
    ]
    return AttentionView(layers, views[0].stack, *given)


def side_by_side(views: list[AttentionView]) -> AttentionView:
    """Views of several layers without gates, of the same sequences and sizes, as one: what is computed of it is computed once
    for all, which is what a GPU wants."""
    first, out = views[0], abreast(views)
    if out is first:
        return first
    for name in ("n_queries", "n_keys", "has_slot", "has_documents", "device"):
        setattr(out, name, getattr(first, name))
    out._taken = {kind: _Joined([view.of(kind) for view in views]) for kind in first._taken}
    return out


class Probe(ABC):
    """Accumulates per-sequence means. `metrics` names what it measures: metric -> unit (docs/metrics.md defines them);
    `statistics` are those of the attention weights that it asks of a view.

    `add` files a number a sequence under its coordinates, `add_heads` and `add_bins` one a head or bin, and `rows` averages
    over sequences. `add_place` and `add_head_places` file where something is; `places` says for such a metric which
    coordinate the place is, and how many rows the most frequent ones have, whose values are their shares.
    """

    name: ClassVar[str]
    metrics: ClassVar[dict[str, str]]
    statistics: ClassVar[tuple[type[Statistic], ...]] = ()
    places: ClassVar[dict[str, tuple[str, int]]] = {}
    # Whether `residual` asks for more than the norms.
    reads_entries: ClassVar[bool] = False
    # Whether it may be shown several layers as one view, see `side_by_side`.
    takes_layers: ClassVar[bool] = False

    def __init__(self, config: ProbeConfig, domains: tuple[str, ...]):
        self.config, self.domains = config, domains
        # Kept where they were computed and averaged when rows are asked for: a look does not wait for the device.
        self._many: dict[Filed, list[Tensor]] = defaultdict(list)
        self._places: dict[Filed, list[Tensor]] = defaultdict(list)

    def asks(self, gates: Gates) -> tuple[type[Statistic], ...]:
        """The statistics that it asks of a layer with these gates."""
        return self.statistics

    def attention(self, view: AttentionView) -> None:  # noqa: B027  (a probe overrides what it looks at)
        """Called with each attention layer, once a forward pass or sequence."""

    def residual(self, view: ResidualView) -> None:  # noqa: B027
        """Called with the residual stream after each block, next to the block's attention."""

    def add(self, metric: str, value_B: Tensor, **coordinates: object) -> None:
        """File one number a sequence."""
        self._many[filed_as(metric, coordinates, None, "mean")].append(value_B.detach()[:, None])

    def add_heads(self, metric: str, value_BH: Tensor, where: dict[str, object], reduce: str = "mean") -> None:
        """File each head's numbers, and the layer's: their mean, or their maximum."""
        self._many[filed_as(metric, where, "head", reduce)].append(value_BH.detach())

    def add_rate(self, metric: str, value_BH: Tensor, where: dict[str, object], axis: str | None = "head") -> None:
        """File at each of the thresholds whether a head's number is above it, by head (`axis` None: not), and of the layer the
        share of heads."""
        value_BH = value_BH.detach()
        for above in self.config.thresholds:
            self._many[filed_as(metric, where | {"threshold": above}, axis, "mean", above)].append(value_BH)

    def add_bins(self, metric: str, value_BN: Tensor, where: dict[str, object]) -> None:
        """File the numbers of each bin."""
        self._many[filed_as(metric, where, "bin", None)].append(value_BN.detach())

    def add_place(self, metric: str, index: Tensor, **coordinates: object) -> None:
        """File places, of any shape; −1 is: nowhere, which counts and is not listed."""
        self._places[filed_as(metric, coordinates, None, None)].append(index.detach().reshape(-1, 1))

    def add_head_places(self, metric: str, index_BH: Tensor, where: dict[str, object]) -> None:
        """File each head's places, as `add_place` does."""
        self._places[filed_as(metric, where, "head", None)].append(index_BH.detach())

    def finish(self) -> None:  # noqa: B027
        """Called before rows are made, to file what waited for all layers."""

    @abstractmethod
    def summaries(self, rows: list[Row]) -> list[Row]:
        """Model-level rows from the layer rows, which are those of no head."""

    def rows(self, run: str, step: int) -> list[Row]:
        """All rows: heads, layers, model."""
        return self.rows_of([run], step)[0]

    def rows_of(self, runs: list[str], step: int) -> list[list[Row]]:
        """`rows` of each run of a stacked model: of M runs the first has the first M-th of every batch, and so on."""
        fetch([self])
        M, rows_M = len(runs), [[] for _ in runs]
        many = by_layer(self._many, M)
        for name, (whole_LM, mean_LMN) in zip(many, means_of(many), strict=True):
            metric, unit = name.metric, self.metrics[name.metric]
            for layer, whole_M, mean_MN in zip(name.layers, whole_LM, mean_LMN, strict=True):
                at = {"layer": layer, **dict(name.key)}
                for run, rows, whole, mean_N in zip(runs, rows_M, whole_M, mean_MN, strict=True):
                    if whole is not None and whole == whole:  # else no sequence had a number
                        rows.append(Row(run, step, self.name, metric, whole, unit, **at))
                    for i, mean in enumerate(mean_N if name.axis is not None else ()):
                        if mean == mean:
                            rows.append(Row(run, step, self.name, metric, mean, unit, **at, **{name.axis: i}))
        for name, place_LMBN in by_layer(self._places, M).items():
            metric, unit, (coordinate, most) = name.metric, self.metrics[name.metric], self.places[name.metric]
            for layer, place_MNB in zip(name.layers, place_LMBN.astype(int).swapaxes(2, 3).tolist(), strict=True):
                for run, rows, place_NB in zip(runs, rows_M, place_MNB, strict=True):
                    for i, place_B in enumerate(place_NB):
                        at = dict(name.key) | {"layer": layer} | ({} if name.axis is None else {name.axis: i})
                        for place, share in _most_frequent(place_B, most):
                            rows.append(Row(run, step, self.name, metric, share, unit, **at, **{coordinate: place}))
        return [self.summaries([row for row in rows if row.head is None]) + rows for rows in rows_M]


def fetch(probes: Iterable[Probe]) -> None:
    """Bring what the probes filed to the host in one go: the one time that a look waits for the device."""
    for probe in probes:
        probe.finish()
    filed = [parts for probe in probes for own in (probe._many, probe._places) for parts in own.values()]
    away = [parts for parts in filed if not all(part.dtype == torch.float64 and part.is_cpu for part in parts)]
    here = fetched([part for parts in away for part in parts])
    for parts in away:
        parts[:] = [next(here) for _ in parts]


def _most_frequent(places: list[int], n: int) -> list[tuple[int, float]]:
    """At most n of the places, with the share of each; of equally frequent ones the first. −1 is no place."""
    counts: dict[int, int] = {}
    for place in places:
        if place >= 0:
            counts[place] = counts.get(place, 0) + 1
    frequent = sorted(counts, key=lambda place: (-counts[place], place))[:n]
    return [(place, counts[place] / len(places)) for place in frequent]


def show(view: AttentionView | ResidualView, probes: Iterable[Probe]) -> None:
    """Let each probe look at a view, in float32 also where a training has lower precision chosen for it."""
    is_residual = isinstance(view, ResidualView)
    with torch.autocast(view.device.type, enabled=False):
        for probe in probes:
            (probe.residual if is_residual else probe.attention)(view)


def mean_of(value_BHT: Tensor, selected_BT: Tensor) -> Tensor:
    """Mean over the selected queries, [B, H]; not-a-number for a sequence that has none."""
    selected_B1T = selected_BT[:, None].to(value_BHT.dtype)
    return (value_BHT * selected_B1T).sum(-1) / selected_B1T.sum(-1)


def norms_alone(probes: Iterable[Probe]) -> bool:
    """Whether no probe asks more of the residual stream than its norms."""
    return not any(probe.reads_entries for probe in probes)


def statistics_of(probes: Iterable[Probe], gates: Gates) -> tuple[type[Statistic], ...]:
    """What the probes ask of the weights of a layer with these gates, each once."""
    return tuple(dict.fromkeys(kind for probe in probes for kind in probe.asks(gates)))


def over_layers(rows: list[Row], metrics: Collection[str], reduce: str = "mean") -> list[Row]:
    """Model-level rows of each of these metrics: its layer rows (no head) reduced over layers, one a combination of the other
    coordinates."""
    groups: dict[str, dict[tuple[object, ...], list[Row]]] = {metric: defaultdict(list) for metric in metrics}
    for row in rows:
        if row.metric in groups and row.layer is not None and row.head is None:
            groups[row.metric][_OTHER_COORDINATES(row)].append(row)
    reducer = {"mean": lambda values: sum(values) / len(values), "max": max}[reduce]
    return [
        Row(run, step, source, metric, reducer([row.value for row in own]), own[0].unit, None, *place)
        for metric, by_place in groups.items()
        for place, own in by_place.items()
        for run, step, source in [(own[0].run, own[0].step, own[0].source)]
    ]
