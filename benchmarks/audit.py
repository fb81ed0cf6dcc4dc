"""What is wrong with a study that was carried out while processes were killed, told from its files and from the machine.

Each check gives a sentence for each thing that is wrong, and none where all is well.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from gatelab.config import Run, validate
from gatelab.record import Row
from gatelab.store import RunFolder, StudyFolder
from gatelab.study import ledger

Ends = dict[str, str]  # the state that each run must come to, by fingerprint
# What makes up a run's result, to the byte.
RESULT = ("rows.jsonl", "items.jsonl", "weights.safetensors")
_COORDINATES = tuple(name for name in Row.__dataclass_fields__ if name not in ("value", "unit"))


def wrong_ends(folder: StudyFolder, ends: Ends) -> Iterator[str]:
    """Runs that are lost, or came to another end than they must."""
    for _, run in folder.planned():
        state, expected = ledger.state_of(run), ends[run.fingerprint]
        if state != expected:
            last = ledger.last_attempt(run)
            yield f"{run.fingerprint}: is {state}, expected {expected}: {last.message if last else 'never begun'}"


def done_twice(folder: StudyFolder) -> Iterator[str]:
    """Runs with more than one last word, or that were begun after it."""
    for _, run in folder.planned():
        outcomes = Counter(attempt["outcome"] for attempt in run.attempts())
        n = sum(outcomes[state] for state in (*ledger.FINISHED, "failed"))
        if n > 1:
            yield f"{run.fingerprint}: {n} attempts say how it ended"
        if run.done() is None:
            continue
        ended = (run.path / "done.json").stat().st_mtime
        late = [a["number"] for a in run.attempts() if datetime.fromisoformat(a["started"]).timestamp() > ended]
        if late:
            yield f"{run.fingerprint}: attempt {late[0]} began after it was done"


def bad_rows(folder: StudyFolder) -> Iterator[str]:
    """Finished runs that lack a row of a step or a look, or have one twice."""
    for _, run in folder.planned():
        done = run.done()
        if done is not None:
            yield from (f"{run.fingerprint}: {problem}" for problem in _row_problems(run, done))


def _row_problems(run: RunFolder, done: dict[str, Any]) -> Iterator[str]:
    text = run.rows_path.read_text(encoding="utf-8")
    try:
        rows = [json.loads(line) for line in text.splitlines()]
    except json.JSONDecodeError:
        yield "has a line that is no row"
        return
    if not text.endswith("\n") or {row["run"] for row in rows} != {run.fingerprint}:
        yield "its last line is cut, or it has rows of another run"
    twice = [key for key, n in Counter(tuple(row.get(c) for c in _COORDINATES) for row in rows).items() if n > 1]
    if twice:
        yield f"has {twice[0][3]} of step {twice[0][1]} twice"
    config = validate(Run, run.config())
    last = max((row["step"] for row in rows if row["metric"] == "diverged"), default=config.train.steps)
    for metric in ("loss", "grad_norm", "lr"):
        steps = [row["step"] for row in rows if row["metric"] == metric and row["source"] == "train"]
        # Of the step in which the loss was no longer a number it is written as well.
        expected = [s for s in range(1, last + 1) if s % config.probe.every == 0 or s == last]
        if steps != expected:
            yield f"has {metric} of {len(steps)} steps, expected {len(expected)} from {expected[0]} to {last} in order"
    if done["status"] == "done":
        looked = sorted({row["step"] for row in rows if row["metric"] == "val_loss"})
        if looked != config.probe_steps():
            yield f"was looked at after steps {looked}, expected {config.probe_steps()}"


def differing(folder: StudyFolder, whole: StudyFolder) -> Iterator[str]:
    """Runs of an undisturbed study whose results, or the words of whose failure, are others here."""
    for _, run in whole.planned():
        here = folder.run(run.fingerprint)
        for name in RESULT:
            if _bytes(here.path / name) != _bytes(run.path / name):
                yield f"{run.fingerprint}: its {name} differs from that of the undisturbed run"
        a, b = ledger.last_attempt(here), ledger.last_attempt(run)
        if run.done() is None and (a and a.message.replace(str(folder.path), "")) != (
            b and b.message.replace(str(whole.path), "")
        ):
            yield f"{run.fingerprint}: failed with other words than the undisturbed run"


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def halves(folder: StudyFolder) -> list[Path]:
    """Half-written files, told by their names."""
    return [path for path in sorted(folder.path.rglob("*")) if re.fullmatch(r"\..+\.tmp", path.name)]


def left_in_folder(folder: StudyFolder) -> Iterator[str]:
    """Half-written files, and what finished runs do not need any more."""
    yield from (f"{path.relative_to(folder.path)}: half a file" for path in halves(folder))
    for _, run in folder.planned():
        if run.done() is not None:
            yield from (f"{run.fingerprint}: done, and has {p.name}" for p in run.path.glob("checkpoint*"))


def leases_left(folder: StudyFolder) -> Iterator[str]:
    """Attempts that were never closed, each a lease or what looks like one; all but a run's newest must be closed too."""
    for _, run in folder.planned():
        for attempt in run.attempts():
            if attempt["outcome"] == "running":
                yield f"{run.fingerprint}: attempt {attempt['number']} still says running"
        numbers = sorted(int(path.stem) for path in (run.path / "attempts").glob("*.json"))
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"{run.fingerprint}: attempts {numbers}, expected 1, 2, … without a gap"
        started = [attempt["started"] for attempt in run.attempts()]
        if any(a > b for a, b in pairwise(started)):
            yield f"{run.fingerprint}: its attempts began out of order"


def processes(mark: str) -> list[int]:
    """Of this machine's processes those that were started, directly or not, with `mark` in an environment variable."""
    out = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                is_marked = mark.encode() in (entry / "environ").read_bytes()
            except OSError:
                continue  # it has ended meanwhile, or is somebody else's
            if is_marked and ledger.process_start(int(entry.name)) is not None:
                out.append(int(entry.name))
    return out


def orphans(mark: str) -> Iterator[str]:
    """Processes that are still there."""
    for pid in processes(mark):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        yield f"process {pid} is still there: {words[:100]}"


def shared() -> set[str]:
    """Shared memory and semaphores of this machine by name, POSIX's and System V's, the latter also by id."""
    found = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}
    for kind in ("sem", "shm", "msg"):
        table = Path("/proc/sysvipc") / kind
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        found |= {f"{kind} {line.split()[1]}" for line in lines}
    return found


def left_outside(temporary: Path, before: set[str]) -> Iterator[str]:
    """What is in the folder for temporary files, and shared memory or semaphores that were not there before. The folder that
    torch keeps for a user's compiled code is as it should be."""
    for path in (p for p in sorted(temporary.rglob("*")) if not p.name.startswith("torchinductor_")):
        yield f"{path.relative_to(temporary)}: left in the folder for temporary files"
    yield from (f"{name}: was not there before" for name in sorted(shared() - before))
