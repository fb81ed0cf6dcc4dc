"""Rules about losses and accuracies: a gate that is worse than none, against its family, at its own best rate, at length."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..both_ways import over_cells_and_seeds
from ..paired import Pairs
from ..shares import p_more_often
from ..student import Estimate, estimate, p_above, p_equivalent
from .alarm import Alarm, Place
from .evidence import Evidence

FAMILY_CELLS = 3  # other cells that say what a gate usually does


def worse(evidence: Evidence, reading: str, e: Estimate) -> Estimate:
    """The estimate with worse above zero."""
    return e if evidence.readings[reading].direction == "lower-is-better" else replace(e, mean=-e.mean)


def judged(evidence: Evidence) -> list[str]:
    """The readings that have a better and a worse: the held-out loss, and accuracies by task."""
    return [*evidence.family("val_loss"), *evidence.family("accuracy")]


def lost(place: Place, pairs: Pairs, kept: Sequence[int] | None = None) -> Alarm:
    """McNemar's exact test, one-sided: of the pairs (all unless `kept` are given by place) more lose the event than gain it."""
    kept = list(range(len(pairs.seeds)) if kept is None else kept)
    before, after = (side[kept] > pairs.metric.threshold for side in (pairs.baseline_values, pairs.arm_values))
    away, back = int((before & ~after).sum()), int((~before & after).sum())
    event = f"{pairs.metric.label} above {pairs.metric.threshold:g}"
    text = f"of {len(kept)} seeds {away} lose {event} with {place.arm}, {back} gain it"
    seeds = [pairs.seeds[i] for i in kept]
    return place.share(pairs.metric.name, seeds, away, p_more_often(away, away + back, 0.5), text)


def worse_than_none(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """One-sided t on the paired differences: the gate is worse than the baseline; where a task is solved in some runs and not
    in others McNemar's test, that it is lost in more seeds than gained."""
    place = Place("worse-than-none", cell, arm, evidence.baseline)
    for reading in judged(evidence):
        pairs, metric = evidence.pairs(reading, cell, arm), evidence.readings[reading]
        e = evidence.estimate(reading, cell, arm)
        if pairs.changes is not None:
            yield lost(place, pairs)
        elif e is not None:
            bad = worse(evidence, reading, e)
            text = f"with {arm} the {metric.label} is worse by {bad.mean:.4g} {metric.unit} than without a gate"
            if metric.equivalence is not None and e.sigma > 0 and p_equivalent(e, metric.equivalence) < 0.05:
                text += f", inside the {metric.equivalence:g} that count as nothing"
            yield place.mean(reading, metric.unit, bad, text, seeds=pairs.seeds, p=evidence.p_above(reading, cell, bad))


def sign_flip(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """The cell's effect has the opposite sign of the mean effect of the other cells: the larger of the one-sided p of the
    cell's pairs and of the mean over the others (an intersection-union test: both must be sure of their sign). Cells share
    their seeds, so that mean is tested over cells and over seeds. Nothing is said where half of the cells lack the reading."""
    if evidence.not_pooled:
        return
    place = Place("sign-flip", cell, arm, evidence.baseline)
    for reading in [n for name in ("val_loss", "massive_max", "value_drain") for n in evidence.family(name)]:
        lost = {c for c in evidence.cells for a in (evidence.baseline, arm) if (c, a) in evidence.lost}
        if cell in lost:
            continue
        every = {c: evidence.estimate(reading, c, arm) for c in evidence.cells if c not in lost}
        own = every.pop(cell)
        others = {c: evidence.pairs(reading, c, arm) for c, e in every.items() if e is not None}
        if 2 * (len(others) + 1) <= len(every) + 1:
            continue  # half of the cells lack it: the screen flags that
        if own is None or len(others) < FAMILY_CELLS or own.sigma == 0:
            continue
        groups = {c: dict(zip(pairs.seeds, pairs.differences.tolist(), strict=True)) for c, pairs in others.items()}
        family = over_cells_and_seeds(groups, scale=max(pairs.scale for pairs in others.values()))
        if family.sigma == 0:
            continue
        sign = -1 if family.mean > 0 else 1
        own_p = evidence.p_above(reading, cell, replace(own, mean=sign * own.mean))
        p = max(own_p, p_above(replace(family, mean=-sign * family.mean)))
        metric = evidence.readings[reading]
        text = (
            f"{arm} changes the {metric.label} by {own.mean:+.4g} {metric.unit}, and by {family.mean:+.4g} in the mean of"
            f" the {len(others)} other cells"
        )
        yield place.mean(reading, metric.unit, own, text, seeds=evidence.pairs(reading, cell, arm).seeds, p=p)


def gain_vanishes(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """The arm gains at this cell's learning rate, and less than the equivalence bound where each has its own best rate: the
    larger of two one-sided p. A best rate chosen by the runs that are tested flatters its arm, so the second is that of every
    rate of the arm against one of the baseline's, the least such p times the number of these (Bonferroni). Nothing is said
    of rates whose runs are of several versions."""
    if evidence.not_pooled or cell not in evidence.rates:
        return
    reading, metric = "val_loss", evidence.readings["val_loss"]
    rate = evidence.rates[cell][1]
    group = {c: evidence.pairs(reading, c, arm) for c in (cell, *evidence.at_other_rates(cell))}
    if len(group) < 2 or metric.equivalence is None or any((c, arm) in evidence.refused for c in group):
        return
    seeds = sorted(set.intersection(*(set(p.seeds) for p in group.values())))
    if len(seeds) < 2:
        return
    base, gated = (
        {c: np.array([evidence.runs(reading, c, side)[s] for s in seeds]) for c in group}
        for side in (evidence.baseline, arm)
    )
    best_base, best_gated = (min(side, key=lambda c: side[c].mean()) for side in (base, gated))
    if cell == best_base:
        return
    scale = max(pairs.scale for pairs in group.values())
    shared, own = (estimate(d, scale=scale) for d in (gated[cell] - base[cell], gated[best_gated] - base[best_base]))
    if shared.sigma == 0 or own.sigma == 0:
        return
    each = [[estimate(gated[g] - base[b], scale=scale) for g in group] for b in group]
    own_p = len(group) * min(
        max(evidence.p_above(reading, cell, e, -metric.equivalence) if e.sigma > 0 else 1.0 for e in of_rate)
        for of_rate in each
    )
    p = max(evidence.p_above(reading, cell, replace(shared, mean=-shared.mean)), min(1.0, own_p))
    text = (
        f"{arm} gains {-shared.mean:.4g} {metric.unit} of {metric.label} at the rate {rate:g}, and {-own.mean:.4g} where each"
        f" has its own best rate ({evidence.rates[best_gated][1]:g} with it, {evidence.rates[best_base][1]:g} without)"
    )
    place = Place("gain-vanishes", cell, arm, evidence.baseline)
    yield place.mean(reading, metric.unit, own, text, seeds=seeds, p=p)


def worse_at_length(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """From the shorter to the longer the arm loses more than the baseline does: of the loss, between a cell and the one that
    it goes on from, by t; of accuracies by task, between the shortest and the longest length asked, by the exact sign test
    over the seeds whose runs both solve the shortest: who has not learned a task has nothing to lose."""
    place = Place("worse-at-length", cell, arm, evidence.baseline)
    source = evidence.longer.get(cell)
    if source is not None and (source, arm) not in evidence.refused:
        for reading in evidence.family("val_loss"):
            longer, shorter = (evidence.pairs(reading, c, arm) for c in (cell, source))
            seeds = [s for s in longer.seeds if s in shorter.seeds]
            if len(seeds) < 2:
                continue
            d = [dict(zip(pairs.seeds, pairs.differences, strict=True)) for pairs in (longer, shorter)]
            e = estimate([d[0][s] - d[1][s] for s in seeds], scale=max(longer.scale, shorter.scale))
            text = f"going from {source} to {cell} costs {arm} {e.mean:.4g} nats more than the baseline"
            yield place.mean(reading, "nats", e, text, seeds=seeds, p=evidence.p_above(reading, cell, e))
    for reading in evidence.family("longer"):
        pairs, short = evidence.pairs(reading, cell, arm), reading.replace("longer", "accuracy", 1)
        solved = _solved(evidence, short, cell, arm)
        kept = [i for i, s in enumerate(pairs.seeds) if s in solved]
        if not kept:
            continue
        d = pairs.differences[kept]
        more, less = int((d < 0).sum()), int((d > 0).sum())
        text = (
            f"in {more} of {len(kept)} seeds that solve the shortest length {arm} loses more {pairs.metric.label},"
            f" in {less} less"
        )
        yield place.share(reading, [pairs.seeds[i] for i in kept], more, p_more_often(more, more + less, 0.5), text)


def _solved(evidence: Evidence, reading: str, cell: str, arm: str) -> set[int]:
    """The seeds in which both arms have the task at the shortest length."""
    if reading not in evidence.readings:
        return set()
    pairs = evidence.pairs(reading, cell, arm)
    both = np.minimum(pairs.baseline_values, pairs.arm_values) > pairs.metric.threshold
    return {s for s, is_solved in zip(pairs.seeds, both, strict=True) if is_solved}
