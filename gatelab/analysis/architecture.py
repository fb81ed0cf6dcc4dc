"""The architecture as one factor of cells: what it brings along can be told neither from it nor from one another."""

from collections.abc import Mapping
from typing import Any

NAME = "architecture"
# What an architecture brings: its stacks and their depths, its experts or the layer that they replace, what it predicts.
_PARTS = (
    "model.arch", "model.moe", "model.mlp", "model.d_ff", "model.n_layers", "model.n_encoder_layers", "objective",
)  # fmt: skip

Factors = Mapping[str, Mapping[str, Any]]


def by_architecture(factors: Factors, models: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The factors with `architecture` in the place of those of its parts that vary with it alone, and the keys of these. Where
    cells have one architecture, or an architecture and another key that it brings are crossed, they stay as they are.

    Args:
        factors: {dotted key: {cell: level}} of the keys in which the cells differ.
        models: {cell: the model's configuration}.
    """
    arch = {cell: str(model.get("arch", "decoder")) for cell, model in models.items()}
    if len(set(arch.values())) < 2:
        return dict(factors), []
    kinds = _kinds(factors, arch, {cell: bool(model.get("moe")) for cell, model in models.items()})
    brought = [key for key in factors if _is_part(key) and _varies_with(kinds, factors[key])]
    out: dict[str, Any] = {}
    for key, levels in factors.items():
        if key not in brought:
            out[key] = levels
        elif NAME not in out:
            out[NAME] = kinds
    return out, brought


def _kinds(factors: Factors, arch: Mapping[str, str], experts: Mapping[str, bool]) -> Mapping[str, str]:
    """{cell: architecture}, with its experts where some architectures have them in other cells than the rest has; where all have
    them alike, or in several shapes, experts are a factor of their own."""
    having: dict[str, set[bool]] = {}
    for cell, name in arch.items():
        having.setdefault(name, set()).add(experts[cell])
    kinds = {cell: f"{name} with experts" if experts[cell] else name for cell, name in arch.items()}
    shapes = [levels for key, levels in factors.items() if f"{key}.".startswith("model.moe.")]
    is_alike = len(set(map(frozenset, having.values()))) == 1
    return arch if is_alike or not all(_varies_with(kinds, levels) for levels in shapes) else kinds


def _is_part(key: str) -> bool:
    return any(f"{key}.".startswith(f"{part}.") for part in _PARTS)


def _varies_with(kinds: Mapping[str, str], levels: Mapping[str, Any]) -> bool:
    """Whether cells of one kind have one level."""
    of: dict[str, set[Any]] = {}
    for cell, kind in kinds.items():
        of.setdefault(kind, set()).add(levels[cell])
    return all(len(found) == 1 for found in of.values())
