"""What anomalies and stages say on a terminal: lines, in plain words."""

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite

from .anomalies.alarm import Alarm
from .architecture import NAME as ARCHITECTURE
from .foresight import Foresight
from .heterogeneity import Dependence
from .hunt import OF_PARTS, Hunt
from .lost import said
from .registration import Claim, Registration, Verdict
from .verdicts import SILENT_UNITS, as_p, compact


def hunted(hunt: Hunt) -> Iterator[str]:
    """What to know before reading, the anomalies with their q, and which rules could not be tested."""
    n_tests = sum(isfinite(a.p) for a in hunt.screened.alarms)
    fdr = f"{hunt.screened.fdr:.0%}"
    yield f"anomalies ({len(hunt.screened.anomalies)} of {n_tests} tests at a false-discovery rate of {fdr})"
    for note in hunt.notes:
        yield f"  note: {note}"
    for a in hunt.screened.anomalies:
        yield f"  {a.rule:<20} {a.sentence} ({as_p('q', a.q)}, {as_p('p', a.p)}, {a.n_pairs} seeds{_left_out(a.notes)})"
    if not hunt.screened.anomalies:
        yield "  none seen; that is not proof of absence: `gatelab plan STUDY --pilot DIR` says what more seeds could see"
    if few := not_tested(hunt.screened.alarms, "--all lists them"):
        yield f"  {few}"


def rest(hunt: Hunt, *, all_: bool = False) -> Iterator[str]:
    """With `all_` every test that names no anomaly; what holds over cells, with `all_` every such test too."""
    if all_:
        untested = [a for a in hunt.screened.alarms if not isfinite(a.p)]
        yield ""
        yield "the other tests"
        for a in sorted((a for a in hunt.screened.alarms if isfinite(a.p)), key=lambda a: a.p):
            if a.verdict != "anomaly":
                yield f"  {'(no) ' + a.rule:<25} {a.sentence} ({as_p('q', a.q)}, {as_p('p', a.p)})"
        for a in untested:
            yield f"  {'(untested) ' + a.rule:<25} {a.sentence}"
    yield from _over_cells(hunt, all_=all_)


def not_tested(alarms: Iterable[Alarm], where: str) -> str:
    """Which rules could not be tested, how often, and `where` each test is told; empty where all were."""
    untested = [a for a in alarms if not isfinite(a.p)]
    few = ", ".join(sorted({a.rule for a in untested}))
    n = f"{len(untested)} test{'s' * (len(untested) != 1)}"
    return f"not tested for want of seeds or spread: {few} ({n}; {where})" if untested else ""


def _over_cells(hunt: Hunt, *, all_: bool) -> Iterator[str]:
    fdr = hunt.screened.fdr
    lost = said(hunt.gathered.evidence.lost)
    if hunt.pooled or lost:
        yield ""
        yield "over cells"
    if lost:
        yield f"  not in what follows, nor in any test over cells: {lost}"
    for p in hunt.pooled:
        yield (
            f"  {p.arm}, {p.reading}{_of(p.unit)}: {p.effect:+.4g} ({p.low:+.4g} to {p.high:+.4g}, {p.n_cells} cells, "
            f"{as_p('p', p.p)}); cells differ by {compact(p.between)} ({as_p('p', p.p_between)}), a pair by {compact(p.within)}"
        )
    depending = [d for d in hunt.dependences if all_ or d.q <= fdr]
    if any(d.factor == ARCHITECTURE for d in depending):
        yield f"  the architecture stands for what varies with it alone: {', '.join(hunt.gathered.brought)}"
    yield from map(_depending, depending)
    readings = hunt.gathered.evidence.readings
    words = {s.reading: OF_PARTS.get(s.reading) or readings[s.reading].label for s in hunt.spreads}
    if all_:
        for s in hunt.spreads:
            yield (
                f"  {s.cell}: with {s.arm} the {words[s.reading]} spreads {s.ratio:.3g} times as much over {s.over}"
                f" ({s.low:.3g} to {s.high:.3g}, {as_p('q', s.q)})"
            )
        return
    named = [s for s in hunt.spreads if s.q <= fdr]
    for arm, reading, over in dict.fromkeys((s.arm, s.reading, s.over) for s in named):
        own = [s for s in named if (s.arm, s.reading, s.over) == (arm, reading, over)]
        each = ", ".join(f"{s.cell} {s.ratio:.3g}" for s in own)
        yield f"  with {arm} the {words[reading]} spreads so many times as much over {over} (q up to {fdr:g}): {each}"


def _depending(d: Dependence) -> str:
    """An arm's effect by a factor: at each level, and the test; or why there is none."""
    about = f"  {d.arm}, {d.reading} by {d.label}:"
    if not isfinite(d.p):
        return f"{about} {'; '.join(d.notes)}"
    levels = ", ".join(f"{x.value}: {x.effect:+.4g} ({x.low:+.4g} to {x.high:+.4g})" for x in d.levels)
    test = f"F({d.df:g}, {d.df_error:g}) = {d.f:.3g}, {as_p('q', d.q)}, {as_p('p', d.p)} against {d.against}"
    line = f"; {d.slope:+.4g} a doubling, on a line {as_p('p', d.p_bend)}" if isfinite(d.p_bend) else ""
    return f"{about} {levels} ({test}){line}{'; the sign flips' if d.flips else ''}"


def foreseen(rows: Sequence[Foresight], notes: Sequence[str] = ()) -> Iterator[str]:
    """The power plan, a line an arm, metric and number of seeds, and what to know of the pairs that it is made from."""
    yield "the smallest true effect that is seen with 80% power (from the 80% upper bound of the pilot pairs' spread)"
    yield from (f"  note: {note}" for note in notes)
    for arm, reading in dict.fromkeys((f.arm, f.reading) for f in rows):
        own = [f for f in rows if (f.arm, f.reading) == (arm, reading)]
        n, spread = ", ".join(str(f.n_seeds) for f in own), own[0]
        least, most, n_cells = compact(spread.sigma_low), compact(spread.sigma_high), spread.n_spreading
        among = f" in the median of {n_cells} cells ({least} to {most})" if n_cells > 1 else ""
        size = f"a pair spreads {compact(spread.sigma)}{among}, at most {compact(spread.sigma_upper)}"
        yield f"  {arm}, {reading}{_of(spread.unit)}: {size}"
        yield f"    with {n} seeds: {', '.join(compact(f.screened) for f in own)} in the screen"
        confirmed, alone = (
            ", ".join(map(compact, each)) for each in ([f.confirmed for f in own], [f.alone for f in own])
        )
        yield f"    confirmed on as many, as one of {spread.n_claims} claims: {confirmed}; alone at 5%: {alone}"
    if not rows:
        yield "  no cell has two pairs with spread to plan from, of a metric whose seeds do not change regime"


def registered(r: Registration, command: str, n_runs: int, out_of_reach: Sequence[tuple[Claim, int]]) -> Iterator[str]:
    """What was written down, and what to do next."""
    seeds, most = ", ".join(map(str, r.seeds)), {needed: [] for _, needed in sorted(out_of_reach, key=lambda x: x[1])}
    yield f"registered: {len(r.claims)} claims, to be confirmed on seeds {seeds} by Holm at {r.alpha:.0%}"
    for c in r.claims:
        what = f"{c.reading} {'rises' if c.direction > 0 else 'falls'}" if c.direction else c.reading
        yield f"  {c.rule:<20} {c.cell}, {c.arm}: {what} ({as_p('q', c.q)})"
    yield from (f"  note: {note}" for note in equal_tests(r))
    for c, needed in out_of_reach:
        most[needed].append(c)
    for needed, claims in most.items():
        some = "; ".join(f"{c.rule} {c.cell}, {c.arm}: {c.reading}" for c in claims[:3])
        more = f" and {len(claims) - 3} more" if len(claims) > 3 else ""
        yield (
            f"  note: {some}{more} cannot be confirmed on {len(r.seeds)} seeds, whatever they show; register {needed} or more"
            " with --seeds"
        )
    yield f"next: {command}    ({n_runs} runs: what the claims need, and nothing else)"


def equal_tests(r: Registration) -> Iterator[str]:
    """Of the claims that were not registered, since another is their test, a line each two rules."""
    of: dict[tuple[str, str], list[str]] = {}
    for rule, cell, arm, reading, kept in r.equal:
        of.setdefault((rule, kept), []).append(f"{cell}, {arm}: {reading}")
    for (rule, kept), places in of.items():
        some = "; ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        yield f"{rule} of {some} is the same test on the same seeds as {kept}, which is registered; it counts once"


def confirmed(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """The verdict on every claim."""
    for v in verdicts:
        c = v.claim
        held = f"{as_p('p', v.p)}, after Holm {v.p_holm:.2g}, " if isfinite(v.p) else ""
        yield f"  {v.verdict:<14} {c.rule} {c.cell}, {c.arm}: {c.reading} ({held}{v.n_pairs} fresh seeds{_left_out(v.notes)})"


def _left_out(notes: Sequence[str]) -> str:
    return f"; left out: {', '.join(notes)}" if notes else ""


def _of(unit: str) -> str:
    return "" if unit in SILENT_UNITS else f" ({unit})"
