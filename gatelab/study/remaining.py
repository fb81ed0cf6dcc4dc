"""How long a study still takes, from what its runs have really taken; None until something has been measured.

A run keeps `progress.json` while it trains: it stands at `step` of `steps`, and came there from `first_step` in
`seconds`. The rest is laid out on the slots in the plan's order, as the driver will do it, so that one long run at the
end counts in full.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from ..store import RunFolder, StoreError, StudyFolder, read_json

# Below this share of a run, start-up dominates its clock, and a forecast from it would be far too long.
_ENOUGH = 0.02


def remaining_seconds(
    folder: StudyFolder, entries: Iterable[dict[str, Any]], states: Mapping[str, str], *, slots: int, group: int = 1
) -> float | None:
    """Seconds until the runs of `entries` that are running or waiting have ended; None while nothing is known.

    A run that has not started is expected to take what runs of its cell and arm took, else those of its cell, else all
    measured ones in proportion to their FLOPs. Runs that failed are not waited for.

    Args:
        states: by fingerprint, as `ledger.state_of` or a driver's events tell them.
        slots: tasks at a time.
        group: runs in one task.
    """
    entries = list({e["fingerprint"]: e for e in entries}.values())
    progress = {e["fingerprint"]: _progress(folder, e["fingerprint"]) for e in entries}
    whole = {f: p["seconds"] / _trained(p) for f, p in progress.items() if _trained(p) >= _ENOUGH}
    rates = _rates(entries, whole)
    running: list[float] = []
    waiting: dict[tuple[str, str], list[float]] = defaultdict(list)
    for entry in entries:
        state, shape = states[entry["fingerprint"]], (entry["cell"], entry["arm"])
        if state not in ("running", "planned", "stopped"):
            continue
        expected = whole.get(entry["fingerprint"], _expected(entry, rates))
        if expected is None:
            return None
        stands = progress[entry["fingerprint"]]
        left = expected * (1 - stands["step"] / max(1, stands["steps"]))
        (running if state == "running" else waiting[shape]).append(left)
    tasks = [max(runs[i : i + group]) for runs in waiting.values() for i in range(0, len(runs), group)]
    return _makespan(running, tasks, slots, group)


def standing(entry: dict[str, Any], run: RunFolder) -> dict[str, Any] | None:
    """Where a running run is: step of steps, the loss there, tokens a second since it was taken up (None: before its first step);
    None where it has not said so yet."""
    try:
        said = read_json(run.path / "progress.json")
        step, steps, loss = int(said["step"]), int(said["steps"]), float(said["loss"])
        tokens = (step - said["first_step"]) * entry["tokens"] / steps
        return {
            "step": step,
            "steps": steps,
            "loss": loss,
            "tokens_per_s": tokens / said["seconds"] if tokens else None,
        }
    except (StoreError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _progress(folder: StudyFolder, fingerprint: str) -> dict[str, float]:
    try:
        return read_json(folder.run(fingerprint).path / "progress.json")
    except StoreError:
        return {"step": 0, "steps": 1, "first_step": 0, "seconds": 0.0}


def _trained(progress: dict[str, float]) -> float:
    """The share of a run's steps that its `seconds` were spent on."""
    return (progress["step"] - progress["first_step"]) / max(1, progress["steps"])


def _rates(entries: list[dict[str, Any]], whole: dict[str, float]) -> dict[tuple[str, ...], float]:
    """Mean seconds a FLOP of (cell, arm), of (cell,) and of all, where measured."""
    samples: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for entry in entries:
        if entry["fingerprint"] in whole:
            for key in _kin(entry):
                samples[key].append(whole[entry["fingerprint"]] / max(1, entry["flops"]))
    return {key: mean(values) for key, values in samples.items()}


def _expected(entry: dict[str, Any], rates: dict[tuple[str, ...], float]) -> float | None:
    return next((rates[key] * entry["flops"] for key in _kin(entry) if key in rates), None)


def _kin(entry: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(entry["cell"], entry["arm"]), (entry["cell"],), ()]


def _makespan(running: list[float], tasks: list[float], slots: int, group: int) -> float:
    """When the last task ends, each waiting one starting in the first free slot."""
    # Runs of one task end together; without knowing who shares one, the longest remainders are taken to.
    ends = sorted(running, reverse=True)[::group]
    ends += [0.0] * (slots - len(ends))
    heapq.heapify(ends)
    for task in tasks:
        heapq.heappush(ends, heapq.heappop(ends) + task)
    return max(ends, default=0.0)
