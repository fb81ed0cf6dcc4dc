"""What a worker is told by hand: looked at before anything is written, and how its runs stand in the end."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..config import ConfigError, Execution, nearest, validate
from ..objects import address_of
from ..store import RunFolder, StoreError, StudyFolder, is_fingerprint
from . import ledger
from .executor import Task


def execution_of(text: str) -> Execution:
    """What `--execution` says.

    Raises:
        ConfigError: when it is no JSON object, or not of fields of Execution.
    """
    return validate(Execution, json_object("--execution", text), "execution.")


def json_object(option: str, text: str) -> dict[str, Any]:
    """What an option says.

    Raises:
        ConfigError: when it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{option} {text}: cannot be read as JSON ({error})"]) from None
    if not isinstance(value, dict):
        raise ConfigError([f"{option} {text}: expected a JSON object, such as '{{}}'"])
    return value


def say(line: str, to: int = 2) -> None:
    """A line on stderr, or what was it; of ranks that share a run the first alone."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.flush()
        os.write(to, line.encode() + b"\n")


def by_hand(task: Task, go: Callable[[Task], int]) -> int:
    """Let `go` carry out what somebody typed, if it can be; returns the exit code. What is done already is no failure; runs that
    are damaged, or have lost their run.json, are left out, and the others go on."""
    try:
        folder = _found(task)
        runs = [folder.run(name) for name in task.fingerprints]
        stderr = os.dup(2)  # a worker takes it
        states = {run.fingerprint: ledger.DAMAGED if _lost(run) else ledger.state_of(run) for run in runs}
    except StoreError as error:
        say(f"gatelab: {error}")
        return 2
    whole = tuple(name for name in task.fingerprints if states[name] != ledger.DAMAGED)
    is_done = all(states[name] in ledger.FINISHED for name in whole)
    code = 0 if is_done else go(replace(task, fingerprints=whole))
    with suppress(StoreError):
        folder.refresh()
    for run in runs:
        say(f"gatelab: {_standing(run)}", stderr)
    return code or (2 if not whole else int(len(whole) < len(runs)))


def _found(task: Task) -> StudyFolder:
    """The study of a task that was given by hand.

    Raises:
        StoreError: a folder that holds no study, or not these runs.
    """
    if address_of(task.folder) is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise StoreError(
            f"{task.folder}: ranks that torchrun starts share a folder; `gatelab run` starts them for an object store"
        )
    folder = StudyFolder.open(task.folder)
    there = sorted({entry["fingerprint"] for entry in folder.study()["plan"]})
    for name in task.fingerprints:
        if name not in there and (not is_fingerprint(name) or _lost(folder.run(name))):
            hint = nearest(name, there) or (f"; one that it has is {there[0]}" if there else "")
            raise StoreError(f"{folder.address}: has no run {name!r}{hint}")
    return folder


def _lost(run: RunFolder) -> bool:
    """Whether a run has no configuration."""
    return not (run.path / "run.json").exists()


def _standing(run: RunFolder) -> str:
    """How a run stands, for whoever started its worker by hand."""
    if _lost(run):
        missing = f"{run.path / 'run.json'} is missing; `gatelab run` of the study, not of its folder, writes it again"
        return f"{run.fingerprint}: {ledger.DAMAGED} ({missing})"
    state = ledger.state_of(run)
    if state == ledger.DAMAGED:
        return f"{run.fingerprint}: {state} ({ledger.damage_of(run)})"
    if state in ledger.FINISHED:
        return f"{run.fingerprint}: {state}"
    last = ledger.last_attempt(run)
    if state == "running":
        return f"{run.fingerprint}: held by process {last.pid} on {last.host}"
    if last is None:
        return f"{run.fingerprint}: {state}"
    return f"{run.fingerprint}: {state} ({last.message}); {run.path / 'log.txt'} has more"
