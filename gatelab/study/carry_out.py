"""Carry out a group of runs: train, look, write, save; resume where the last checkpoint stands.

Notable: rows written after a checkpoint by a worker that died are taken back on resume, so that a killed and resumed
run leaves the same bytes as an uninterrupted one. Times are kept apart, in clock.jsonl. Where several processes share
the group, the first writes and the others only train. torch is imported inside, so that the study layer stays light.
"""

import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Execution, Run, fingerprint, validate
from ..record import Row, Step
from ..store import Appender, RunFolder, StoreError, read_json, write_json, write_lines
from . import ledger
from .checkpoints import CHECKPOINT, WEIGHTS, Checkpoints, remove
from .code import code_hash
from .git import git_state

if TYPE_CHECKING:
    from ..train.group import Group, Member

_PACKAGES = ("gatelab", "torch", "numpy", "pydantic", "safetensors", "tokenizers", "triton")
_PROGRESS_S = 1.0
# Telling progress takes at most this share of the time.
_PROGRESS_SHARE = 0.02
# Runs whose files are written at once.
_AT_ONCE = 16


def carry_out(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Train a group to its end, or until `should_stop()`; writes everything of store/ but attempts and leases.

    Raises:
        ValueError: when the data is not what the fingerprint was made of, or weights or a checkpoint cannot be used.
    """
    import torch

    from ..train.group import Group
    from ..train.loop import train

    # The sums of a CPU run depend on the number of threads, so it is ours and not the machine's.
    torch.set_num_threads(execution.threads)
    group = Group([validate(Run, run.config()) for run in runs], execution)
    for folder, member in zip(runs, group.members, strict=True):
        _check_fingerprint(folder, member.run, member.source.digest)
    checkpoints = Checkpoints(group, runs)
    offsets = checkpoints.restore()
    group.ranks.wait()  # all have read before the writer changes anything
    if not group.ranks.is_writer:
        _accompany(group, train(group, _visits(group)), checkpoints, should_stop)
        return
    checkpoints.tidy()
    facts = environment(group.facts())

    def begin(folder: RunFolder) -> None:
        if group.step:
            ledger.note_resume(folder, group.step)
        _sweep(folder)
        before = _codes(folder) if group.step else []
        earlier = [code for code in before if code != facts["code"]]
        write_json(folder.path / "environment.json", facts | ({"earlier_code": earlier} if earlier else {}))

    _each(begin, runs)
    writers = [_Writer(folder, offset) for folder, offset in zip(runs, offsets, strict=True)]
    try:
        _follow(group, train(group, _visits(group)), runs, writers, checkpoints, should_stop)
    finally:
        _each(_Writer.close, writers)


def _each(do: Callable[..., Any], *of: Iterable[Any]) -> None:
    """A call for each run of a group, several at once: what takes long in them is waiting for the disk, which then waits for
    many files together. The first that fails is raised when all have ended."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(do, *of))


class _Writer:
    """A run's two append-only files. The clock is not part of the result, so a resume keeps all of it."""

    def __init__(self, folder: RunFolder, offset: int):
        self.rows = Appender(folder.rows_path, offset)
        clock = folder.path / "clock.jsonl"
        self.clock = Appender(clock, clock.stat().st_size if clock.exists() else 0)

    def close(self) -> None:
        try:
            self.rows.close()
        finally:
            self.clock.close()


def _accompany(
    group: "Group", steps: Iterator[Step], checkpoints: Checkpoints, should_stop: Callable[[], bool]
) -> None:
    """A process that does not write rows: it takes every step, and part in what all must do together."""
    visits = _visits(group)
    if group.step == 0 and 0 in visits:
        with group.whole():
            pass
    for step in steps:
        if step.step in visits:
            with group.whole():
                pass
        stopping, saving = group.ranks.any_say([should_stop(), False])
        if not ((stopping or saving) and group.rest()):
            continue
        checkpoints.save(None)
        if stopping and _goes_on(step, group):
            checkpoints.finish()
            return
    checkpoints.finish()
    with group.whole():
        pass


def _visits(group: "Group") -> set[int]:
    """The steps after which models are looked at."""
    return {*group.run.probe_steps(), *(step for member in group.members for step in member.run.ask_steps())}


def _goes_on(step: Step, group: "Group") -> bool:
    return step.step < group.run.train.steps and any(m.alive for m in group.members)


def _follow(
    group: "Group",
    steps: Iterator[Step],
    runs: list[RunFolder],
    writers: list[_Writer],
    checkpoints: Checkpoints,
    should_stop: Callable[[], bool],
) -> None:
    visits = _visits(group)
    started = saved = shown = time.monotonic()
    first, pause = group.step, _PROGRESS_S
    if group.step == 0 and 0 in visits:
        _visit(group, runs, writers)
    last_clock = time.monotonic()
    for step in steps:
        _write_step(step, group, runs, writers)
        if step.step in visits:
            _visit(group, runs, writers)
        now = time.monotonic()
        if now - shown >= pause or step.step in (first + 1, group.run.train.steps):
            seconds = (now - last_clock) / max(1, step.step - first)
            _show_progress(step, group, runs, writers, now - started, first, seconds)
            shown = time.monotonic()
            pause = max(_PROGRESS_S, (shown - now) / _PROGRESS_SHARE)
        is_due = now - saved >= group.execution.checkpoint_s
        stopping, saving = group.ranks.any_say([should_stop(), is_due])
        if not ((stopping or saving) and group.rest()):
            continue
        checkpoints.save([writer.rows.flush() for writer in writers])
        saved = now
        if stopping and _goes_on(step, group):
            checkpoints.finish()
            return
    checkpoints.finish()
    with group.whole():
        _finish(group, runs, writers, time.monotonic() - started)


def _visit(group: "Group", runs: list[RunFolder], writers: list[_Writer]) -> None:
    """Whatever is due at this step: the probes, and items of tasks."""
    ask_steps = {step for member in group.members for step in member.run.ask_steps()}
    with group.whole():
        if group.step in group.run.probe_steps():
            _look(group, runs, writers)
        if group.step in ask_steps:
            if group.step == 0:
                _tell_left_out(group)
            _ask(group, runs, writers)


def _write_step(step: Step, group: "Group", runs: list[RunFolder], writers: list[_Writer]) -> None:
    is_due = step.step % group.run.probe.every == 0 or step.step == group.run.train.steps
    for i, (folder, writer) in enumerate(zip(runs, writers, strict=True)):
        if math.isnan(step.loss[i]) and not step.diverged[i]:
            continue  # this run stopped at an earlier step
        if is_due or step.diverged[i]:
            values = (("loss", step.loss[i], "nats"), ("grad_norm", step.grad_norm[i], "1"), ("lr", step.lr[i], "1"))
            writer.rows.write(Row(folder.fingerprint, step.step, "train", m, v, unit) for m, v, unit in values)
        if step.first_mass is not None:
            writer.rows.write(_watched(folder.fingerprint, step.step, step.first_mass[i], group.members[i].run))
        if step.diverged[i]:
            writer.rows.write([Row(folder.fingerprint, step.step, "train", "diverged", 1.0, "1")])


def _watched(fingerprint: str, step: int, mass_LH: list[list[float]], run: Run) -> Iterator[Row]:
    """The first-token mass of a step's batch by head, and each layer's mean; nothing of a layer that does not tell it."""
    read, spoken = run.resolved_objective.lengths(run.train.seq_len)
    length = (spoken or read) + run.model.registers
    for layer, mass_H in enumerate(mass_LH):
        for head, mass in [(None, sum(mass_H) / len(mass_H)), *enumerate(mass_H)]:
            if not math.isnan(mass):
                yield Row(
                    fingerprint, step, "train", "first_token_mass", mass, "share", layer=layer, head=head, length=length
                )


def _look(group: "Group", runs: list[RunFolder], writers: list[_Writer]) -> None:
    from ..evals.heldout import look

    for writer, rows in zip(writers, look(group, [folder.fingerprint for folder in runs]), strict=True):
        writer.rows.write(rows)


def _ask(group: "Group", runs: list[RunFolder], writers: list[_Writer]) -> None:
    """Items of tasks, of each run that is trained on them and alive; the items of the last step are kept too."""
    from ..evals.asking import asked
    from ..evals.inside import with_inside
    from ..evals.strips import with_strips

    for folder, member, writer in zip(runs, group.members, writers, strict=True):
        steps = member.run.ask_steps()
        if not member.alive or group.step not in steps:
            continue
        is_whole = group.step in (0, steps[-1])
        rows, items = asked(
            member.model, member.run, fingerprint=folder.fingerprint, step=group.step, is_whole=is_whole
        )
        writer.rows.write(rows)
        if group.step == steps[-1]:
            seen = with_inside(member.model, member.run, with_strips(member.model, member.run, items))
            write_lines(folder.items_path, seen)


def _tell_left_out(group: "Group") -> None:
    from ..evals.asking import left_out

    said = [line for m in group.members if m.run.ask_steps() for line in left_out(m.model, m.run)]
    for line in dict.fromkeys(said):
        print(f"tasks: {line}", flush=True)


def _show_progress(
    step: Step,
    group: "Group",
    runs: list[RunFolder],
    writers: list[_Writer],
    elapsed: float,
    first: int,
    seconds: float,
) -> None:
    facts = {"step": step.step, "steps": group.run.train.steps, "seconds": elapsed, "first_step": first}
    for i, (folder, writer) in enumerate(zip(runs, writers, strict=True)):
        write_json(folder.path / "progress.json", facts | {"loss": str(step.loss[i])}, is_kept=False)
        writer.clock.write([{"step": step.step, "unix": time.time(), "mean_step_s": seconds}])


def _sweep(folder: RunFolder) -> None:
    """Remove what a writer that was killed in the middle of a file left behind, and what was derived of rows that are now written
    anew, which might look newer than they."""
    for derived in (*folder.path.glob("*.parquet"), *folder.path.glob("digest-*")):
        derived.unlink(missing_ok=True)
    for name in (CHECKPOINT, WEIGHTS, "environment.json", "progress.json", "items.jsonl", "done.json"):
        for temporary in folder.path.glob(f".{name}.*.tmp"):
            temporary.unlink(missing_ok=True)


def _finish(group: "Group", runs: list[RunFolder], writers: list[_Writer], seconds: float) -> None:
    import numpy as np

    from ..train.checkpoint import write_tensors
    from ..train.spikes import spikes_above_median, spikes_by_both, spikes_by_mad

    def finish(folder: RunFolder, member: "Member", writer: _Writer, weights: dict[str, Any]) -> None:
        losses = np.asarray(member.losses)
        last = int(np.isfinite(losses).sum())
        rules = ((0.1, spikes_above_median(losses)), (7.0, spikes_by_mad(losses)), (None, spikes_by_both(losses)))
        writer.rows.write(
            Row(folder.fingerprint, last, "train", "loss_spikes", n, "count", threshold=t) for t, n in rules
        )
        writer.rows.flush()
        write_tensors(folder.path / WEIGHTS, weights, {"step": last, "fingerprint": folder.fingerprint})
        status = "done" if member.alive else "diverged"
        folder.mark_done(status, {"steps": last, "seconds": round(seconds, 2)})
        remove(folder)

    weights = [dict(member.model.named_parameters()) for member in group.members]
    _each(finish, runs, group.members, writers, weights)


def _check_fingerprint(folder: RunFolder, run: Run, data_digest: str) -> None:
    found = fingerprint(run, data_digest)
    if found != folder.fingerprint:
        raise ValueError(
            f"run {folder.fingerprint}: its data or configuration changed since it was planned (now {found}); "
            "plan the study again with `gatelab run`"
        )


def _codes(folder: RunFolder) -> list[str]:
    """The versions of the code that have had the run, the last one last."""
    try:
        found = read_json(folder.path / "environment.json")
    except (OSError, StoreError):
        return []
    return [*found.get("earlier_code", ()), *filter(None, [found.get("code")])]


def environment(facts: dict[str, Any]) -> dict[str, Any]:
    """Versions, git state, a hash of the code and what was really used; recorded beside a run, never part of its name."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "git": git_state(Path(__file__).resolve().parent),
        "code": code_hash(),
        **facts,
    }
