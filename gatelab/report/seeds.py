"""The runs of a study as a table, a line a finished run: its last looks at the main metrics, to five significant digits."""

from collections.abc import Container, Iterable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from .tables import csv_text

if TYPE_CHECKING:
    from ..analysis.paired import Outcome

SEEDS, FRESH = "seeds.csv", "fresh-seeds.csv"
_ALWAYS = (
    "val_loss",
    "first_token_mass",
    "value_drain",
    "massive_max",
)  # with those that a study declared before looking


def seeds_files(
    outcomes: "Sequence[Outcome]", metrics: Sequence[Mapping[str, Any]], kept: Container[int]
) -> dict[str, str]:
    """{name: text} of seeds.csv, and of fresh-seeds.csv with the seeds that a confirmation `kept` to itself, where they are run.

    Args:
        outcomes: final values of all runs.
        metrics: those of study.json, in its order.
    """
    names = [m["name"] for m in metrics if m["primary"] or m["name"] in _ALWAYS]
    parts = {
        SEEDS: [o for o in outcomes if o.seed not in kept],
        FRESH: [o for o in outcomes if o.seed in kept and o.status == "done"],
    }
    return {name: seeds_csv(own, names) for name, own in parts.items() if own}


def seeds_csv(outcomes: "Iterable[Outcome]", names: Sequence[str]) -> str:
    """Of the runs that are done, by cell, arm and seed; a metric that no run has is no column, and what one run lacks is empty."""
    runs: dict[tuple[str, str, int], dict[str, str]] = {}
    for o in outcomes:
        if o.status == "done" and o.metric in names:
            runs.setdefault((o.cell, o.arm, o.seed), {}).update(
                {o.metric: f"{o.value:.5g}"} if isfinite(o.value) else {}
            )
    had = [name for name in names if any(name in values for values in runs.values())]
    places = ("cell", "arm", "seed")
    return csv_text([*places, *had], (dict(zip(places, key, strict=True)) | of for key, of in sorted(runs.items())))
