"""The commands that carry a comparison out again, as a study's folder has it."""

import glob
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..analysis.to_run import span
from ..config import ConfigError, Run, canonical, parse_assignments, validate
from ..study.study import built_in, load_study

AGAIN = "runs/reproduced"


def again(study: dict[str, Any], cell: str, arm: str, seeds: Sequence[int]) -> list[str]:
    """Of what study.json says: the command that runs a cell's arm and the baseline with these seeds, and the one that asks for
    causes, given where the study was run. A built-in study is named, with the words that make its cell the one of the folder; of
    any other the runs of the first seed have a command each."""
    entries = {(e["arm"], e["seed"]): e for e in study["plan"] if e["cell"] == cell}
    words = words_of(study, cell, arm)
    if words is not None:
        runs = [shlex.join(["gatelab", "run", study["name"], *words, f"seed={span(seeds)}", "--out", AGAIN])]
    else:
        pair = [e for a in (study["baseline"], arm) for s in seeds[:1] if (e := entries.get((a, s))) is not None]
        # A folder holds one such run.
        runs = [e["command"].replace(f"--out {AGAIN}", f"--out {AGAIN}-{e['fingerprint']}") for e in pair]
    where = _folder(next(iter(entries.values()), {}))
    return [*runs, shlex.join(["gatelab", "find", where, "--explain", cell])]


def words_of(study: dict[str, Any], cell: str, arm: str) -> list[str] | None:
    """The words by which the built-in study of this name makes this very comparison; None where it does not."""
    if study["name"] not in built_in():
        return None
    base = next((c.get("base", {}) for c in study["cells"] if c["name"] == cell), {})
    changes = {a["name"]: a.get("changes") for a in study["arms"] if a["name"] in (study["baseline"], arm)}
    words = [f"cell={glob.escape(cell)}", f"arm={glob.escape(arm)}"]
    try:
        there, run = load_study(study["name"]), validate(Run, base)  # what it does not state is as it was then
        if cell in there.cells:
            words += [f"{k}={v}" for k, v in _differences(canonical(there.cells[cell]), canonical(run))]
        made = there.changed(parse_assignments(words))
    except ConfigError:
        return None
    arms = {a.name: {k: str(v) for k, v in a.changes.items()} for a in made.arms}
    is_same = arms == changes and next(iter(arms)) == study["baseline"] and made.match == study.get("match")
    return words if is_same and made.cells.get(cell) == run else None


def _differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, the value after) of what differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            yield from _differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif before != after:
        yield path, after


def _folder(entry: dict[str, Any]) -> str:
    """The folder that a run's command names."""
    words = shlex.split(entry.get("command", ""))
    configs = [word for flag, word in pairwise(words) if flag == "--config"]
    return str(Path(configs[0]).parents[2]) if configs and len(Path(configs[0]).parents) > 2 else "DIR"
