"""gatelab plan STUDY: its runs, from a study or from its folder. Nothing is started."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import print_json, refusing, tell

if TYPE_CHECKING:
    from ..analysis.foresight import Foresight
    from ..study.plan import Plan


def plan_study(study: str, assignments: tuple[str, ...], pilot: Path | None, *, is_json: bool) -> int:
    """Print the runs of a study, or of a study's folder; with the spread of a `pilot` what they could see.

    Raises:
        ConfigError, DataError: listing every mistake.
    """
    from .. import lab
    from ..analysis import say
    from ..config import parse_assignments
    from ..terminal import print_records

    if lab.is_folder(study):
        return _folder(study, assignments, pilot, is_json=is_json)
    with refusing():
        planned = lab.plan(study, parse_assignments(assignments))
        seen, notes = ([], []) if pilot is None else _pilot(pilot, planned)
    if warning := lab.baseline_warning(planned):
        tell(f"note: {warning}")
    entries = planned.entries(Path("runs") / planned.study.name)
    if is_json:
        for note in notes:
            tell(f"note: {note}")
        print_json([*entries, *map(asdict, seen)])
        return 0
    print(f"{planned.study.name}: {planned.study.question}")
    for cell, source in planned.sources.items():
        arms = {e["arm"]: _plan_record(e) for e in entries if e["cell"] == cell}
        print_records(list(arms.values()), f"\n{cell}: {source.description}")
    total = sum(e["flops"] for e in entries)
    print(
        f"\n{len(entries)} runs ({len(planned.study.seed_values)} seeds each), {total / 1e12:.3g} TFLOP of training; "
        "nothing was started"
    )
    if pilot is not None:
        print("\n".join(["", *say.foreseen(seen, notes)]))
    return 0


def _folder(place: str, assignments: tuple[str, ...], pilot: Path | None, *, is_json: bool) -> int:
    """What is planned in a study's folder, and the runs that a registered confirmation adds to it."""
    from .. import lab
    from ..config import ConfigError
    from ..store import StudyFolder, check_keys
    from ..study.ledger import FINISHED, state_of
    from ..terminal import print_records

    if words := [*assignments, *([] if pilot is None else [f"--pilot {pilot}"])]:
        raise ConfigError([f"{', '.join(words)}: {place} says what its runs are; name the study, as for `gatelab run`"])
    with refusing():
        there = StudyFolder.open(place, is_light=True)
        content, new = there.study(), lab.not_planned(there)
        path = there.path / "study.json"
        check_keys(path, content, {"cells": list, "seeds": list})
        for cell in content["cells"]:
            check_keys(path, cell, {"name": str, "data": str})
        for entry in content["plan"]:
            check_keys(
                path,
                entry,
                {**dict.fromkeys(("n_parameters", "steps", "tokens", "state_bytes"), int), "flops": int | float},
            )
    entries = [*content["plan"], *(p.entry(there.path) for p in new)]
    if is_json:
        print_json(entries)
        return 0
    print(f"{content['name']}: {content.get('question', '')}")
    for cell in content["cells"]:
        arms = {e["arm"]: _plan_record(e) for e in entries if e["cell"] == cell["name"]}
        print_records(list(arms.values()), f"\n{cell['name']}: {cell['data']}")
    ended = sum(state_of(run) in FINISHED for _, run in there.planned())
    more = f", {len(new)} of them of the confirmation that is registered" if new else ""
    print(
        f"\n{len(entries)} runs{more}, {sum(e['flops'] for e in entries) / 1e12:.3g} TFLOP of training; {ended} have ended, and"
        " nothing was started"
    )
    return 0


def _pilot(folder: Path, planned: "Plan") -> "tuple[list[Foresight], list[str]]":
    from .. import lab

    with lab.reading(folder) as there:
        return lab.pilot(there, planned)


def _plan_record(entry: dict[str, Any]) -> dict[str, Any]:
    """A run's row of the plan; `over` are its parameters minus the baseline's, `MiB` what its training state takes."""
    return {
        "arm": entry["arm"],
        "parameters": entry["n_parameters"],
        "over": entry.get("remainder"),
        "d_ff": entry.get("d_ff"),
        "steps": entry["steps"],
        "tokens": entry["tokens"],
        "MiB": round(entry["state_bytes"] / 2**20, 1),
        "GFLOP": round(entry["flops"] / 1e9),
    }
