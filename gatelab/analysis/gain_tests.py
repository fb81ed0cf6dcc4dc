"""Tests by how much of a gate's effect on the loss another way to have it keeps: half of it at least, or less.

The other way is an arm of the cell (begun smaller without a gate, a gate that reads no token, one in half of the layers, one that
begins open) or each arm's own best learning rate. Seed by seed it is the other way's effect minus half of the gate's, in the
direction of the gate's; both are against the baseline of the same seed, so the three are told together. Where the gate's own
effect is not seen at 5% in these very runs there is nothing to share, and a test is undecided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from .anomalies.evidence import LUCK, Comparison, Evidence
from .causes import LEVEL, LOSS, Decision, Ledger, Test, above_zero, decided
from .other_ways import Way
from .student import Estimate, estimate, p_two_sided
from .to_run import anew, seeds_more

Seeds = Mapping[int, float]
SHARE = 0.5  # of the gate's effect


def keeps_half(way: Way, *, predicts_half: bool = True) -> Test:
    """The way's arm has at least half of the gate's effect on the loss, or, where not `predicts_half`, less."""
    words = way.words

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = Decision(words, "what is trained", _predicts(predicts_half), reading=LOSS)
        evidence, own = ledger.evidence, ledger.models.get((cell, arm), {})
        base = ledger.models.get((cell, evidence.baseline), {})
        others = {a: m for (c, a), m in ledger.models.items() if c == cell and a not in (arm, evidence.baseline)}
        other = next((a for a, m in others.items() if way.is_it(m, own, base)), None)
        if other is None:
            missing = way.arm(own)
            return replace(found, **({"arms": [missing]} if missing.startswith("Arm(") else {"to_do": [missing]}))
        refused = [evidence.refused[cell, a] for a in (other, arm) if (cell, a) in evidence.refused]
        if refused:
            return replace(found, to_do=refused)
        none, gate, there = (evidence.comparable_runs(LOSS, cell, a) for a in (evidence.baseline, arm, other))
        seeds = [s for s in gate if s in none and s in there]
        if len(seeds) < 2:
            return replace(found, n=len(seeds), to_do=seeds_more(ledger, [cell]))
        effects = ({s: gate[s] - none[s] for s in seeds}, {s: there[s] - none[s] for s in seeds})
        found = replace(found, test=f"{words}: {other} beside {arm}")
        return _shared(found, evidence, cell, effects, (arm, other), predicts_half)

    return Test(test)


def at_own_rates() -> Test:
    """Of the effect at this cell's learning rate less than half is left where each arm stands at its own best, by the mean loss of
    the very seeds that are compared. A best rate at an end of the ladder may be a better one beyond: where that would favour the
    other answer nothing is decided."""

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        words = "each arm at its own best learning rate"
        found = Decision(words, "the learning rate", _predicts(False), reading=LOSS)
        evidence, cells = ledger.evidence, [cell, *ledger.evidence.at_other_rates(cell)]
        if len(cells) < 2:
            base = ledger.bases.get(cell, {}).get("optim", {}).get("lr")
            if base is None:
                return replace(
                    found, to_do=["cells at other learning rates; this study does not say what its own have"]
                )
            rates = f"optim.lr=[{','.join(f'{rate:.3g}' for rate in (base / 3, base, base * 3))}]"
            return replace(found, to_do=anew(ledger, cell, rates, "best-lr", base))
        refused = [evidence.refused[c, arm] for c in cells if (c, arm) in evidence.refused]
        if refused:
            return replace(found, to_do=refused)
        if evidence.not_pooled:
            return replace(found, to_do=[f"cells of one version of the code: {evidence.not_pooled}"])
        runs = {(c, a): evidence.comparable_runs(LOSS, c, a) for c in cells for a in (evidence.baseline, arm)}
        seeds = [s for s in runs[cell, arm] if s in runs[cell, evidence.baseline]]
        if len(seeds) < 2:
            return replace(found, n=len(seeds), to_do=seeds_more(ledger, cells))
        rates = {c: evidence.rates[c][1] for c in cells}
        # The ladder of each is of the rates at which all its runs are done.
        done = {a: [c for c in cells if runs[c, a].keys() >= {*seeds}] for a in (evidence.baseline, arm)}
        best = {a: _best(ladder, runs, a, seeds) for a, ladder in done.items()}
        here = {s: runs[cell, arm][s] - runs[cell, evidence.baseline][s] for s in seeds}
        there = {s: runs[best[arm], arm][s] - runs[best[evidence.baseline], evidence.baseline][s] for s in seeds}
        said = ", ".join(f"{a} at {rates[c]:g}" for a, c in best.items())
        out = _shared(found, evidence, cell, (here, there), (f"at {rates[cell]:g}", said), False)
        # Of an effect for the better a baseline with a better rate beyond would have less of it left, a gate with one more.
        is_gain = fmean(here.values()) < 0
        flatters = {
            "refuted": evidence.baseline if is_gain else arm,
            "supported": arm if is_gain else evidence.baseline,
        }
        side = flatters.get(out.verdict)
        # A rate at which runs were lost was tried; one whose runs have not all ended was not.
        lost = {(o.cell, o.arm) for o in evidence.outcomes if o.status == "diverged"} | {*evidence.lost}
        ladder = [rates[c] for c in cells if side is not None and (c in done[side] or (c, side) in lost)]
        if ladder and rates[best[side]] in (min(ladder), max(ladder)):
            why = f"the best rate of {side} is an end of the ladder, and one beyond it could say otherwise"
            return replace(out, verdict="undecided", numbers=f"{out.numbers}; {why}")
        return out

    return Test(test)


def _best(cells: Sequence[str], runs: Mapping[Comparison, Seeds], arm: str, seeds: Sequence[int]) -> str:
    """Of the cells at which all these runs are done, that with the lowest mean loss."""
    return min(cells, key=lambda c: fmean(runs[c, arm][s] for s in seeds))


def _predicts(half: bool) -> str:
    return f"has {'at least half' if half else 'less than half'} of the gate's effect on the held-out loss"


def _shared(
    found: Decision,
    evidence: Evidence,
    cell: str,
    effects: tuple[Seeds, Seeds],
    names: tuple[str, str],
    predicts_half: bool,
) -> Decision:
    """The verdict on effects by seed, of the gate and of the other way."""
    whole, other = effects
    unit = evidence.readings[LOSS].unit
    gate = estimate([*whole.values()], scale=max(map(abs, whole.values())))
    if not gate.sigma > 0 or p_two_sided(gate) >= LEVEL:
        numbers = (
            f"no effect of the gate is seen in these runs ({gate.mean:+.4g} {unit}, {gate.n} seeds): nothing to share"
        )
        return replace(found, verdict="undecided", numbers=numbers, n=gate.n)
    sign = 1 if gate.mean > 0 else -1
    beyond = [sign * (other[s] - SHARE * whole[s]) for s in whole]
    # Seeds that agree by luck spread too little for t, where runs may come in two states.
    is_luck = evidence.may_split(LOSS, cell) and LUCK**gate.n >= LEVEL

    def rule(e: Estimate) -> str:
        return "undecided" if is_luck else above_zero(e)

    out = decided(found, beyond, rule, f"{unit} beyond half", sign=1 if predicts_half else -1)
    means = [fmean(of.values()) for of in effects]
    told = [f"{name} {mean:+.4g}" for name, mean in zip(names, means, strict=True)]
    few = f"; {gate.n} seeds that agree may do so by luck" if is_luck else ""
    share = f"{means[1] / means[0]:.0%} of it"
    return replace(out, numbers=f"{told[0]}, {told[1]} {unit}: {share}; {out.numbers}{few}")
