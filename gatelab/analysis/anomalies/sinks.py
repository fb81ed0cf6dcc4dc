"""Rules about sinks and massive activations: not removed, removed at a cost, apart from one another, moved elsewhere.

An event in an arm's runs is tested against `TOLERATED`: that it is there in a quarter of runs at most is no alarm.
"""

from collections.abc import Iterator

from ..shares import p_more_often
from ..student import estimate
from .alarm import Alarm, Place
from .evidence import Evidence
from .losses import judged, lost, worse
from .readings import SINK

TOLERATED = 0.25
MASSIVE, NOT_MASSIVE = 1000.0, 100.0  # of massive_ratio; arXiv 2402.17762 calls 1,000 times the median massive
NEW = 0.05  # a bias that is larger than the baseline's by less is none
_SEEDS = 3


def sink_stays(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """Of the seeds whose baseline shows a sink, the gated runs that show one too: more than the tolerated share."""
    pairs = evidence.pairs("first_token_mass", cell, arm)
    had = pairs.baseline_values > SINK
    seeds = [s for s, was in zip(pairs.seeds, had, strict=True) if was]
    if len(seeds) < _SEEDS:
        return
    k = int((pairs.arm_values[had] > SINK).sum())
    text = f"of {len(seeds)} seeds whose baseline has a first-token sink, {k} keep it with {arm}"
    place = Place("sink-stays", cell, arm, evidence.baseline)
    yield place.share("first_token_mass", seeds, k, p_more_often(k, len(seeds), TOLERATED), text)


def removed_but_worse(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """In the seeds where the gate removed the sink, one-sided t: the loss, or a task, is worse than the baseline's."""
    sinks = evidence.pairs("first_token_mass", cell, arm)
    removed = (sinks.baseline_values > SINK) & (sinks.arm_values <= SINK)
    gone = {s for s, is_gone in zip(sinks.seeds, removed, strict=True) if is_gone}
    place = Place("removed-but-worse", cell, arm, evidence.baseline)
    for reading in judged(evidence):
        pairs = evidence.pairs(reading, cell, arm)
        kept = [i for i, s in enumerate(pairs.seeds) if s in gone]
        if len(kept) < _SEEDS:
            continue
        if pairs.changes is not None:
            yield lost(place, pairs, kept)
            continue
        seeds = [pairs.seeds[i] for i in kept]
        e = (
            evidence.estimate(reading, cell, arm)
            if seeds == pairs.seeds
            else estimate(pairs.differences[kept], scale=pairs.scale)
        )
        metric, bad = evidence.readings[reading], worse(evidence, reading, e)
        text = (
            f"{arm} removes the sink in {len(gone)} of {len(sinks.seeds)} seeds, and there the {metric.label} is worse by"
            f" {bad.mean:.4g} {metric.unit}"
        )
        yield place.mean(reading, metric.unit, bad, text, seeds=seeds, p=evidence.p_above(reading, cell, bad))


def massive_without_sink(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """Gated runs with a massive activation and no sink, where most baseline runs are not so."""
    yield from _apart(
        evidence, Place("massive-without-sink", cell, arm, evidence.baseline), "a massive activation and no sink",
        lambda mass, ratio: (ratio >= MASSIVE) & (mass <= SINK),
    )  # fmt: skip


def sink_without_massive(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """Gated runs with a sink and no massive activation, where most baseline runs are not so."""
    yield from _apart(
        evidence, Place("sink-without-massive", cell, arm, evidence.baseline), "a sink and no massive activation",
        lambda mass, ratio: (mass > SINK) & (ratio < NOT_MASSIVE),
    )  # fmt: skip


def _apart(evidence: Evidence, place: Place, words: str, event) -> Iterator[Alarm]:
    mass, ratio = (evidence.pairs(name, place.cell, place.arm) for name in ("first_token_mass", "massive_ratio"))
    if mass.seeds != ratio.seeds or len(mass.seeds) < _SEEDS:
        return
    if event(mass.baseline_values, ratio.baseline_values).mean() >= 0.5:
        return
    n = len(mass.seeds)
    k = int(event(mass.arm_values, ratio.arm_values).sum())
    text = f"{k} of {n} runs with {place.arm} have {words}"
    yield place.share("massive_ratio", mass.seeds, k, p_more_often(k, n, TOLERATED), text)


def new_bias(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """Attention that goes elsewhere than the baseline's does, by more than `NEW`: sinks that are not the first token, an
    octave of positions, keys of a domain. One-sided t beyond that margin."""
    place = Place("new-bias", cell, arm, evidence.baseline)
    for reading in [n for name in ("sink_elsewhere", "new_places", "new_tokens") for n in evidence.family(name)]:
        e = evidence.estimate(reading, cell, arm)
        if e is None:
            continue
        metric = evidence.readings[reading]
        text = f"with {arm} the {metric.label} is higher by {e.mean:.3g} than without a gate"
        seeds, p = evidence.pairs(reading, cell, arm).seeds, evidence.p_above(reading, cell, e, NEW)
        yield place.mean(reading, metric.unit, e, text, seeds=seeds, p=p)
