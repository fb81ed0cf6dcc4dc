"""Layers of a pass that wait for one another, so that what is computed of all of them is computed once.

Notable: layers that are alike are one stretch with their sequences side by side, of as many of them as a bound on memory
allows, and views of all layers of one kind are one view when they are shown.
"""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from ...ops.attention_stats import Stretch, along_batch, n_bytes_of
from ..probe import AttentionView, Probe, abreast, layers_of, show, side_by_side, statistics_of
from ..residual import ResidualView, norms_side_by_side

# What layers may take that wait to be gathered; joining them takes as much again.
MOST_BYTES = 256 * 2**20


@dataclass
class Alike:
    """Layers of which each takes `n_bytes` to be gathered: their views, and what these are to gather."""

    n_bytes: int
    views: list[AttentionView] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)


class Waiting:
    """Views of layers without gates, for the probes that take several layers. `rows` says of which sequences of the batch a
    view is."""

    def __init__(self, probes: list[Probe]):
        self._probes = probes
        self._views: list[tuple[Hashable, AttentionView | ResidualView]] = []
        self._kept: dict[tuple[Hashable, ...], Alike] = {}
        self._n_bytes = 0

    def clear(self) -> None:
        """Forget what a pass left that did not end."""
        self._views.clear()
        self._kept.clear()
        self._n_bytes = 0

    def add(self, rows: Hashable, view: AttentionView | ResidualView) -> None:
        """A view of which all is gathered; held without the layer's queries, keys and values, and without the stream."""
        if isinstance(view, ResidualView):
            self._views.append((rows, view if view.norms_alone else view.norms))
        else:
            self._views.append((rows, replace(view, last=None)))

    def keep(self, rows: Hashable, view: AttentionView, stretch: Stretch) -> None:
        """A view, and the stretch that it is to gather: with those of other layers, where it is like them."""
        likeness = stretch.likeness
        if likeness is None:
            view.add(stretch, statistics_of(self._probes, stretch.gates))
            self.add(rows, view)
            return
        key = (rows, view.stack, view.domain_BT is None, view.tokens_BS is None, *likeness)
        if (alike := self._kept.get(key)) is None:
            alike = self._kept[key] = Alike(n_bytes_of(stretch))
        alike.views.append(view)
        alike.stretches.append(stretch)
        self._n_bytes += alike.n_bytes
        if self._n_bytes + alike.n_bytes > MOST_BYTES:  # another one like it finds no room
            self._gather()

    def _gather(self) -> None:
        for (rows, *_), alike in self._kept.items():
            view = abreast(alike.views)
            view.add(along_batch(alike.stretches), statistics_of(self._probes, {}))
            self.add(rows, view)
        self._kept.clear()
        self._n_bytes = 0

    def show(self) -> None:
        """Show what waited, layers of one kind as one view, those of the same sequences together."""
        self._gather()
        waiting, self._views = self._views, []
        together = [probe for probe in self._probes if probe.takes_layers]
        for rows in dict.fromkeys(rows for rows, _ in waiting):
            alike: dict[Hashable, list[AttentionView | ResidualView]] = defaultdict(list)
            for own, view in waiting:
                if own == rows:
                    alike[_kind(view)].append(view)
            is_residual = {key: isinstance(views[0], ResidualView) for key, views in alike.items()}
            for key in sorted(alike, key=is_residual.__getitem__):
                join = norms_side_by_side if is_residual[key] else side_by_side
                show(join(alike[key]), together)


def _kind(view: AttentionView | ResidualView) -> tuple[Hashable, ...]:
    """What views have in common that may stand side by side, however many layers each is of."""
    if isinstance(view, ResidualView):
        return ("residual", view.stack, view.norm_BT.shape, view.device)
    given = view.domain_BT is None, view.tokens_BS is None
    has = view.has_slot, view.has_documents
    B, *sizes = view.sizes
    n_sequences = B // len(layers_of(view))
    return ("attention", view.stack, view.n_queries, view.n_keys, *has, n_sequences, *sizes, view.device, *given)
