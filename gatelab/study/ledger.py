"""The run ledger: a run's state is derived from its folder, and every attempt at it is one file with one writer.

`attempts/0001.json`, `0002.json`, … are claimed in order by exclusive creation, so of several claimants exactly one
gets the next number, and the newest attempt is the lease: while its outcome is `running` and its owner lives, nobody
else may touch the run. A take-over is the claim of the next number; no file ever changes hands, so a claimant that was
slow to act cannot displace a newer lease by mistake (it could with one lease file that is renamed). The owner beats by
touching its attempt; one that finds a newer number than its own has been displaced and leaves at once. How a file is
created exclusively and what tells its age is the place's affair (place.py): a folder's, or an object store's.

Notable: an owner on this machine is judged by its process (pid and start time, against reuse), never by its beats, so
a laptop that slept loses nothing. One elsewhere is judged by its last beat against a file touched just now on the same
file system: nobody's clock is trusted.
"""

import errno
import math
import os
import re
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..store import DamagedError, RunFolder, StoreError, check_keys, read_json
from .executor import Ended
from .place import FOLDER, Place
from .processes import here, process_start

BEAT_S = 1.0
# Sixty missed beats: longer than a network file system hides a change (attribute caches: up to 60 s, usually 3) or
# a virtual machine pauses while it moves; shorter than the time it takes to go and look what happened.
STALE_S = 60.0

FINISHED = ("done", "diverged")
# A file that the state is read from is cut, or was edited; nothing is done to such a run.
DAMAGED = "damaged"
STATES = ("planned", "running", *FINISHED, "stopped", "timeout", "lost", "oom", "failed", "disk-full", DAMAGED)


# What helps where an attempt is damaged.
_MEND = "Remove it, and the run stands as its other files say"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a run; the newest one is its lease.

    `outcome` is `running`, one of `STATES`, or `reset` (asked to be planned again). `machine` tells boots and process
    namespaces of one host apart, `process` is the start time of `pid`; times are ISO 8601 in UTC. `micro_batch` is what
    was asked for (0: the whole batch).
    """

    number: int
    owner: str
    outcome: str
    host: str
    machine: str
    pid: int
    process: str
    driver: int | None
    started: str
    ended: str | None = None
    message: str = ""
    traceback: str = ""
    exit_code: int | None = None
    signal: str | None = None
    resumed_from_step: int | None = None
    micro_batch: int = 0


def state_of(run: RunFolder) -> str:
    """One of `STATES`, from done.json, else from the newest attempt and whether its owner lives.

    Raises:
        StoreError: when another version of Gatelab has written what this one does not know.
    """
    try:
        return _state_of(run)
    except DamagedError:
        return DAMAGED


def damage_of(run: RunFolder) -> str:
    """Which file of a damaged run is, and what to do; empty of any other."""
    try:
        _state_of(run)
    except DamagedError as error:
        return str(error)
    return ""


def _state_of(run: RunFolder) -> str:
    done = run.done()
    run.check_config()
    if done is not None:
        run.check_rows()
        return done["status"]
    last = last_attempt(run)
    if last is None or last.outcome == "reset" or last.outcome in FINISHED:
        return "planned"
    if last.outcome == "running":
        return "running" if is_live(run, last) else "lost"
    if last.outcome not in STATES:
        raise StoreError(
            f"{_path(run, last.number)}: ended as {last.outcome!r}, which this version of Gatelab does not know; go on with the "
            "version that wrote it"
        )
    return last.outcome


def last_attempt(run: RunFolder) -> Attempt | None:
    """The newest attempt, or None."""
    numbers = _numbers(run)
    return _read(_path(run, numbers[-1])) if numbers else None


def n_attempts(run: RunFolder) -> int:
    """The number of attempts, resets included."""
    numbers = _numbers(run)
    return numbers[-1] if numbers else 0


def attempts_since_reset(run: RunFolder) -> list[Attempt]:
    """The attempts that still count, oldest first: those after the newest `reset`; one that is damaged does not."""
    out: list[Attempt] = []
    for number in reversed(_numbers(run)):
        try:
            attempt = _read(_path(run, number))
        except DamagedError:
            continue
        if attempt.outcome == "reset":
            break
        out.insert(0, attempt)
    return out


def is_live(run: RunFolder, attempt: Attempt) -> bool:
    """Whether the owner of a running attempt still lives."""
    if (attempt.host, attempt.machine) == here():
        return attempt.process == process_start(attempt.pid)
    # Also a beat from the future is none: the file system's clock went back, and a living owner beats again by it.
    return abs(_at(run).age_s(_path(run, attempt.number))) <= STALE_S


def claim(
    run: RunFolder, owner: str, *, driver: int | None = None, micro_batch: int = 0, known: int | None = None
) -> Attempt | None:
    """Begin an attempt, which is to take the lease; None when the run is done, held by a living owner, or just taken.

    The attempt of a dead owner is closed as lost. With `known`, None too when there are more attempts than these: somebody
    else's may have ended in a way after which nobody should begin one.

    Raises:
        OSError: when the folder cannot be written to.
    """
    (run.path / "attempts").mkdir(parents=True, exist_ok=True)
    _at(run).look(run.path)
    # In this order: whoever finished after the first look still held the lease at it, or takes the number below.
    last = last_attempt(run)
    if last is not None and last.outcome == "running" and is_live(run, last):
        # A store's answer may have been lost as this process began it.
        return last if run.objects is not None and (last.owner, last.pid) == (owner, os.getpid()) else None
    if run.done() is not None or known not in (None, last.number if last else 0):
        return None
    mine = _begin(last, owner, "running", driver=driver, micro_batch=micro_batch)
    if not _publish(run, mine):
        return None
    _sweep(run, mine.number)
    if last is not None and last.outcome == "running":
        # The lease is ours whether or not the predecessor's file can be tidied up.
        with suppress(OSError):
            _write(run, replace(last, outcome="lost", ended=_now(), message="its process or its machine is gone"))
    return mine


def last_beat(run: RunFolder, attempt: Attempt) -> float:
    """When the owner of an attempt beat last, by the clock of the file system; not-a-number when its file is gone."""
    try:
        return _at(run).beaten(_path(run, attempt.number))
    except FileNotFoundError:
        return math.nan


def beat(run: RunFolder, attempt: Attempt) -> bool:
    """Show that the owner lives; False when the run has been taken over or its folder is gone."""
    try:
        return _at(run).beat(_path(run, attempt.number), _path(run, attempt.number + 1))
    except OSError as error:
        # A file system that hiccups is no reason to throw work away; the next beat tries again.
        return error.errno != errno.ESTALE


def end(
    run: RunFolder, attempt: Attempt, outcome: str, *, message: str = "", traceback: str = "", exit_code: int = 0
) -> None:
    """The owner's last word, which releases the lease. An attempt that others closed meanwhile stays as it is."""
    _at(run).look(run.path)
    current = _read(_path(run, attempt.number))
    if current.outcome == "running" and current.owner == attempt.owner:
        ended = replace(current, outcome=outcome, ended=_now(), message=message, traceback=traceback)
        _write(run, replace(ended, exit_code=exit_code))


def conclude(run: RunFolder, owner: str, outcome: str, ended: Ended, *, message: str, known: int) -> None:
    """The driver's word on a task that has ended without its own: its attempt is closed, or one is written for it.

    A `timeout` also renames the owner's `stopped`, because only the driver knows why it asked. A run that somebody else
    has had since the `known` attempts is left alone, and so is one that is done: `close_done` says how it ended.
    """
    _at(run).look(run.path)
    last = last_attempt(run)
    how: dict[str, Any] = {"message": message, "exit_code": ended.exit_code, "signal": ended.signal, "ended": _now()}
    if run.done() is not None:
        return
    if last is not None and last.owner == owner:
        if last.outcome == "running" or (outcome, last.outcome) == ("timeout", "stopped"):
            _write(run, replace(last, outcome=outcome, **how))
    elif (last.number if last else 0) == known:
        (run.path / "attempts").mkdir(parents=True, exist_ok=True)
        _publish(run, replace(_begin(last, owner, outcome, driver=os.getpid()), **how))


def close_done(run: RunFolder) -> bool:
    """Close the attempt of an owner that was ended between the result and its last word, as the result says; False while an
    owner lives, to whom the folder belongs."""
    done = run.done()
    try:
        last = last_attempt(run)
    except DamagedError:
        return done is not None  # the result is whole; of a run that was unpacked an attempt says little
    if last is None or done is None or last.outcome != "running":
        return done is not None
    if is_live(run, last):
        return False
    _write(run, replace(last, outcome=done["status"], ended=_now(), message="its process ended before it could say so"))
    return True


def reset(run: RunFolder) -> bool:
    """Plan the run again: what is in its folder stays, so it resumes. False when somebody claimed it just now."""
    _at(run).look(run.path)
    return _publish(run, _begin(last_attempt(run), uuid.uuid4().hex, "reset", driver=os.getpid()))


def note_resume(run: RunFolder, step: int) -> None:
    """Record in this process's own running attempt that the run goes on from a checkpoint of `step`.

    A run that is carried out by a plain call, without a worker, has no attempt to record it in.

    Raises:
        ValueError: when another process holds the run.
    """
    last = last_attempt(run)
    if last is None or last.outcome != "running":
        return
    mine = _begin(None, "", "running", driver=None)
    key = attrgetter("host", "machine", "pid", "process")
    if key(last) != key(mine):
        raise ValueError(f"run {run.fingerprint}: not leased by this process; only the owner records where it resumed")
    _write(run, replace(last, resumed_from_step=step))


def _begin(last: Attempt | None, owner: str, outcome: str, *, driver: int | None, micro_batch: int = 0) -> Attempt:
    host, machine = here()
    return Attempt(
        number=last.number + 1 if last else 1,
        owner=owner,
        outcome=outcome,
        host=host,
        machine=machine,
        pid=os.getpid(),
        process=process_start(os.getpid()) or "",
        driver=driver,
        started=_now(),
        micro_batch=micro_batch,
    )


def _at(run: RunFolder) -> Place:
    return FOLDER if run.objects is None else run.objects


def _publish(run: RunFolder, attempt: Attempt) -> bool:
    """Write a new attempt under its number unless the number is taken."""
    return _at(run).create(_path(run, attempt.number), attempt.owner, asdict(attempt))


def _sweep(run: RunFolder, number: int) -> None:
    """Remove half-written files of killed owners and of those who wanted the same number; the lease's holder may."""
    halves = [p for p in run.path.glob(".*.tmp") if not p.name.startswith(".run.json.")]
    claims = [p for p in (run.path / "attempts").glob(".[0-9]*.tmp") if int(p.name[1:].partition(".")[0]) <= number]
    for path in halves + claims:
        with suppress(OSError):
            path.unlink()


def _numbers(run: RunFolder) -> list[int]:
    try:
        names = os.listdir(run.path / "attempts")
    except FileNotFoundError:
        return []
    return sorted(int(name[:-5]) for name in names if re.fullmatch(r"\d+\.json", name))


def _path(run: RunFolder, number: int) -> Path:
    return run.path / "attempts" / f"{number:04d}.json"


def _read(path: Path) -> Attempt:
    known = {f.name for f in fields(Attempt)}
    try:
        value = read_json(path)
        check_keys(path, value, {"number": int, "outcome": str})
        return Attempt(**{k: v for k, v in value.items() if k in known})
    except DamagedError as error:
        raise DamagedError(f"{error} {_MEND}") from None
    except TypeError as error:
        raise DamagedError(f"{path}: is no attempt of a run ({error}); was it edited? {_MEND}") from None


def _write(run: RunFolder, attempt: Attempt) -> None:
    _at(run).replace(_path(run, attempt.number), asdict(attempt))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
