"""Every gate there is: the product of all axes without what is refused, and a small selection that covers it.

Notable: numbers take one value each besides their absence, one that some activations refuse as a start (`init`) and one
that most need a bias for (`around`). The selection holds every pair of values of two axes that any gate has.
"""

from collections.abc import Callable
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np

from gatelab.config import ACTIVATIONS, SITES, SOURCES, ConfigError, GateSpec

AXES: dict[str, tuple[Any, ...]] = {
    "site": tuple(SITES),
    "granularity": ("elementwise", "headwise"),
    "sharing": ("specific", "shared"),
    "form": ("mul", "add", "forget"),
    "activation": tuple(ACTIVATIONS),
    "source": tuple("first:3" if word == "first" else word for word in SOURCES),
    "rank": (None, 2),
    "mlp": (None, 3),
    "bias": (False, True),
    "init": ("random", 0.5),
    "around": (None, 0.75),
}
NUMBERS = ("rank", "mlp", "init", "around")
STARTS = ("init", "around")


@cache
def attempts() -> tuple[tuple[dict[str, Any], GateSpec | str], ...]:
    """Every combination of the axes: its fields, and the gate, or what was said against it."""
    all_fields = [dict(zip(AXES, values, strict=True)) for values in product(*AXES.values())]
    return tuple((fields, _attempt(fields)) for fields in all_fields)


def _attempt(fields: dict[str, Any]) -> GateSpec | str:
    try:
        return GateSpec(**fields)
    except ConfigError as error:
        (problem,) = error.problems
        return problem.removeprefix("GateSpec: ")


@cache
def every_gate() -> tuple[GateSpec, ...]:
    """All gates, in the order of the axes."""
    return tuple(found for _, found in attempts() if isinstance(found, GateSpec))


def without(*axes: str) -> tuple[GateSpec, ...]:
    """All gates that have their default on these axes."""
    default = {axis: GateSpec.model_fields[axis].default for axis in axes}
    return tuple(g for g in every_gate() if all(getattr(g, axis) == value for axis, value in default.items()))


def core() -> tuple[GateSpec, ...]:
    """All gates without numbers, and a cover of all axes: what is always tested."""
    return tuple(dict.fromkeys((*without(*NUMBERS), *pairwise(every_gate()))))


def rest() -> tuple[GateSpec, ...]:
    """All others."""
    known = set(core())
    return tuple(g for g in every_gate() if g not in known)


def pairs(spec: GateSpec) -> set[tuple[str, Any, str, Any]]:
    """The values of every two axes."""
    return {(a, getattr(spec, a), b, getattr(spec, b)) for a, b in combinations(AXES, 2)}


def values(spec: GateSpec) -> set[tuple[str, Any]]:
    """The value of every axis."""
    return {(axis, getattr(spec, axis)) for axis in AXES}


@cache
def pairwise(gates: tuple[GateSpec, ...]) -> tuple[GateSpec, ...]:
    """A few of the gates that have every pair that any of them has."""
    return _cover(gates, pairs)


@cache
def one_of_each(gates: tuple[GateSpec, ...]) -> tuple[GateSpec, ...]:
    """Fewer still, that have every value that any of them has."""
    return _cover(gates, values)


def _cover(gates: tuple[GateSpec, ...], of: Callable[[GateSpec], set[Any]]) -> tuple[GateSpec, ...]:
    """Greedy, the first of equals, hence always the same."""
    has = [of(g) for g in gates]
    column = {one: i for i, one in enumerate(sorted(set().union(*has), key=repr))}
    is_there = np.zeros((len(gates), len(column)), dtype=np.float32)
    for row, own in enumerate(has):
        is_there[row, [column[one] for one in own]] = 1
    missing, chosen = np.ones(len(column), dtype=np.float32), []
    while missing.any():
        best = int((is_there @ missing).argmax())
        chosen.append(gates[best])
        missing[is_there[best] > 0] = 0
    return tuple(chosen)
