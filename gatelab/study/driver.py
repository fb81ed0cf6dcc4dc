"""What `drive` does: tasks are handed to an executor, and what becomes of their runs is read from the ledger (drive.py says how
they go on)."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from ..config import Execution, Run, validate
from ..store import DamagedError, RunFolder, StoreError, StudyFolder
from . import ledger
from .executor import EXITS, Ended, Executor, Task
from .grouping import group_size, shape_of, stands_at
from .leftovers import clear_done, clear_old
from .place import patiently
from .worker import FULL, disk_is_full, kept

Kind = Literal["submitted", "ended", "left", "state"]

POLL_S = 0.25
# Tasks of one run that may vanish in a drive before their worker begins, as those do that a dying machine's slot is given.
_MOST_UNBEGUN = 10
# The outcomes that a worker may only be able to tell by its exit code.
_BY_EXIT = {EXITS[name]: name for name in ("failed", "oom", "disk-full", "stopped")}


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a run: it was `submitted` to the executor, its task `ended`, it was `left` unstarted, or its
    `state` was read."""

    kind: Kind
    fingerprint: str
    state: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a drive ended. `states` and `messages` (of the last attempts, where there is one) are by fingerprint.

    `elsewhere` are runs that another driver is at; `halted` says why runs were left unstarted, or nothing.
    """

    states: dict[str, str]
    messages: dict[str, str]
    elsewhere: tuple[str, ...]
    halted: str

    @property
    def is_complete(self) -> bool:
        """Whether every run has its result; a divergence is one."""
        return all(state in ledger.FINISHED for state in self.states.values())


def micro_batch_of(run: RunFolder, execution: Execution) -> int | None:
    """Sequences at a time for a run's next attempt (0: the whole batch): half of what ran out of memory, once.

    None when half of it ran out of memory too, or there is no half.
    """
    failed = [a.micro_batch for a in ledger.attempts_since_reset(run) if a.outcome == "oom"]
    if not failed:
        return execution.micro_batch
    half = (failed[0] or run.config()["train"]["batch_size"]) // 2
    return min(half, execution.micro_batch or half) if half and len(failed) == 1 else None


@dataclass(slots=True)
class _Running:
    task: Task
    runs: list[RunFolder]
    stop_at: float  # seconds of time.monotonic
    kill_at: float = float("inf")
    why: str = ""  # timeout or stopped, once it has been asked to stop


class Driver:
    """One drive of the plan's `entries`; `loop` is all of it."""

    def __init__(
        self,
        folder: StudyFolder,
        executor: Executor,
        execution: Execution,
        entries: list[dict[str, Any]],
        on_event: Callable[[Event], None] | None,
        target: str,
        grace_s: float,
    ):
        self._folder, self._executor, self._execution = folder, executor, execution
        self._on_event, self._target, self._grace_s = on_event, target, grace_s
        # One entry a run, in the plan's order: arms that share a configuration share its run.
        self._entries: dict[str, dict[str, Any]] = {}
        for entry in entries:
            self._entries.setdefault(entry["fingerprint"], entry)
        self._pending: list[str] = []
        self._elsewhere: set[str] = set()
        # Of these, runs whose executor lost sight of the worker, which lives: it saves and leaves, or falls silent.
        self._vanished: set[str] = set()
        self._running: dict[str, _Running] = {}
        self._lost: Counter[str] = Counter()
        self._unbegun: Counter[str] = Counter()
        self._began_at: dict[str, int] = {}  # of the last attempt here, the step of its run's checkpoint
        self._shapes: dict[str, str] = {}
        self._halted = ""
        self._look_at = 0.0
        # What could not be written, to a full disk or a folder that is read-only now, or not read, is at least told.
        self._unwritten: dict[str, tuple[str, str]] = {}
        self._unwritable = ""
        self._interrupts: list[int] = []

    def loop(self, interrupts: list[int]) -> None:
        """Until nothing is left to do here, or an interrupt has emptied the slots."""
        self._interrupts = interrupts
        clear_old(self._folder)
        for fingerprint in self._entries:
            self._sort_in(fingerprint, "state")
        while True:
            self._heed()
            while self._pending and not self._halted and len(self._running) < self._executor.slots:
                if not self._submit():
                    break
            if not self._running:
                self._drop_orphans()
                if interrupts or self._halted or not (self._take_back() or self._vanished):
                    return
                if not any(self._is_ready(f) for f in self._pending):
                    time.sleep(POLL_S)  # somebody else is still at these runs, or at what they start from
            if time.monotonic() > self._look_at:
                self._take_back()
            for ended in self._executor.poll(POLL_S) if self._running else []:
                self._settle(ended)

    def _heed(self) -> bool:
        """Ask tasks to leave and end them, as Ctrl-C and the limits of time want it; whether nobody is to be waited for."""
        if self._interrupts:
            self._pending.clear()
            self._ask_to_stop("stopped", self._running.values())
        now, is_forced = time.monotonic(), len(self._interrupts) > 1
        self._ask_to_stop("timeout", [r for r in self._running.values() if now > r.stop_at])
        self._kill([r for r in self._running.values() if is_forced or now > r.kill_at])
        return is_forced

    def abandon(self, interrupts: list[int]) -> None:
        """Let the tasks checkpoint and leave when something went wrong in the driver itself; Ctrl-C cuts it short."""
        self._on_event = None
        self._ask_to_stop("stopped", self._running.values())
        while self._running and not interrupts and time.monotonic() < min(r.kill_at for r in self._running.values()):
            for ended in self._executor.poll(POLL_S):
                self._settle(ended)
        self._kill(self._running.values())

    def summary(self) -> Summary:
        """The states as the ledger has them now."""
        self._refresh(is_due=True)
        states, messages = {}, {}
        for fingerprint in self._entries:
            run = self._folder.run(fingerprint)
            state = states[fingerprint] = self._state_of(run)
            messages[fingerprint] = self._message_of(run, state)
        elsewhere = tuple(f for f in self._entries if f in self._elsewhere and states[f] == "running")
        return Summary(states, {f: m for f, m in messages.items() if m}, elsewhere, self._halted)

    def _refresh(self, *, is_due: bool) -> None:
        """Of a study on an object store, what others wrote; one that does not answer now is asked again."""
        with suppress(StoreError):
            self._folder.refresh(is_due=is_due)

    def _sort_in(self, fingerprint: str, kind: Kind) -> None:
        """Read a run's state, tell it, and queue the run if its policy says so."""
        run = self._folder.run(fingerprint)
        state = self._state_of(run)
        if state in ledger.FINISHED:
            clear_done(run)
        self._tell(kind, fingerprint, state, self._message_of(run, state))
        self._elsewhere.discard(fingerprint)
        if state == "running":
            self._elsewhere.add(fingerprint)
        elif self._is_wanted(run, state, is_first=kind == "state"):
            self._pending.append(fingerprint)

    def _is_wanted(self, run: RunFolder, state: str, *, is_first: bool) -> bool:
        """Whether a run in this state is to be started; `is_first`: it is not this drive that brought it there."""
        if state == "lost" and not is_first:
            # With a newer checkpoint than it began with something came of the attempt, and of the next one more will.
            self._lost[run.fingerprint] += (stands_at(run) or 0) <= self._began_at.get(run.fingerprint, 0)
            return self._lost[run.fingerprint] <= self._execution.lost_retries
        if state == "oom":
            return micro_batch_of(run, self._execution) is not None
        return state in ("planned", "stopped") or (is_first and state in ("lost", "timeout", "disk-full"))

    def _is_ready(self, fingerprint: str) -> bool:
        """Whether the run that this one starts from, if any, has its weights; those of a diverged one are of no use."""
        source = self._entries[fingerprint].get("init_from")
        return source is None or self._state_of(self._folder.run(source)) == "done"

    def _drop_orphans(self) -> None:
        """Leave runs whose source ended without weights; they stay planned, and `retry` of the source frees them."""
        alive = self._elsewhere | {f for f in self._pending if self._is_ready(f)}
        while more := {f for f in self._pending if self._entries[f].get("init_from") in alive} - alive:
            alive |= more
        for fingerprint in [f for f in self._pending if f not in alive]:
            self._pending.remove(fingerprint)
            source = self._entries[fingerprint]["init_from"]
            state = self._state_of(self._folder.run(source))
            self._tell("left", fingerprint, "planned", f"not started: it starts from run {source}, which is {state}")

    def _submit(self) -> bool:
        """Start the next group: pending runs of one shape, of whatever cell and arm, with one micro-batch, at one step. False:
        none is ready."""
        first, group, most = None, [], 1
        known: dict[str, int] = {}
        for fingerprint in list(self._pending):
            if not self._is_ready(fingerprint):
                continue
            run = self._folder.run(fingerprint)
            try:
                # Where runs stand too: of a group that is not at one step all would start over.
                shape = (self._shape(run), micro_batch_of(run, self._execution), stands_at(run))
                fits = most if first is not None else self._execution.group or self._fitting(run)
            except ValueError as error:
                self._leave_out(run, error)
                continue
            if first not in (None, shape):
                continue
            self._pending.remove(fingerprint)
            # Before its state, so that what others do from here on shows.
            n_known = ledger.n_attempts(run)
            if not self._is_wanted(run, self._state_of(run), is_first=True):
                # Another driver was faster.
                self._sort_in(fingerprint, "state")
                continue
            if first is None:
                first, most = shape, fits
            group.append(run)
            self._began_at[run.fingerprint] = shape[2] or 0
            known[fingerprint] = n_known
            if len(group) == most:
                break
        if first is None:
            return False
        execution = {**self._execution.model_dump(mode="json"), "micro_batch": first[1] or 0}
        names = tuple(run.fingerprint for run in group)
        task = Task(self._folder.address, names, execution, target=self._target, grace_s=self._grace_s, known=known)
        stop_at = time.monotonic() + (self._execution.timeout_s or float("inf"))
        self._running[self._executor.submit(task)] = _Running(task, group, stop_at)
        for name in names:
            self._tell("submitted", name, "running")
        return True

    def _leave_out(self, run: RunFolder, error: ValueError) -> None:
        """A run whose configuration is not there, or is none."""
        words = "; ".join(str(error).splitlines())
        path = run.path / "run.json"
        self._unwritten[run.fingerprint] = (ledger.DAMAGED, words if str(path) in words else f"{path}: {words}")
        self._pending.remove(run.fingerprint)
        self._tell("left", run.fingerprint, *self._unwritten[run.fingerprint])

    def _shape(self, run: RunFolder) -> str:
        if run.fingerprint not in self._shapes:
            self._shapes[run.fingerprint] = shape_of(run.config())
        return self._shapes[run.fingerprint]

    def _fitting(self, run: RunFolder) -> int:
        """How many runs like this one train together."""
        return group_size(validate(Run, run.config()), has_gpus=self._executor.has_gpus)

    def _settle(self, ended: Ended) -> None:
        """Close what an ended task left open, and decide how its runs go on."""
        running = self._running.pop(ended.handle)
        for run in running.runs:
            with suppress(OSError):  # what cannot be read now cannot be concluded either, which is told below
                run.look()
            has_vanished = ended.exit_code is None and ended.signal is None
            if has_vanished and self._lives(run, running.task.owner):
                self._vanished.add(run.fingerprint)
            elif has_vanished and not running.why and self._is_unbegun(run, running.task):
                self._sort_in(run.fingerprint, "state")  # as if it had not been submitted
                continue
            elif ended.exit_code not in (EXITS["held"], EXITS["displaced"]):
                self._conclude(run, running, ended)
            self._sort_in(run.fingerprint, "ended")
            if self._state_of(run) == "disk-full" or self._unwritable:
                self._halted = "nothing can be written"  # the count of runs is known below
        if self._halted:
            n = sum(self._state_of(self._folder.run(f)) not in ledger.FINISHED for f in self._entries)
            self._halted = self._says_unwritable(n) if self._unwritable else disk_is_full(n)

    def _says_unwritable(self, n_runs: int) -> str:
        why = f"{self._folder.address} cannot be written ({self._unwritable})"
        return f"{why}: {kept(n_runs)}; make it writable and run the same command again"

    def _is_unbegun(self, run: RunFolder, task: Task) -> bool:
        """Whether no attempt came of a task, which then is no loss of the run; not for ever, since every slot may be so."""
        if ledger.n_attempts(run) != task.known[run.fingerprint]:
            return False
        self._unbegun[run.fingerprint] += 1
        return self._unbegun[run.fingerprint] <= _MOST_UNBEGUN

    def _lives(self, run: RunFolder, owner: str) -> bool:
        """Whether a worker that its executor lost sight of still holds the run: who took it over now would write beside it."""
        try:
            last = ledger.last_attempt(run)
        except DamagedError:
            return False  # nobody takes over a run of this state
        return last is not None and (last.owner, last.outcome) == (owner, "running") and ledger.is_live(run, last)

    def _conclude(self, run: RunFolder, running: _Running, ended: Ended) -> None:
        outcome = running.why or _BY_EXIT.get(ended.exit_code, "lost")
        message = {
            "timeout": f"stopped after {self._execution.timeout_s:g} s (execution.timeout_s); run it again to resume",
            "stopped": "asked to stop",
            "disk-full": disk_is_full(1),
        }.get(outcome, f"{_how(ended)} and could not say why; its log.txt may")
        try:
            owner, known = running.task.owner, running.task.known[run.fingerprint]
            conclude = lambda: ledger.conclude(run, owner, outcome, ended, message=message, known=known)  # noqa: E731
            patiently(run, conclude, is_over=self._heed)
        except DamagedError:
            pass  # its state says so; one that is done is done whatever its attempt says
        except StoreError as error:
            self._unwritten[run.fingerprint] = (ledger.DAMAGED, str(error))
        except OSError as error:
            is_full = error.errno in FULL
            self._unwritable = self._unwritable if is_full else error.strerror or str(error)
            state = "disk-full" if is_full else "failed"
            self._unwritten[run.fingerprint] = (state, f"the end of its attempt could not be written: {error}")

    def _take_back(self) -> bool:
        """Queue the runs that another driver has let go of unfinished; whether anything is to be started."""
        self._look_at = time.monotonic() + ledger.BEAT_S
        self._refresh(is_due=False)
        for fingerprint in sorted(self._elsewhere):
            if self._state_of(self._folder.run(fingerprint)) != "running":
                self._sort_in(fingerprint, "ended" if fingerprint in self._vanished else "state")
                self._vanished.discard(fingerprint)
        return bool(self._pending)

    def _ask_to_stop(self, why: str, tasks: Iterable[_Running]) -> None:
        for running in tasks:
            if not running.why:
                running.why = why
                running.kill_at = time.monotonic() + self._grace_s
                self._executor.stop(running.task.owner)

    def _kill(self, tasks: Iterable[_Running]) -> None:
        for running in tasks:
            self._executor.kill(running.task.owner)

    def _state_of(self, run: RunFolder) -> str:
        if run.fingerprint in self._unwritten:
            return self._unwritten[run.fingerprint][0]
        return ledger.state_of(run)

    def _message_of(self, run: RunFolder, state: str) -> str:
        if run.fingerprint in self._unwritten:
            return self._unwritten[run.fingerprint][1]
        if state == ledger.DAMAGED:
            return ledger.damage_of(run)
        with suppress(StoreError):  # of a finished run that was unpacked
            last = ledger.last_attempt(run)
            return last.message if last else ""
        return ""

    def _tell(self, kind: Kind, fingerprint: str, state: str, message: str = "") -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, fingerprint, state, message))


def _how(ended: Ended) -> str:
    if ended.signal is not None:
        return f"the worker was ended by {ended.signal}"
    return f"the worker left with exit code {ended.exit_code}" if ended.exit_code is not None else "the worker vanished"
