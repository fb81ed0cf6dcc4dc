"""Which arm for which use, by a stated rule from paired effects: no number is pooled over settings, they are counted.

Every arm stands in every setting at its own best learning rate, and there its finding is for a use, against it or neither. The
rule that follows is in standing.py, and in docs/statistics.md, "Which arm for which use".
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan, log, nan
from typing import Any

from ..record import Finding, Metric
from .best_rate import LOSS, AtBest, at_best, settings
from .dispersion import over_seeds
from .effects import effects
from .paired import Outcome, Outcomes, Pairs
from .registration import EFFECT, Verdict
from .shares import exact_interval
from .standing import (
    CONFIRMED,
    DIVERGED,
    EXPLORATORY,
    NO_CASE,
    NOTHING,
    PILOT,
    SCREEN,
    SEEDS_NEEDED,
    Against,
    Answer,
    Told,
    answers,
)
from .uses import LOSS_SPREAD, RATE_COST, USES, Use
from .verdicts import compact


@dataclass(frozen=True, slots=True)
class Advice:
    """A study's part in recommendations: `told` of all uses, settings and arms, what speaks against arms elsewhere, and `notes` on
    what was left out."""

    told: list[Told]
    against: list[Against]
    at_best: AtBest
    notes: list[str]
    fdr: float

    @property
    def answers(self) -> list[Answer]:
        """One a use that was measured."""
        return answers(self.told, self.against)


def advise(
    outcomes: Sequence[Outcome],
    findings: Iterable[Finding],
    metrics: Sequence[Metric],
    *,
    baseline: str,
    arms: Sequence[str],
    bases: Mapping[str, Mapping[str, Any]],
    rates: Mapping[str, tuple[str, float]],
    refused: Mapping[tuple[str, str], str],
    verdicts: Collection[Verdict] = (),
    fdr: float = 0.10,
) -> Advice:
    """What a study says to every use.

    Args:
        outcomes: those of the screen: the seeds of a confirmation are not among them.
        findings: of every cell at its own rate, for what happens at another than the best.
        bases: {cell: its configuration}, in the study's order.
        rates: {cell: (what else it is, learning rate)}, as `Evidence.rates`; empty where rates must not be compared.
        refused: {(cell, arm): why} of comparisons that are not to be made.
        verdicts: of registered claims on fresh seeds.
    """
    found = at_best(list(outcomes), settings(list(bases), rates), baseline=baseline, refused=refused)
    names = [s.name for s in found.settings]
    at = {s.name: bases[next(iter(s.cells.values()))] for s in found.settings}
    compared = []
    if any(o.arm == baseline for o in found.outcomes):
        compared = effects(found.outcomes, [*metrics, RATE_COST], baseline=baseline, arms=arms, cells=names, fdr=fdr)
    compared += _spreads(found, baseline, [a for a in arms if a != baseline], names)
    table, bimodal = Outcomes(found.outcomes), {m.name: m for m in metrics if m.bimodal}
    told = [
        _bimodal(use, f, table.pairs(f.cell, f.arm, baseline, bimodal[f.metric]))
        if f.metric in bimodal
        else _told(use, f)
        for use in USES
        for f in compared
        if f.metric == use.metric and use.is_asked(at[f.cell]) and f.n_pairs
    ]
    told = [_confirmed(_survived(t, found, baseline), found, baseline, verdicts) for t in told]
    # Of a metric that a run shows or not, those in which seeds change it.
    elsewhere = [f for f in findings if f.metric not in bimodal or isnan(f.low)]
    against = [*_elsewhere(elsewhere, found, bases, refused, told), *_anomalies(verdicts, found, bases, told)]
    notes = [f"{arm} in {cell} is {why}" for (cell, arm), why in refused.items()]
    return Advice(told, against, found, [*notes, *found.notes], fdr)


def _told(use: Use, f: Finding) -> Told:
    """Of a metric whose mean describes the runs."""
    if f.n_pairs < SEEDS_NEEDED:
        return Told(use, f.cell, f.arm, f, 0, PILOT, is_telling=False, excluded=nan)
    gain = -f.low if use.better < 0 else f.high
    side = 0 if f.verdict not in ("lower", "higher") else use.better if f.verdict == "higher" else -use.better
    word = _word(f, side) if isfinite(f.p) else NO_CASE
    return Told(use, f.cell, f.arm, f, side, word, isfinite(f.p), max(0.0, gain) if isfinite(gain) else nan)


def _bimodal(use: Use, f: Finding, pairs: Pairs) -> Told:
    """Of one that a run shows or not: only seeds that change it count, and where all runs of both are on the better side there is
    nothing to tell."""
    if f.n_pairs < SEEDS_NEEDED:
        return Told(use, f.cell, f.arm, f, 0, PILOT, is_telling=False, excluded=nan)
    before, after = (
        (values > pairs.metric.threshold) == (use.better > 0) for values in (pairs.baseline_values, pairs.arm_values)
    )
    n_open, n_won, n_lost = int((~before).sum()), int((~before & after).sum()), int((before & ~after).sum())
    is_seen = f.verdict in ("lower", "higher") and n_won != n_lost
    side = 0 if not is_seen else 1 if n_won > n_lost else -1
    word = _word(f, side) if n_open or n_lost else NO_CASE
    excluded = exact_interval(n_won, n_open)[1] if n_won < n_open else nan
    return Told(use, f.cell, f.arm, f, side, word, bool(n_open or n_lost), excluded, (n_won, n_open, n_lost))


def _word(f: Finding, side: int) -> str:
    return NOTHING if side == 0 else SCREEN if f.primary else EXPLORATORY


def _survived(t: Told, found: AtBest, baseline: str) -> Told:
    """Never for an arm that lost runs which the baseline did not lose: those that are left flatter it."""
    metric = LOSS if t.use.metric == LOSS_SPREAD.name else t.use.metric
    ours, theirs = (found.lost.get((t.setting, arm, metric), ()) for arm in (t.arm, baseline))
    if not t.is_telling or t.side < 0 or {*ours} <= {*theirs}:
        return t
    return replace(t, side=0, word=DIVERGED, excluded=nan)


def _confirmed(t: Told, found: AtBest, baseline: str, verdicts: Iterable[Verdict]) -> Told:
    """With the strongest word and the side of the claim where this very comparison, in one cell for arm and baseline, was
    registered as an effect and confirmed: fresh seeds count for more than the screen's family of tests, in which controls are."""
    cell = found.best.get((t.setting, t.arm))
    if t.word == DIVERGED or cell != found.best.get((t.setting, baseline)):
        return t
    claim = (EFFECT, cell, t.arm, t.use.metric)
    for v in verdicts:
        of = (v.claim.rule, v.claim.cell, v.claim.arm, v.claim.reading)
        if v.verdict == "confirmed" and of == claim and v.n_pairs >= SEEDS_NEEDED:
            return replace(t, side=v.claim.direction * t.use.better, word=CONFIRMED, is_telling=True)
    return t


def _anomalies(
    verdicts: Iterable[Verdict], found: AtBest, bases: Mapping[str, Mapping[str, Any]], told: Iterable[Told]
) -> list[Against]:
    """Claims against an arm that were confirmed on fresh seeds; of what a large rate costs, those in cells at the largest."""
    largest = {s.cells[max(s.cells)] for s in found.settings if len(s.cells) > 1}
    out = []
    for use in dict.fromkeys(t.use for t in told):
        for v in (v for v in verdicts if v.verdict == "confirmed"):
            c = v.claim
            is_about = (
                c.cell in largest if use.metric == RATE_COST.name else c.cell in bases and use.is_asked(bases[c.cell])
            )
            if is_about and c.rule == EFFECT and (c.reading, c.direction) == (use.metric, -use.better):
                out.append(Against(use, c.arm, "the opposite effect", c.cell, is_confirmed=True))
            elif is_about and c.rule != EFFECT and c.reading.partition(":")[0] in use.readings:
                out.append(Against(use, c.arm, c.rule, c.cell, is_confirmed=True))
    return out


def _elsewhere(
    findings: Sequence[Finding],
    found: AtBest,
    bases: Mapping[str, Mapping[str, Any]],
    refused: Collection[tuple[str, str]],
    told: Iterable[Told],
) -> list[Against]:
    """Where an arm backfires at a learning rate that is not its best."""
    uses = {t.use for t in told}
    at_their_best = {(cell, arm) for (_, arm), cell in found.best.items()}
    out = []
    for use in (u for u in USES if u in uses):
        for f in findings:
            if f.metric != use.metric or f.n_pairs < SEEDS_NEEDED or (f.cell, f.arm) in refused:
                continue
            is_best = (f.cell, f.arm) in at_their_best
            if use.is_asked(bases[f.cell]) and not is_best and f.verdict == ("higher" if use.better < 0 else "lower"):
                out.append(Against(use, f.arm, f.verdict, f.cell, is_confirmed=False))
    return out


def _spreads(found: AtBest, baseline: str, arms: Sequence[str], names: Sequence[str]) -> list[Finding]:
    """ln of the arm's standard deviation over seeds over the baseline's at best rates; losses are skewed over seeds, so Pitman and
    Morgan's test alone would not do."""
    table, loss = Outcomes(found.outcomes), Metric("val_loss", "nats", "lower-is-better", "held-out loss")
    out = []
    for cell in names:
        for arm in arms:
            pairs = table.pairs(cell, arm, baseline, loss)
            n = len(pairs.seeds)
            values = (pairs.baseline_values, pairs.arm_values, pairs.seeds)
            spread = over_seeds([values]) if n >= 2 else None
            if spread is None:
                continue
            deviations = [float(v.std(ddof=1)) for v in (pairs.baseline_values, pairs.arm_values)]
            effect, low, high = (log(x) if x > 0 else -inf for x in (spread.ratio, spread.low, spread.high))
            verdict = "unclear" if spread.p >= 0.05 else "lower" if effect < 0 else "higher"
            said = f"{cell}: {arm} has {compact(spread.ratio)} times the standard deviation over seeds of {baseline}."
            out.append(
                Finding(
                    cell=cell, arm=arm, baseline=baseline, metric=LOSS_SPREAD.name, unit=LOSS_SPREAD.unit, primary=False,
                    direction=LOSS_SPREAD.direction, n_pairs=n, baseline_mean=deviations[0], arm_mean=deviations[1],
                    effect=effect, low=low, high=high, confidence=0.95, p=spread.p, q=None, equivalence=None,
                    p_equivalence=None, detectable=nan, verdict=verdict, sentence=said, seeds=pairs.seeds, notes=pairs.excluded,
                )
            )  # fmt: skip
    return out
