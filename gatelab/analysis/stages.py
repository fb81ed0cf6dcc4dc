"""Two stages: a screen finds claims, and fresh seeds confirm them; both are written down before their runs.

    STUDY/screen.json         what the study set out to look at, written with its plan
    STUDY/confirmation.json   the screen's claims, the fresh seeds, and what the screen knew of the variances

A claim is an effect on a primary metric or an anomaly, with q within the screen's false-discovery rate. It is confirmed by
its own test on the fresh seeds alone, one-sided in the direction that was seen, by Holm at 5% over all claims: the chance
that any confirmed claim is false is 5% at most. What two claims would test alike is registered once. Few seeds are enough because
variances are shrunk towards the screen's, where one version of the code made both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import ceil, isfinite, log, nan

from ..config import ConfigError
from .anomalies.alarm import Alarm, Rule
from .anomalies.evidence import LUCK, Evidence
from .anomalies.losses import judged
from .anomalies.screen import Screened
from .graded import no_surer
from .lost import lost_at
from .registration import EFFECT, Claim, Registration, Verdict
from .shares import p_more_often
from .student import Prior, p_two_sided, q_values

ALPHA = 0.05
# Rules whose test may be one and the same; of such claims the first stands for all: it reads every fresh seed, and says most.
ONE_TEST = ("worse-than-none", EFFECT, "removed-but-worse")


def claims(evidence: Evidence, screened: Screened, primary: Iterable[str], fdr: float) -> list[Claim]:
    """The screen's effects on primary readings (their own family of tests) and its anomalies."""
    return [*effects_seen(evidence, primary, fdr), *(
        Claim(a.rule, a.cell, a.arm, a.reading, 0, a.p, a.q) for a in screened.anomalies
    )]  # fmt: skip


def effects_seen(evidence: Evidence, primary: Iterable[str], fdr: float) -> list[Claim]:
    """The effects of gates on primary readings with q within `fdr`, as `gatelab.analysis.effects` tests them."""
    tests = []
    for reading in (r for r in primary if r in evidence.readings):
        for arm in evidence.arms:
            for cell in evidence.cells:
                p, direction = _effect(evidence, reading, cell, arm)
                if isfinite(p):
                    tests.append(Claim(EFFECT, cell, arm, reading, direction, p, nan))
    if not tests:
        return []
    q = q_values([t.p for t in tests])
    return [replace(t, q=float(x)) for t, x in zip(tests, q, strict=True) if x <= fdr]


def register(
    evidence: Evidence, found: list[Claim], fresh: Sequence[int], *, fdr: float, alpha: float = ALPHA
) -> Registration:
    """The confirmation of these claims on these seeds.

    Raises:
        ValueError: no claim, or a seed that the screen has seen.
    """
    used = sorted({o.seed for o in evidence.outcomes if o.status != "planned"})
    if not found:
        raise ValueError(
            "the screen has no effect or anomaly within its false-discovery rate: nothing is to be confirmed"
        )
    twice = sorted({s for s in fresh if list(fresh).count(s) > 1})
    if twice:
        raise ValueError(f"--seeds: {', '.join(map(str, twice))} are there twice; give each once")
    seen = sorted({*fresh} & {*used})
    if seen:
        raise ValueError(
            f"--seeds: {', '.join(map(str, seen))} were in the screen; a confirmation needs fresh ones, as in {max(used) + 1}"
        )
    priors = []
    for arm, reading in dict.fromkeys((c.arm, c.reading) for c in found):
        prior = evidence.prior(reading, arm)
        if prior is not None and prior.df > 0:
            # What the cells can know of a variance is not more than all their pairs together.
            pooled = sum(
                e.n - 1
                for c in evidence.cells
                if not lost_at(evidence.lost, reading, c, evidence.baseline, arm)
                and (e := evidence.estimate(reading, c, arm))
                and e.sigma > 0
            )
            priors.append((arm, reading, float(min(prior.df, pooled)), prior.variance))
    graded = sorted({c.reading for c in found if (m := evidence.readings.get(c.reading)) is not None and m.graded})
    return Registration(found, list(fresh), used, alpha, fdr, priors, graded=graded)


def chosen(
    found: Iterable[Claim], *, rules: Sequence[str] = (), cells: Sequence[str] = (), arms: Sequence[str] = ()
) -> list[Claim]:
    """The claims of these rules, cells and arms, in whose names `*` stands for anything; of all where none is named. What is
    chosen before the fresh runs keeps the level: Holm is over what is registered.

    Raises:
        ConfigError: a word that no claim has, with those that there are.
    """
    kept = list(found)
    for name, words in (("rule", rules), ("cell", cells), ("arm", arms)):
        there = list(dict.fromkeys(getattr(c, name) for c in kept))
        unknown = [w for w in words if not any(fnmatchcase(x, w) for x in there)]
        if unknown and kept:
            raise ConfigError([f"--{name} {unknown[0]}: no claim of it; expected some of {', '.join(there)}"])
        kept = [c for c in kept if not words or any(fnmatchcase(getattr(c, name), w) for w in words)]
    return kept


def distinct(
    found: Sequence[Claim], evidence: Evidence, rules: Sequence[Rule]
) -> tuple[list[Claim], list[tuple[str, str, str, str, str]]]:
    """The claims without those that are another one's test of the same runs, and these as `Registration.equal` has them: that a
    loss is worse is an effect, an anomaly, and a second anomaly where the sink is gone in all seeds."""
    by_name = {r.name: r for r in rules}
    tests = [_test_of(c, evidence, by_name) for c in found]
    first: dict[tuple, Claim] = {}
    for _, i in sorted((ONE_TEST.index(c.rule), i) for i, c in enumerate(found) if tests[i] is not None):
        first.setdefault(tests[i], found[i])
    both = [(c, c if test is None else first[test]) for c, test in zip(found, tests, strict=True)]
    equal = [(c.rule, c.cell, c.arm, c.reading, kept.rule) for c, kept in both if kept is not c]
    return [c for c, kept in both if kept is c], equal


def _test_of(claim: Claim, evidence: Evidence, rules: Mapping[str, Rule]) -> tuple | None:
    """What a claim that something is worse tests, with its seeds; None of any other claim."""
    if claim.rule not in ONE_TEST or claim.reading not in judged(evidence):
        return None
    where = (claim.cell, claim.arm, claim.reading)
    if claim.rule != EFFECT:
        alarm = alarm_of(claim, evidence, rules)
        return None if alarm is None else (*where, *alarm.seeds)
    bad = 1 if evidence.readings[claim.reading].direction == "lower-is-better" else -1
    return (*where, *evidence.pairs(claim.reading, claim.cell, claim.arm).seeds) if claim.direction == bad else None


def confirm(registration: Registration, evidence: Evidence, rules: Sequence[Rule]) -> list[Verdict]:
    """Each claim's test on the registered seeds, by Holm."""
    fresh, by_name = on_fresh(registration, evidence), {r.name: r for r in rules}
    tested = [_again(claim, fresh, by_name) for claim in registration.claims]
    holm = _holm([p for p, _ in tested])
    return [
        Verdict(
            claim, n, p, adjusted,
            "untestable" if not isfinite(p) else "confirmed" if adjusted <= registration.alpha else "not confirmed",
            _notes(claim, fresh, by_name),
        )
        for claim, (p, n), adjusted in zip(registration.claims, tested, holm, strict=True)
    ]  # fmt: skip


def on_fresh(registration: Registration, evidence: Evidence) -> Evidence:
    """The evidence of the registered seeds, with what the screen knew of the variances, and the rule of that time for what is
    graded."""
    priors = {(arm, reading): Prior(df, variance) for arm, reading, df, variance in registration.priors}
    return evidence.only(registration.seeds, priors).graded(registration.graded)


def _notes(claim: Claim, fresh: Evidence, rules: dict[str, Rule]) -> list[str]:
    if (claim.cell, claim.arm) in fresh.refused:
        return [fresh.refused[claim.cell, claim.arm]]
    if claim.rule != EFFECT and claim.rule not in rules:
        return [f"this version has no rule {claim.rule}"]
    is_paired = claim.rule == EFFECT or rules[claim.rule].is_paired
    is_there = is_paired and claim.reading in fresh.readings
    return list(fresh.pairs(claim.reading, claim.cell, claim.arm).excluded) if is_there else []


def comparisons_needed(registration: Registration, evidence: Evidence, rules: Sequence[Rule]) -> list[tuple[str, str]]:
    """(cell, arm) of what the claims' tests read, the baseline among the arms: a rule that compares cells reads several."""
    by_name = {r.name: r for r in rules}
    out: dict[tuple[str, str], None] = {}
    for c in registration.claims:
        more = by_name[c.rule].also(evidence, c.cell) if c.rule in by_name else []
        for cell in (c.cell, *more):
            out |= {(cell, evidence.baseline): None, (cell, c.arm): None}
    return list(out)


def out_of_reach(registration: Registration, evidence: Evidence) -> list[tuple[Claim, int]]:
    """The claims that so many seeds cannot confirm whatever they show, each with how many could: an exact test on n seeds has
    no p below ½ⁿ or ¼ⁿ, and Holm takes the least p times the number of claims that cannot have a lower one."""
    least = [_least(c, evidence) for c in registration.claims]
    out = []
    for claim, base in zip(registration.claims, least, strict=True):
        n_claims = sum(other >= base for other in least)
        if base > 0 and n_claims * base ** len(registration.seeds) > registration.alpha:
            out.append((claim, ceil(log(registration.alpha / n_claims, base))))
    return out


def _least(claim: Claim, evidence: Evidence) -> float:
    """The least p of a claim's test is this to the power of the seeds; 0: as low as one likes."""
    pairs = evidence.pairs(claim.reading, claim.cell, claim.arm)
    if claim.reading.partition(":")[0] in ("unstable", "longer"):
        return 0.5
    if claim.rule in (EFFECT, "worse-than-none", "removed-but-worse") and pairs.changes is not None:
        return 0.5
    if claim.rule == "two-regimes":
        return 0.0
    return LUCK if evidence.may_split(claim.reading, claim.cell) else 0.0


def _again(claim: Claim, fresh: Evidence, rules: dict[str, Rule]) -> tuple[float, int]:
    """The one-sided p on fresh seeds, and the number of pairs; nan where it cannot be tested."""
    if (claim.cell, claim.arm) in fresh.refused or claim.reading not in fresh.readings:
        return nan, 0
    if claim.rule == EFFECT:
        p, _ = _effect(fresh, claim.reading, claim.cell, claim.arm)
        n = len(fresh.pairs(claim.reading, claim.cell, claim.arm).seeds)
        return _one_sided(fresh, claim, p), n
    alarm = alarm_of(claim, fresh, rules)
    return (nan, 0) if alarm is None else (alarm.p, alarm.n_pairs)


def alarm_of(claim: Claim, evidence: Evidence, rules: Mapping[str, Rule]) -> Alarm | None:
    """What the rule of a claim says of this evidence; None where it says nothing of the claim's reading."""
    alarms = rules[claim.rule].test(evidence, claim.cell, claim.arm) if claim.rule in rules else ()
    return next((alarm for alarm in alarms if alarm.reading == claim.reading), None)


def _effect(evidence: Evidence, reading: str, cell: str, arm: str) -> tuple[float, int]:
    """Two-sided p and direction: McNemar's where runs change regime, else t; nan where neither can be."""
    from .shares import p_changes

    if (cell, arm) in evidence.refused:
        return nan, 0
    changes = evidence.pairs(reading, cell, arm).changes
    if changes is not None and len(evidence.pairs(reading, cell, arm).seeds) >= 2:
        lost, gained = changes
        return p_changes(lost, gained), 1 if gained > lost else -1
    e = evidence.estimate(reading, cell, arm)
    if e is None or e.sigma == 0:
        return nan, 0
    p = p_two_sided(e)
    return no_surer(p, e.n) if evidence.readings[reading].graded else p, 1 if e.mean > 0 else -1


def _one_sided(fresh: Evidence, claim: Claim, p: float) -> float:
    if not isfinite(p):
        return nan
    changes = fresh.pairs(claim.reading, claim.cell, claim.arm).changes
    if changes is not None:
        lost, gained = changes
        return p_more_often(gained if claim.direction > 0 else lost, lost + gained, 0.5)
    e = fresh.estimate(claim.reading, claim.cell, claim.arm)
    return fresh.p_above(claim.reading, claim.cell, replace(e, mean=claim.direction * e.mean))


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p (Scand. J. Stat. 6:65, 1979); a claim that cannot be tested counts as one of them, with p = 1."""
    filled = [x if isfinite(x) else 1.0 for x in p]
    out, largest = [nan] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=filled.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * filled[i]))
        out[i] = largest if isfinite(p[i]) else nan
    return out
