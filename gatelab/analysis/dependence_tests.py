"""Tests by what a gate's effect depends on: cells that differ in a key, arms that differ in the value at which the gate starts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import log
from typing import Any

from ..config.gate import GateSpec, parse_gates
from ..config.gate_layers import GateLayers
from .anomalies.evidence import LUCK, Comparison
from .causes import LEVEL, Decision, Ledger, Test, besides
from .heterogeneity import Dependence, differences, fit, left_out, merged
from .student import critical_t
from .to_run import anew, seeds_more
from .two_states import State, depending_states, mark, state_of

# Values that a start is suggested at, the first two that the activation takes.
_STARTS = (0.5, 0.95, 0.75, 0.25)
_AT_ZERO = {
    "sigmoid": 0.5, "ns_sigmoid": 0.75, "two_sigmoid": 1.0, "silu": 0.0, "identity": 0.0, "softplus": log(2), "tanh": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Start:
    """One gate without the value at which it starts and the bias to start from, with all else of its model; that value, and
    whether it is stated: random weights of mean zero start around the activation of zero. None: neither."""

    gate: tuple[str, str]
    value: float | None
    is_stated: bool
    spec: GateSpec
    layers: GateLayers = "all"

    def others(self) -> Iterator[tuple[float, str]]:
        """Two values that it could start at, and the slugs."""
        found = 0
        for value in _STARTS:
            word = "around" if self.spec.has_projection and self.spec.init == "random" else "init"
            bias = {"bias": True} if self.spec.has_projection else {}
            try:
                slug = GateSpec(**{**self.spec.__dict__, **bias, "init": "random", "around": None, word: value}).slug
            except ValueError:
                continue
            found += 1
            if found <= 2:
                yield value, slug


def started(model: Mapping[str, Any]) -> Start | None:
    """How the gate of a model's configuration starts; None of a model without one gate."""
    slugs = parse_gates(model.get("gate"))
    if len(slugs) != 1:
        return None
    spec = GateSpec.parse(slugs[0])
    is_stated = spec.start_logit is not None
    is_around = spec.around is not None or (not is_stated and spec.has_projection)
    value = spec.init if spec.around is None else spec.around
    plain = spec.model_copy(update={"bias": False, "init": "random", "around": None}).slug
    rest, layers = besides(model, "gate"), model.get("gate_layers", "all")
    return Start(
        (f"{plain} {'around' if is_around else 'init'}", str(rest)),
        _around_zero(spec) if value == "random" else float(value),
        is_stated,
        spec,
        layers if isinstance(layers, str) else tuple(layers),
    )


def _around_zero(spec: GateSpec) -> float | None:
    """The activation of a logit of zero: untrained logits are zero, or of mean zero; None where they have the log-sum-exp."""
    return None if spec.source == "lse" else _AT_ZERO.get(spec.activation)


def cells_by(key: str, word: Callable[[Mapping[str, Any]], str], what: str) -> Test:
    """Cells that differ in a key: the gate's effect on the ledger's reading depends on it, by partial F over all cells, or of
    one with two states by McNemar's exact test on the cells that differ from this one in nothing else. `word` makes such cells
    of a cell's configuration."""

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found, state = _asked(ledger, key, "cells that differ in it", what)
        if key not in ledger.factors and not any(k.startswith(f"{key}.") for k in ledger.factors):
            try:
                words = word(ledger.bases[cell])
                own = at(ledger.bases[cell], key)
            except KeyError:
                return replace(found, to_do=[f"cells that differ in {key}; this study does not say what its own have"])
            return replace(found, to_do=anew(ledger, cell, words, key.rpartition(".")[2], own))
        if ledger.evidence.not_pooled:
            return replace(found, to_do=[f"cells of one version of the code: {ledger.evidence.not_pooled}"])
        if state is not None:
            return _cells_with_states(found, ledger, state, key, (cell, arm))
        groups = differences(ledger.evidence, ledger.reading, arm)
        of_key = [d for d in fit(groups, ledger.factors) if key in _keys(d.factor)]
        if not of_key:
            found = replace(found, to_do=[f"no cells with two pairs each of the {ledger.label} that differ in {key}"])
            return _without(found, left_out(ledger.evidence, ledger.reading, arm))
        seeds = {seed for of_cell in groups.values() for seed in of_cell}
        without = left_out(ledger.evidence, ledger.reading, arm)
        return depending(_without(found, without), of_key[0], len(groups), _scale(ledger, cell, len(seeds)))

    return Test(test)


def arms_by_start(what: str) -> Test:
    """Arms of the cell with this gate that start at other values: its effect on the ledger's reading depends on the value, by
    partial F, or of one with two states by McNemar's exact test on their runs of one seed."""

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found, state = _asked(ledger, "the gate's initial value", "arms that differ in it", what)
        own, evidence = started(ledger.models.get((cell, arm), {})), ledger.evidence
        alike = {a: started(m) for (c, a), m in ledger.models.items() if c == cell and (c, a) not in evidence.refused}
        starts = _values(own, arm, alike)
        if len(set(starts.values())) < 2:
            return _other_starts(found, own, starts)
        said = ", ".join(f"{a} {starts[a]:g}" for a in sorted(starts, key=lambda a: starts[a]))
        found = replace(found, test=f"the gate's initial value: {said}")
        without = {a: why for a in starts if (why := left_out(evidence, ledger.reading, a).get(cell))}
        starts, found = {a: value for a, value in starts.items() if a not in without}, _without(found, without)
        if len(set(starts.values())) < 2:
            return replace(found, verdict="undecided", numbers="no two starts are left")
        if state is not None:
            ordered = sorted(starts, key=lambda a: starts[a])
            return depending_states(found, ledger, state, {starts[a]: (cell, a) for a in ordered})
        pairs = {a: evidence.pairs(ledger.reading, cell, a) for a in starts if ledger.reading in evidence.readings}
        groups = {
            a: dict(zip(p.seeds, p.differences.tolist(), strict=True)) for a, p in pairs.items() if len(p.seeds) > 1
        }
        if len({starts[a] for a in groups}) < 2:
            return replace(found, to_do=seeds_more(ledger, [cell]))
        (dependence,) = fit(groups, {"initial value": {a: starts[a] for a in groups}})
        seeds = {seed for of_arm in groups.values() for seed in of_arm}
        return depending(found, dependence, len(groups), _scale(ledger, cell, len(seeds)))

    return Test(test)


def _values(own: Start | None, arm: str, alike: Mapping[str, Start | None]) -> dict[str, float]:
    """{arm: value} of the starts of one gate; of those that state none the gate's own, or the first, where none states it."""
    same = {a: s for a, s in alike.items() if own and s and s.value is not None and s.gate == own.gate}
    starts = {a: s.value for a, s in same.items() if s.is_stated}
    for a in sorted(same, key=lambda a: a != arm):
        if same[a].value not in starts.values():
            starts[a] = same[a].value
    return {a: starts[a] for a in same if a in starts}


def _asked(ledger: Ledger, test: str, manipulates: str, what: str) -> tuple[Decision, State | None]:
    """What is predicted of the ledger's reading, and its state where it has two."""
    metric = ledger.evidence.readings.get(ledger.reading)
    state = state_of(metric) if metric else None
    asked = f"whether {state.words}" if state else f"the effect on the {ledger.label}"
    return Decision(test, manipulates, f"{asked} depends on {what}", reading=mark(ledger.reading, state)), state


def _cells_with_states(found: Decision, ledger: Ledger, state: State, key: str, where: Comparison) -> Decision:
    """Of the cells that differ from this one in the key alone."""
    (cell, arm), refused = where, ledger.evidence.refused
    without = left_out(ledger.evidence, ledger.reading, arm)
    found = _without(found, without)
    if cell in without:
        return replace(found, verdict="undecided", numbers=f"most runs of this cell are lost ({without[cell]})")
    cells = [c for c in ledger.evidence.cells if (c, arm) not in refused and c not in without]
    factors = merged(ledger.factors, cells)
    name = next((n for n in factors if key in _keys(n)), "")
    if " = " in name:
        why = f"the cells differ alike in {name}: they cannot be told apart"
        return replace(found, verdict="undecided", numbers=why)
    others = [of for other, of in factors.items() if other != name]
    alike = [c for c in cells if all(of[c] == of[cell] for of in others)]
    if not name or len(alike) < 2:
        return replace(found, to_do=[f"cells that differ from {cell} in {key} and in nothing else"])
    levels = {factors[name][c]: (c, arm) for c in alike}
    ordered = sorted(levels, key=lambda level: (isinstance(level, str), level))
    return depending_states(found, ledger, state, {level: levels[level] for level in ordered})


def _without(found: Decision, left_out: Mapping[str, str]) -> Decision:
    """The test with what has no part in it, for most runs are lost there."""
    said = "; ".join(f"{where} ({why})" for where, why in left_out.items())
    return replace(found, test=f"{found.test}, without those most runs of which are lost: {said}") if said else found


def _other_starts(found: Decision, own: Start | None, there: Mapping[str, float]) -> Decision:
    """The arms that would differ in the initial value alone; none of a model without one gate."""
    arms = [] if own is None else [(value, slug) for value, slug in own.others() if value not in there.values()]
    if not arms:
        return replace(found, to_do=["an arm with one gate that can start at a value"])
    where = {} if own.layers == "all" else {"model.gate_layers": own.layers}
    changes = {value: {"model.gate": slug} | where for value, slug in arms}
    return replace(found, arms=[*there, *(f"Arm('start-{value:g}', {change})" for value, change in changes.items())])


@dataclass(frozen=True, slots=True)
class Scale:
    """A reading's unit, the difference in it that counts as nothing (None: none was declared), and the least p that its seeds
    may give: where runs may come in two states, seeds that agree by luck spread too little for F."""

    unit: str
    bound: float | None
    least_p: float = 0.0


def _scale(ledger: Ledger, cell: str, n_seeds: int) -> Scale:
    luck = LUCK**n_seeds if ledger.evidence.may_split(ledger.reading, cell) else 0.0
    return Scale(ledger.evidence.readings[ledger.reading].unit, ledger.bound, luck)


def depending(found: Decision, d: Dependence, n: int, scale: Scale) -> Decision:
    """The verdict of a factor's partial F over its levels: supported where it is seen, however small; refuted where it is not,
    and no two levels differ by what counts: the interval of each difference lies within the bound, which is wrong in 2.5% at
    most, since one of them would have to miss. The number is the largest difference. Of three levels or more its interval is
    Bonferroni's over all differences, for it is the largest of several."""
    if d.notes or " = " in d.factor:
        why = d.notes[0] if d.notes else f"the cells differ alike in {d.label}: they cannot be told apart"
        return replace(found, verdict="undecided", numbers=why)
    p, most = max(d.p, scale.least_p), max(d.changes, key=lambda c: abs(c.effect))
    half = (most.high - most.low) / 2 * _widened(len(d.changes), d.df_error)
    low, high = most.effect - half, most.effect + half
    is_nothing = scale.bound is not None and d.furthest < scale.bound
    several = len(d.changes) > 1
    numbers = (
        f"F({d.df:g}, {d.df_error:g}) = {d.f:.3g}, p = {p:.2g}, against {d.against}; {most.effect:+.3g} ({low:+.3g} to"
        f" {high:+.3g}) {scale.unit}{' at most' if several else ''} from {_level(most.start)} to {_level(most.end)}"
    )
    if d.slope == d.slope:
        bend = (
            f", which {'is no line' if d.p_bend < LEVEL else 'may be a line'} (p = {d.p_bend:.2g})" if several else ""
        )
        numbers += f"; {d.slope:+.3g} {scale.unit} a doubling{bend}"
    if is_nothing:
        numbers += (
            f"; {'every such difference' if several else 'it is'} within the {scale.bound:g} that count as nothing"
        )
    verdict = "supported" if p < LEVEL else "refuted" if is_nothing else "undecided"
    return replace(found, verdict=verdict, numbers=numbers, estimate=most.effect, low=low, high=high, n=n)


def _widened(n_changes: int, df: float) -> float:
    """What an interval of one difference at 95% is multiplied by to hold all of so many (Bonferroni)."""
    return critical_t(df, LEVEL / n_changes) / critical_t(df, LEVEL)


def _level(value: str) -> str:
    """A number shortly, a word as it is."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value


def _keys(merged: str) -> list[str]:
    """The keys of a factor; those below a key count as it."""
    names = merged.split(" = ")
    return [*names, *(n.rpartition(".")[0] for n in names)]


def at(base: Mapping[str, Any], key: str) -> Any:
    value: Any = base
    for part in key.split("."):
        value = value[part]
    return value
