"""Tests by what a gate's effect depends on: cells that differ in a key, arms that differ in the value at which the gate starts."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..config.gate import GateSpec, parse_gates
from ..config.gate_layers import GateLayers
from .causes import LEVEL, NOTHING, Decision, Ledger, Test, besides
from .heterogeneity import Dependence, differences, fit

# Values that a start is suggested at, the first two that the activation takes.
_STARTS = (0.5, 0.95, 0.75, 0.25)


@dataclass(frozen=True)
class Start:
    """One gate without the value at which it starts, with all else of its model; that value, None where none is stated."""

    gate: tuple[str, str]
    value: float | None
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
    is_around = spec.around is not None
    value = spec.around if is_around else spec.init
    plain = spec.model_copy(update={"init": "random", "around": None}).slug
    rest, layers = besides(model, "gate"), model.get("gate_layers", "all")
    return Start(
        (f"{plain} {'around' if is_around else 'init'}", str(rest)),
        None if value == "random" else float(value),
        spec,
        layers if isinstance(layers, str) else tuple(layers),
    )


def cells_by(key: str, word: Callable[[Mapping[str, Any]], str], predicts: str) -> Test:
    """Cells that differ in a key: the gate's effect on the loss depends on it (partial F). Refuted where the whole interval
    of its slope a doubling counts as nothing. `word` makes such cells of a cell's configuration."""

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = Decision(key, "cells that differ in it", predicts)
        if key not in ledger.factors and not any(k.startswith(f"{key}.") for k in ledger.factors):
            try:
                words = word(ledger.bases[cell])
            except KeyError:
                return replace(found, to_do=[f"cells that differ in {key}; this study does not say what its own have"])
            there = f"{ledger.folder}-{key.rpartition('.')[2]}"
            ask = f"gatelab find {there} --explain CELL"
            return replace(found, to_do=[f"gatelab run {ledger.study} {words} --out {there}, then {ask}"])
        groups = differences(ledger.evidence, "val_loss", arm)
        of_key = [d for d in fit(groups, ledger.factors) if key in _keys(d.factor)]
        if not of_key:
            return replace(
                found, to_do=["no cells with two pairs each of the held-out loss, made by one version of the code"]
            )
        return depending(found, of_key[0], len(ledger.factors.get(key, ())))

    return Test(test)


def arms_by_start(predicts: str) -> Test:
    """Arms of the cell with this gate that start at other values: its effect on the loss depends on the value (partial F), and
    does not where the whole interval of its slope a doubling counts as nothing."""

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        found = Decision("the gate's initial value", "arms that differ in it", predicts)
        own = started(ledger.models.get((cell, arm), {}))
        alike = {
            a: started(m) for (c, a), m in ledger.models.items() if c == cell and (c, a) not in ledger.evidence.refused
        }
        starts = {a: s.value for a, s in alike.items() if s and own and s.value is not None and s.gate == own.gate}
        pairs = {a: ledger.evidence.pairs("val_loss", cell, a) for a in starts} if _has_loss(ledger) else {}
        groups = {
            a: dict(zip(p.seeds, p.differences.tolist(), strict=True)) for a, p in pairs.items() if len(p.seeds) > 1
        }
        if len({starts[a] for a in groups}) < 2:
            return replace(found, to_do=_other_starts(ledger, own, set(starts.values())))
        (dependence,) = fit(groups, {"initial value": {a: starts[a] for a in groups}})
        said = ", ".join(f"{a} {starts[a]:g}" for a in sorted(groups, key=lambda a: starts[a]))
        return depending(replace(found, test=f"the gate's initial value: {said}"), dependence, len(groups))

    return Test(test)


def _has_loss(ledger: Ledger) -> bool:
    return "val_loss" in ledger.evidence.readings


def _other_starts(ledger: Ledger, own: Start | None, there: Container[float]) -> list[str]:
    """The arms that would differ in the initial value alone; none of a model without one gate."""
    arms = [] if own is None else [(value, slug) for value, slug in own.others() if value not in there]
    if not arms:
        return ["an arm with one gate that can start at a value"]
    where = {} if own.layers == "all" else {"model.gate_layers": own.layers}
    changes = {value: {"model.gate": slug} | where for value, slug in arms}
    words = ", ".join(f"Arm('start-{value:g}', {change})" for value, change in changes.items())
    return [f"add {words} to the arms of the study's file, then: gatelab run {ledger.study} --out {ledger.folder}"]


def depending(found: Decision, d: Dependence, n: int) -> Decision:
    """The verdict of a factor's partial F."""
    if d.notes or " = " in d.factor:
        why = d.notes[0] if d.notes else f"the cells differ alike in {d.label}: they cannot be told apart"
        return replace(found, verdict="undecided", numbers=why)
    is_slope = d.slope == d.slope
    is_nothing = is_slope and max(abs(d.slope_low), abs(d.slope_high)) < NOTHING
    numbers = f"F({d.df:g}, {d.df_error:g}) = {d.f:.3g}, p = {d.p:.2g}, against {d.against}" + (
        f"; {d.slope:+.3g} nats a doubling ({d.slope_low:+.3g} to {d.slope_high:+.3g})" if is_slope else ""
    )
    return replace(
        found, verdict="refuted" if is_nothing else "supported" if d.p < LEVEL else "undecided", numbers=numbers,
        estimate=d.slope, low=d.slope_low, high=d.slope_high, n=n,
    )  # fmt: skip


def _keys(merged: str) -> list[str]:
    """The keys of a factor; those below a key count as it."""
    names = merged.split(" = ")
    return [*names, *(n.rpartition(".")[0] for n in names)]


def at(base: Mapping[str, Any], key: str) -> Any:
    value: Any = base
    for part in key.split("."):
        value = value[part]
    return value
