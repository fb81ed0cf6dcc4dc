"""What was planned and not run: runs of the studies that come with Gatelab of which a folder of results has no rows.

A study's rows lie in its archive or folder, which the caller has read; or in a CSV file of its runs, or of their seeds, in the
folder of its name, a run a line. Where they lie elsewhere is a line of `KEPT`.
"""

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError, Run, Text, canonical, validate
from ..study.study import Study, built_in, load_study

KEPT = {"backcopy-longer": "backcopy-phases/longer.csv"}
_FILES = ("runs.csv", "seeds.csv")
_READ = ("bos", "document_mask")  # how a text is read, whichever it is

Key = tuple[str, str, int]  # cell, arm, seed


@dataclass(frozen=True, slots=True)
class Open:
    """Of a study `n_open` of `n_runs` runs have not been made; `command` makes them, `note` says what there is of them."""

    study: str
    question: str
    n_open: int
    n_runs: int
    command: str
    note: str = ""


def still_open(
    results: Path, stored: Mapping[str, Mapping[Key, int]], otherwise: Mapping[str, Collection[Key]] | None = None
) -> list[Open]:
    """Of every built-in study; `stored` {its name: {a run that its folder has planned: steps}}, whose own open ones are no part of
    this. A run of fewer steps than the study's is not that run; nor are those {name: runs} that read their data `otherwise`, which
    are not among the stored."""
    out = []
    for name in built_in():
        study = load_study(name)
        made = stored[name] if name in stored else _in_files(study, results)
        if made is None:
            continue
        runs = list(_planned(study))
        missing = [key for key in runs if key not in made or made[key] < _steps(study, key)]
        cut = [key for key in missing if key in made]
        unlike = [key for key in missing if key in (otherwise or {}).get(name, ())]
        said = ", ".join(dict.fromkeys(f"{made[key]:,} of {_steps(study, key):,} steps" for key in cut))
        if missing:
            notes = [f"made shorter: {len(cut)}, {said}"] if cut else []
            notes += [f"made on data that were read otherwise: {len(unlike)}"] if unlike else []
            out.append(Open(name, study.question, len(missing), len(runs), _command(study, missing), "; ".join(notes)))
    return out


def otherwise(study: Mapping[str, Any]) -> frozenset[str]:
    """The cells of a study, as its study.json has it, that are of texts and read them in another way than the cells of the built-in
    study that have these names, as where one hides other documents; which texts is the user's to say."""
    if study["name"] not in built_in():
        return frozenset()
    there, out = load_study(study["name"]).cells, set()
    for cell in study["cells"]:
        try:
            run = validate(Run, dict(cell.get("base") or {}))  # what it does not state is as it was then
        except ConfigError:
            continue
        own = there.get(cell["name"])
        if own is not None and isinstance(own.data, Text) and isinstance(run.data, Text):
            one, other = (canonical(data) for data in (own.data, run.data))
            if any(one[name] != other[name] for name in _READ):
                out.add(cell["name"])
    return frozenset(out)


def _planned(study: Study) -> Iterator[Key]:
    for cell in study.cells:
        for arm in study.arms_of(cell):
            yield from ((cell, arm.name, seed) for seed in study.seed_values)


def _steps(study: Study, key: Key) -> int:
    return study.cells[key[0]].train.steps


def _in_files(study: Study, results: Path) -> dict[Key, int] | None:
    """{a run that is done and whose rows are kept without a folder: its steps}; None where what is kept is no list of runs."""
    names = [KEPT[study.name]] if study.name in KEPT else [f"{study.name}/{file}" for file in _FILES]
    file = next((results / n for n in names if (results / n).is_file()), None)
    if file is None:
        return None if (results / study.name).is_dir() else {}
    out = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            key = (row.get("cell", next(iter(study.cells))), row["arm"], int(row["seed"]))
            if key[0] in study.cells and (row.get("status") or "done") == "done":
                out[key] = int(row.get("steps") or _steps(study, key))
    return out


def _command(study: Study, missing: Sequence[Key]) -> str:
    """With the cells, where one pattern has those that are missing and no other."""
    open_cells = list(dict.fromkeys(cell for cell, *_ in missing))
    words = ["gatelab run", study.name]
    first, last = min(open_cells), max(open_cells)
    shared = first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
    if len(open_cells) < len(study.cells) and not any(c.startswith(shared) for c in study.cells if c not in open_cells):
        words.append(f"'cell={shared}*'")
    return " ".join(words)
