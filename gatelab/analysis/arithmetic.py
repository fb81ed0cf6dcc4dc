"""What arms take beside their baseline in arithmetic of a token in training, of a plan's figures.

Of a mixture of experts the operations are those of the experts that are chosen. Plans match arms in weights, not in these.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Range = tuple[float, float]


def a_token(plan: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """{(cell, arm): operations a token}, of cells that train."""
    out: dict[tuple[str, str], float] = {}
    for entry in plan:
        if entry.get("tokens") and entry.get("flops"):
            out.setdefault((entry["cell"], entry["arm"]), entry["flops"] / entry["tokens"])
    return out


def beside_baseline(plan: Iterable[Mapping[str, Any]], baseline: str) -> dict[str, Range]:
    """{arm: the least and the most of its operations a token over the baseline's of the same cell}."""
    found, out = a_token(plan), {}
    for (cell, arm), own in found.items():
        if arm != baseline and (cell, baseline) in found:
            out = joined(out, {arm: (own / found[cell, baseline],) * 2})
    return out


def joined(one: Mapping[str, Range], other: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges of both, of a name that both have from the least to the most."""
    both = {name: (one[name], other[name]) for name in one.keys() & other.keys()}
    return {**one, **other, **{n: (min(a[0], b[0]), max(a[1], b[1])) for n, (a, b) in both.items()}}
