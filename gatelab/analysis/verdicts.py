"""The verdict on a finding, and the sentence that says it to somebody who trains models.

The numbers come ready in a `Finding`; only words and digits are chosen here. A sentence stands alone: it names the
cell, the arm, the size with its interval, how many seeds, and whatever was left out.
"""

from collections.abc import Sequence
from math import floor, isnan, log10

from ..record import Finding, Metric
from .shares import Share

EQUIVALENCE_LEVEL = 0.05

# Units that would only disturb a sentence: the number says enough.
SILENT_UNITS = ("", "1", "fraction", "ratio", "share")

# How the sentence of an unclear effect ends.
SMALLEST = "the smallest effect that could have been seen with 80% power"
NO_EFFECT_COULD = "no effect of any size could have been seen with 80% power"


def verdict(f: Finding, *, fdr: float) -> str:
    """'lower', 'higher', 'equivalent', 'unclear' or 'untestable'; that a comparison is 'refused' is not for its numbers to say.

    An effect is seen when q is within the accepted false share (primary) or p below 1 - confidence (secondary); only
    where none is seen may the arms be called equivalent.
    """
    if isnan(f.p):
        return "untestable"
    if f.q <= fdr if f.primary else f.p < 1 - f.confidence:
        return "lower" if f.effect < 0 else "higher"
    if f.p_equivalence is not None and f.p_equivalence < EQUIVALENCE_LEVEL:
        return "equivalent"
    return "unclear"


def sentence(
    f: Finding,
    metric: Metric,
    *,
    excluded: Sequence[str] = (),
    shares: Sequence[Share | None] = (),
    needed: int | None = None,
) -> str:
    """The finding in plain English; for a bimodal metric with the shares of (baseline, arm).

    `needed` says that the test was one of seeds changing regime, and how many of them would have decided; the shares
    then come first, else after the means.
    """
    left_out = f" Left out: {', '.join(excluded)}." if excluded else ""
    if needed is not None and f.verdict != "untestable":
        return f"{f.cell}: {_shares(f, metric, shares)}; {_regimes(f, needed)}{left_out}"
    say = {"untestable": _untestable, "equivalent": _equivalent, "unclear": _unclear}.get(f.verdict, _seen)
    label = f"mean {metric.label}" if metric.bimodal else metric.label
    after = f" {_capital(_shares(f, metric, shares))}." if any(shares) else ""
    return f"{f.cell}: {say(f, label)}{after}{left_out}"


def refusal(f: Finding, why: str) -> str:
    """The sentence of a comparison that may not be made; `why` begins with 'refused: '."""
    return f"{f.cell}: {f.arm} is {why}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _seen(f: Finding, label: str) -> str:
    verb = "lowers" if f.verdict == "lower" else "raises"
    nothing = ""
    if f.p_equivalence is not None and f.p_equivalence < EQUIVALENCE_LEVEL:
        nothing = f" The difference is inside the {compact(f.equivalence)}{_unit(f)} declared to count as nothing."
    return f"{f.arm} {verb} the {label} by {_size(f)} ({_judged(f)}{_interval(f)}, {_evidence(f)}).{nothing}"


def _unclear(f: Finding, label: str) -> str:
    smallest = NO_EFFECT_COULD if isnan(f.detectable) else f"{SMALLEST} is {compact_size(f)}"
    if f.primary and f.p < 1 - f.confidence:
        verb = "lower" if f.effect < 0 else "raise"
        return (
            f"{f.arm} may {verb} the {label} by {_size(f)} ({_interval(f)}, {_evidence(f)}), but among the"
            f" primary tests of this study that is not enough; {smallest}."
        )
    return (
        f"no effect seen at this power: with {f.arm} the {label} differs by {number(f.effect, _places(f))}{_unit(f)}"
        f" ({_interval(f, signed=True)}, {_evidence(f)}); {smallest}."
    )


def _equivalent(f: Finding, label: str) -> str:
    return (
        f"{f.arm} leaves the {label} as it is, to within the {compact(f.equivalence)}{_unit(f)} that count as nothing:"
        f" it differs by {number(f.effect, _places(f))}{_unit(f)}"
        f" ({_interval(f, signed=True)}, {_seeds(f.n_pairs)}, equivalence {as_p('p', f.p_equivalence)})."
    )


def _untestable(f: Finding, label: str) -> str:
    if f.n_pairs < 2:
        count = "no pair of runs" if f.n_pairs == 0 else "only one pair of runs"
        return (
            f"the effect of {f.arm} on the {label} cannot be tested: {count} finished, and a test needs two."
            f" Retry what failed or add seeds."
        )
    if f.effect == 0:
        return (
            f"{f.arm} and {f.baseline} have the same {label} in each of {_seeds(f.n_pairs)}; without any spread"
            f" there is nothing to test. Check that the two arms differ, and that the metric can move here."
        )
    return (
        f"with {f.arm} the {label} is {'lower' if f.effect < 0 else 'higher'} by exactly"
        f" {compact(abs(f.effect))}{_unit(f)} in each of {_seeds(f.n_pairs)}; without any spread between seeds there is"
        f" no interval and no p. Add seeds, or measure something finer."
    )


def _shares(f: Finding, metric: Metric, shares: Sequence[Share | None]) -> str:
    event = metric.event or f"{metric.label} is above {metric.threshold:g}"
    clauses = []
    for name, s in zip((f.baseline, f.arm), shares, strict=True):
        exact = "" if clauses else f"exact {_percent(f.confidence)} interval "
        clauses.append(
            f"in {s.k} of {_seeds(s.n)} of {name} ({exact}{_percent(s.low)} to {_percent(s.high)})"
            if s
            else f"in no finished run of {name}"
        )
    return f"{event} {', '.join(clauses)}"


def _regimes(f: Finding, needed: int) -> str:
    if f.verdict in ("lower", "higher"):
        fewer = "fewer" if f.verdict == "lower" else "more"
        return f"{f.arm} has {fewer} such runs than chance explains (exact test, {_evidence(f)})."
    many = f"at least {needed} seeds that all change the same way would be needed"
    return f"{_seeds(f.n_pairs)} cannot decide whether {f.arm} changes that (exact test, {as_p('p', f.p)}); {many}."


def _judged(f: Finding) -> str:
    if f.direction == "neutral":
        return ""
    return "better; " if f.direction.startswith(f.verdict) else "worse; "


def _size(f: Finding) -> str:
    return f"{number(abs(f.effect), _places(f))}{_unit(f)}"


def compact_size(f: Finding) -> str:
    """The smallest effect that could have been seen, with its unit; `none` where none of any size could."""
    return "none" if isnan(f.detectable) else f"{compact(f.detectable)}{_unit(f)}"


def _interval(f: Finding, *, signed: bool = False) -> str:
    """In the direction of the statement: 'lowers by 0.021 (0.012 to 0.030)'; signed as arm minus baseline."""
    low, high = (f.low, f.high) if signed or f.effect >= 0 else (-f.high, -f.low)
    return f"{_percent(f.confidence)} interval {number(low, _places(f))} to {number(high, _places(f))}"


def _evidence(f: Finding) -> str:
    judged = as_p("q", f.q) if f.primary else f"{as_p('p', f.p)}, exploratory"
    return f"{_seeds(f.n_pairs)}, {judged}"


def _seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


def as_p(name: str, value: float) -> str:
    """A p or q in words."""
    return f"{name} < 0.001" if value < 0.001 else f"{name} = {value:.2g}"


def _unit(f: Finding) -> str:
    return "" if f.unit in SILENT_UNITS else f" {f.unit}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if share > 0.99 else f"{100 * share:.0f}%"


def _places(f: Finding) -> int:
    """Decimals at which the half-width of the interval keeps one digit, or two when the first is a 1 or a 2."""
    return places((f.high - f.low) / 2)


def places(scale: float) -> int:
    """Decimals worth printing for a number known to about `scale`."""
    if not 0 < scale < float("inf"):
        return 3
    exponent = floor(log10(scale))
    return max(0, (1 if scale / 10**exponent < 3 else 0) - exponent)


def number(x: float, decimals: int) -> str:
    """`x` with so many decimals and no negative zero; in powers of ten where the zeros would be many."""
    return f"{x:z.{decimals}f}" if decimals <= 6 else f"{x:.1e}"


def compact(x: float) -> str:
    """`x` with two significant digits."""
    return number(x, max(0, 1 - floor(log10(abs(x))))) if x else "0"
