"""Feed: the batches of a stack's runs. What several runs read is made once: those of one source and seed see the same sequences."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from ..data import Batch, Source, joined, objective_batches

if TYPE_CHECKING:
    from .group import Member


class Feed:
    """Of M runs of one objective, batch size and length.

    Args:
        members: runs of one group; sources are told apart by identity, as a group opens one for runs of the same data.
    """

    def __init__(self, members: Sequence["Member"]):
        self._run = members[0].run
        seeds: dict[int, dict[int, int]] = defaultdict(dict)  # by source: each seed, and its place among the source's
        sources: dict[int, Source] = {}
        for m in members:
            own = seeds[id(m.source)]
            own.setdefault(m.run.seed, len(own))
            sources[id(m.source)] = m.source
        self._parts = [(sources[name], list(own)) for name, own in seeds.items()]
        ends = dict(zip(seeds, np.cumsum([len(own) for own in seeds.values()]), strict=True))
        place_M = [ends[id(m.source)] - len(seeds[id(m.source)]) + seeds[id(m.source)][m.run.seed] for m in members]
        # Where each run's sequences stand among those that are made; None where they stand in the runs' order.
        self._place_M = None if place_M == list(range(len(members))) else np.array(place_M)

    def at(self, step: int) -> Batch:
        """The batch of a step counted from 0: the sequences of one run after those of the other, [M·B, T]."""
        t, objective = self._run.train, self._run.resolved_objective
        B, T = t.batch_size, t.seq_len
        made = [objective_batches(source, objective, seeds, step, B, T) for source, seeds in self._parts]
        batch = made[0] if len(made) == 1 else joined(made)
        if self._place_M is None:
            return batch
        arrays = {f.name: getattr(batch, f.name) for f in fields(Batch)}
        return Batch(**{name: None if a is None else self._of_each(a, B) for name, a in arrays.items()})

    def _of_each(self, made_NT: np.ndarray, batch_size: int) -> np.ndarray:
        T = made_NT.shape[1]
        return made_NT.reshape(-1, batch_size, T)[self._place_M].reshape(-1, T)
