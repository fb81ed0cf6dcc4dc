"""In which layers the gates are: all, a third of them, or those that are named.

A third of n layers is n/3 to the nearest whole number, one at least: of two layers one, of four one, of five two.
"""

from collections.abc import Callable
from typing import Any

from .base import nearest

GateLayers = str | tuple[int, ...]

# A word, and the layers of a stack of n blocks that it means.
PLACES: dict[str, Callable[[int], range]] = {
    "all": range,
    "first-third": lambda n: range(_third(n)),
    "last-third": lambda n: range(n - _third(n), n),
}


def _third(n: int) -> int:
    return max(1, round(n / 3))


def parse_layers(value: Any) -> GateLayers:
    """A word of `PLACES`, or numbers of layers in order, each once; one number may stand alone.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, str):
        if value in PLACES:
            return value
        hint = nearest(value, list(PLACES))
        raise ValueError(f"{value!r}: expected {', '.join(PLACES)}, or numbers of layers such as (0,2){hint}")
    numbers = [value] if isinstance(value, int) else value
    if not isinstance(numbers, list | tuple) or not numbers or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"{value!r}: expected {', '.join(PLACES)}, or numbers of layers from 0 such as (0,2)")
    return tuple(sorted(set(numbers)))


def gated(layers: GateLayers, depth: int) -> tuple[int, ...]:
    """The layers of a stack of `depth` blocks that have its gates."""
    return tuple(PLACES[layers](depth)) if isinstance(layers, str) else layers


def shown(layers: GateLayers) -> str:
    """As it is written on the command line."""
    return layers if isinstance(layers, str) else f"({','.join(map(str, layers))})"


def check_layers(layers: GateLayers, depth: int, *, has_gate: bool, stack: str = "") -> None:
    """Refuses layers that are not there, all of them under another name than `all`, and a place for gates that are not.

    Raises:
        ValueError: saying which.
    """
    if layers == "all":
        return
    of = f"{depth} layer{'s' if depth > 1 else ''}{f' of {stack}' if stack else ''}"
    if not has_gate:
        raise ValueError(
            f"gate_layers={shown(layers)} says where gates are, and there is none; leave it out, or state a gate"
        )
    there = gated(layers, depth)
    if there[-1] >= depth:
        raise ValueError(f"gate_layers={shown(layers)}: there are {of}, 0 to {depth - 1}; name some of these")
    if len(there) == depth:
        raise ValueError(f"gate_layers={shown(layers)} of {of} are all; leave it out, or take more layers")
