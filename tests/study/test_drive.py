"""Policies and bookkeeping of the driver, with an executor that plays a script inside this process."""

import errno
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import attempt_path, make_study, plant_attempt, set_age

from gatelab.config import Execution
from gatelab.store import RunFolder, StoreError, StudyFolder, write_json
from gatelab.study import ledger
from gatelab.study.drive import Event, Summary, drive, micro_batch_of, retry
from gatelab.study.executor import EXITS, Ended, Task
from gatelab.study.remaining import remaining_seconds
from gatelab.train.checkpoint_folder import INDEX, folder_of

HOUR = 3600.0


class Scripted:
    """Carries out each task at once: `script(run, times)` gives the outcome of a run that was begun `times` times."""

    has_gpus = False

    def __init__(self, script: Callable[[RunFolder, int], str], slots: int = 1):
        self.slots, self.tasks, self.most = slots, [], 0
        self._script, self._ended = script, []

    def submit(self, task: Task) -> str:
        self.tasks.append(task)
        outcomes = [self._carry_out(StudyFolder(Path(task.folder)).run(f), task) for f in task.fingerprints]
        self._ended.append(Ended(task.owner, EXITS.get(outcomes[-1], 0), None))
        self.most = max(self.most, len(self._ended))
        return task.owner

    def _carry_out(self, run: RunFolder, task: Task) -> str:
        attempt = ledger.claim(run, task.owner, micro_batch=task.execution["micro_batch"])
        outcome = self._script(run, attempt.number)
        if outcome == "done":
            run.mark_done("done", {})
        if outcome != "silent":
            ledger.end(run, attempt, outcome)
        return outcome

    def poll(self, timeout: float) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self, handle: str) -> None: ...

    def kill(self, handle: str) -> None: ...

    def close(self) -> None: ...


def go(folder: StudyFolder, executor: Scripted, **execution: object) -> Summary:
    return drive(folder, executor, Execution(**execution), entries=folder.study()["plan"])


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return make_study(tmp_path / "study", 3)


def runs_of(folder: StudyFolder) -> list[RunFolder]:
    return [run for _, run in folder.planned()]


def test_events_tell_every_run_from_its_first_state_to_its_last(study: StudyFolder) -> None:
    events: list[Event] = []
    runs_of(study)[0].mark_done("done", {})
    executor = Scripted(lambda run, times: "done")
    drive(study, executor, Execution(), entries=study.study()["plan"], on_event=events.append)
    first, second, _ = (run.fingerprint for run in runs_of(study))
    assert [(e.kind, e.state) for e in events if e.fingerprint == first] == [("state", "done")]
    told = [("state", "planned"), ("submitted", "running"), ("ended", "done")]
    assert [(e.kind, e.state) for e in events if e.fingerprint == second] == told


def test_no_more_is_submitted_than_there_are_slots(tmp_path: Path) -> None:
    executor = Scripted(lambda run, times: "done", slots=2)
    assert go(make_study(tmp_path / "study", 5), executor).is_complete
    assert executor.most == 2


def test_a_preempted_run_resumes_as_often_as_it_takes(study: StudyFolder) -> None:
    executor = Scripted(lambda run, times: "done" if times == 4 else "stopped")
    assert go(study, executor, lost_retries=0).is_complete


def test_half_the_micro_batch_stays_after_a_stop(study: StudyFolder) -> None:
    run = runs_of(study)[0]
    plant_attempt(run, "oom", micro_batch=0)
    plant_attempt(run, "stopped", micro_batch=4)
    assert micro_batch_of(run, Execution()) == 4
    assert micro_batch_of(run, Execution(micro_batch=2)) == 2
    ledger.reset(run)
    assert micro_batch_of(run, Execution()) == 0


def test_a_single_sequence_that_does_not_fit_is_not_tried_again(study: StudyFolder) -> None:
    plant_attempt(runs_of(study)[0], "oom", micro_batch=1)
    assert micro_batch_of(runs_of(study)[0], Execution()) is None
    executor = Scripted(lambda run, times: "done")
    assert go(study, executor).states[runs_of(study)[0].fingerprint] == "oom"


def test_a_group_has_one_shape_and_one_micro_batch(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 3, arms=("none", "sdpa-headwise"))
    plant_attempt(runs_of(study)[1], "oom", micro_batch=0)
    executor = Scripted(lambda run, times: "done")
    assert go(study, executor, group=8).is_complete
    names = [run.fingerprint for run in runs_of(study)]
    groups = [(t.fingerprints, t.execution["micro_batch"]) for t in executor.tasks]
    assert groups == [((names[0], names[2]), 0), ((names[1],), 4), (tuple(names[3:]), 0)]


def test_arms_that_share_a_configuration_share_its_run(study: StudyFolder) -> None:
    executor = Scripted(lambda run, times: "done")
    drive(study, executor, Execution(), entries=study.study()["plan"] * 2)
    assert len(executor.tasks) == 3


def test_a_run_that_another_driver_drops_is_taken_over_in_the_same_drive(study: StudyFolder) -> None:
    theirs = runs_of(study)[0]
    attempt = plant_attempt(theirs)

    def script(run: RunFolder, times: int) -> str:
        if ledger.state_of(theirs) == "running" and run.fingerprint == runs_of(study)[2].fingerprint:
            set_age(attempt_path(theirs, attempt.number), HOUR)
        return "done"

    executor = Scripted(script)
    summary = go(study, executor)
    assert summary.is_complete and summary.elsewhere == ()
    assert executor.tasks[-1].fingerprints == (theirs.fingerprint,)


def test_a_run_that_failed_under_another_driver_meanwhile_is_left(study: StudyFolder) -> None:
    ours, theirs, _ = (run for _, run in study.planned())

    def script(run: RunFolder, times: int) -> str:
        if run.fingerprint == ours.fingerprint:
            plant_attempt(theirs, "failed")
        return "done"

    executor = Scripted(script)
    states = go(study, executor).states
    assert (states[ours.fingerprint], states[theirs.fingerprint]) == ("done", "failed")
    assert len(executor.tasks) == 2 and [a["owner"] for a in theirs.attempts()] == ["other"]


def test_a_task_is_for_the_state_that_its_driver_read(study: StudyFolder) -> None:
    for _, run in study.planned():
        plant_attempt(run, "stopped")
    executor = Scripted(lambda run, times: "done")
    go(study, executor)
    assert [task.known for task in executor.tasks] == [{run.fingerprint: 1} for _, run in study.planned()]


def test_a_folder_that_cannot_be_written_any_more_halts_the_drive_and_says_why(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(ledger, "conclude", refuse)
    executor = Scripted(lambda run, times: "silent")
    summary = go(study, executor)
    says = (
        f"{study.path} cannot be written (Read-only file system): 3 runs keep what they had; make it writable and run"
    )
    assert len(executor.tasks) == 1 and summary.halted == f"{says} the same command again"
    assert summary.states[executor.tasks[0].fingerprints[0]] == "failed"


def test_a_worker_that_was_lost_sight_of_and_lives_is_not_overtaken(tmp_path: Path) -> None:
    """Its slot died, not its machine: it saves, and only then does another go on, counted as lost when it does not."""
    study = make_study(tmp_path / "study", 1)
    (run,) = runs_of(study)
    told: list[str] = []

    class Blind(Scripted):
        def submit(self, task: Task) -> str:
            handle = super().submit(task)
            self._ended = [Ended(handle, None, None)] if len(self.tasks) == 1 else self._ended
            return handle

    def tell(event: Event) -> None:
        told.append(f"{event.kind} {event.state}")
        if told[-1] == "ended running":
            # The worker, which is this process, has saved.
            ledger.end(run, ledger.last_attempt(run), "stopped")

    executor = Blind(lambda run, times: "silent" if times == 1 else "done")
    assert drive(study, executor, Execution(), entries=study.study()["plan"], on_event=tell).is_complete
    assert told == [
        "state planned", "submitted running", "ended running", "ended stopped", "submitted running", "ended done",
    ]  # fmt: skip


class Dying(Scripted):
    """Its first worker is killed; the slot is given the run again as its machine dies, `n_unbegun` times before a worker begins."""

    def __init__(self, n_unbegun: int):
        super().__init__(lambda run, times: "silent" if times == 1 else "done")
        self._left = n_unbegun

    def submit(self, task: Task) -> str:
        if not self.tasks or not self._left:
            return super().submit(task)
        self._left -= 1
        self.tasks.append(task)
        self._ended.append(Ended(task.owner, None, None))
        return task.owner

    def _carry_out(self, run: RunFolder, task: Task) -> str:
        outcome = super()._carry_out(run, task)
        if outcome == "silent":  # its process is gone
            last = ledger.last_attempt(run)
            write_json(attempt_path(run, last.number), asdict(replace(last, process="none")))
        return outcome


@pytest.mark.parametrize("n_unbegun", [1, 3])
def test_a_task_that_vanishes_before_its_worker_begins_is_no_loss(tmp_path: Path, n_unbegun: int) -> None:
    study = make_study(tmp_path / "study", 1)
    executor = Dying(n_unbegun)
    assert go(study, executor, lost_retries=1).is_complete
    (run,) = runs_of(study)
    assert [a["outcome"] for a in run.attempts()] == ["lost", "done"] and len(executor.tasks) == n_unbegun + 2


def test_tasks_that_always_vanish_are_losses_in_the_end(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 1)
    executor = Dying(1000)
    assert set(go(study, executor, lost_retries=1).states.values()) == {"lost"}
    (run,) = runs_of(study)
    assert [a["outcome"] for a in run.attempts()] == ["lost", "lost"] and len(executor.tasks) == 12


@pytest.mark.parametrize("is_done", [False, True])
def test_a_run_whose_attempt_is_damaged_when_its_worker_is_lost_sight_of_is_told_and_the_others_go_on(
    tmp_path: Path, is_done: bool
) -> None:
    study = make_study(tmp_path / "study", 3)
    runs = runs_of(study)

    class Blind(Scripted):
        def submit(self, task: Task) -> str:
            handle = super().submit(task)
            if len(self.tasks) == 1:
                (path := attempt_path(runs[0], 1)).write_bytes(path.read_bytes()[:40])
                if is_done:
                    runs[0].mark_done("done", {})
                self._ended = [Ended(handle, None, None)]
            return handle

    summary = go(study, executor := Blind(lambda run, times: "silent" if run.path == runs[0].path else "done"))
    assert [summary.states[run.fingerprint] for run in runs] == ["done" if is_done else "damaged", "done", "done"]
    says = summary.messages.get(runs[0].fingerprint, "")
    assert is_done or f"{attempt_path(runs[0], 1)}: not readable as JSON" in says
    assert len(executor.tasks) == 3 and summary.is_complete == is_done


def with_sources(folder: StudyFolder, sources: dict[int, int]) -> StudyFolder:
    """Let runs of a study (by number) start from others."""
    content = folder.study()
    for number, source in sources.items():
        content["plan"][number]["init_from"] = content["plan"][source]["fingerprint"]
    write_json(folder.path / "study.json", content)
    return folder


def test_a_run_starts_after_the_one_whose_weights_it_takes(tmp_path: Path) -> None:
    folder = with_sources(make_study(tmp_path / "study", 3), {0: 2, 2: 1})
    executor = Scripted(lambda run, times: "done", slots=3)
    assert go(folder, executor).is_complete
    started = [f for task in executor.tasks for f in task.fingerprints]
    assert started == [runs_of(folder)[n].fingerprint for n in (1, 2, 0)]


def test_what_starts_from_a_run_that_failed_is_left_and_told(tmp_path: Path) -> None:
    folder = with_sources(make_study(tmp_path / "study", 3), {0: 2, 2: 1})
    events: list[Event] = []
    executor = Scripted(lambda run, times: "failed", slots=3)
    summary = drive(folder, executor, Execution(), entries=folder.study()["plan"], on_event=events.append)
    assert list(summary.states.values()) == ["planned", "failed", "planned"]
    assert {e.fingerprint[:2] for e in events if "not started" in e.message} == {"00"}
    assert len([e for e in events if "which is failed" in e.message]) == 1
    retry(folder)
    assert go(folder, Scripted(lambda run, times: "done")).is_complete


def test_what_a_worker_could_not_say_is_concluded_by_the_driver(study: StudyFolder) -> None:
    summary = go(study, Scripted(lambda run, times: "silent"), lost_retries=0)
    assert set(summary.states.values()) == {"lost"}
    assert all("the worker left with exit code 0" in message for message in summary.messages.values())


class Growing(Scripted):
    """Each attempt is lost, and leaves the next of these checkpoints."""

    def __init__(self, steps: list[int]):
        super().__init__(self._lose)
        self._steps = steps

    def _lose(self, run: RunFolder, times: int) -> str:
        if times > len(self._steps):
            return "done"
        folder = folder_of(run.path, self._steps[times - 1])
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / INDEX, {})
        return "silent"


@pytest.mark.parametrize(
    ("steps", "n_tasks"), [([10, 20, 30, 40, 50], 6), ([10, 10, 20], 4), ([10, 10, 10, 20], 3), ([0, 0, 20], 2)]
)
def test_a_loss_after_a_newer_checkpoint_is_not_counted(tmp_path: Path, steps: list[int], n_tasks: int) -> None:
    """One without is allowed here."""
    executor = Growing(steps)
    summary = go(make_study(tmp_path / "study", 1), executor, lost_retries=1)
    assert len(executor.tasks) == n_tasks and summary.is_complete == (n_tasks > len(steps))


def test_an_unwritable_ledger_halts_the_drive_and_is_told(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ledger, "conclude", refuse)
    executor = Scripted(lambda run, times: "silent")
    summary = go(study, executor)
    assert len(executor.tasks) == 1 and summary.halted.startswith("the disk is full: 3 runs keep")
    assert "could not be written" in summary.messages[executor.tasks[0].fingerprints[0]]


def test_an_error_in_the_driver_asks_its_tasks_to_stop_first(study: StudyFolder) -> None:
    asked, killed = [], []

    class Endless(Scripted):
        def submit(self, task: Task) -> str:
            self.tasks.append(task)
            return task.owner

        def stop(self, handle: str) -> None:
            asked.append(handle)

        def kill(self, handle: str) -> None:
            killed.append(handle)

    def break_down(event: Event) -> None:
        if event.kind == "submitted":
            raise RuntimeError("the live grid broke")

    executor = Endless(lambda run, times: "done")
    entries = study.study()["plan"]
    with pytest.raises(RuntimeError, match="the live grid broke"):
        drive(study, executor, Execution(), entries=entries, on_event=break_down, grace_s=0.0)
    assert asked == killed == [executor.tasks[0].owner]


def test_retry_takes_only_what_it_is_asked_for(study: StudyFolder) -> None:
    failed, lost, done = runs_of(study)
    plant_attempt(failed, "failed")
    plant_attempt(lost, "lost")
    done.mark_done("done", {})
    assert retry(study, ["lost"]) == [lost.fingerprint]
    assert [ledger.state_of(run) for run in runs_of(study)] == ["failed", "planned", "done"]
    assert retry(study) == [failed.fingerprint]


@pytest.mark.parametrize("state", ["done", "running", "faild"])
def test_retry_of_what_cannot_be_retried_lists_what_can(study: StudyFolder, state: str) -> None:
    with pytest.raises(ValueError, match=f"retry {state}: expected some of stopped, timeout, lost, oom, failed"):
        retry(study, [state])


def remaining(folder: StudyFolder, slots: int, group: int = 1) -> float | None:
    states = {run.fingerprint: ledger.state_of(run) for run in runs_of(folder)}
    return remaining_seconds(folder, folder.study()["plan"], states, slots=slots, group=group)


def write_progress(run: RunFolder, step: int, seconds: float, first_step: int = 0) -> None:
    facts = {"step": step, "steps": 100, "seconds": seconds, "first_step": first_step}
    write_json(run.path / "progress.json", facts)


def test_nothing_measured_gives_no_forecast(study: StudyFolder) -> None:
    assert remaining(study, slots=1) is None
    write_progress(runs_of(study)[0], 1, 5.0)
    assert remaining(study, slots=1) is None


def test_waiting_runs_are_laid_out_on_the_slots(study: StudyFolder) -> None:
    write_progress(runs_of(study)[0], 100, 60.0)
    runs_of(study)[0].mark_done("done", {})
    assert remaining(study, slots=1) == pytest.approx(120.0)
    assert remaining(study, slots=2) == pytest.approx(60.0)
    assert remaining(study, slots=1, group=2) == pytest.approx(60.0)


def test_a_resumed_run_counts_the_steps_it_did_itself(study: StudyFolder) -> None:
    for run in runs_of(study)[:2]:
        run.mark_done("done", {})
    running = runs_of(study)[2]
    plant_attempt(running)
    write_progress(running, 75, 10.0, first_step=50)
    assert remaining(study, slots=1) == pytest.approx(10.0)


def test_other_cells_stand_in_by_their_flops(study: StudyFolder) -> None:
    first, second, third = study.study()["plan"]
    write_progress(study.run(first["fingerprint"]), 100, 60.0)
    states = dict.fromkeys((e["fingerprint"] for e in (first, second, third)), "planned")
    states[first["fingerprint"]] = "done"
    entries = [first, {**second, "cell": "text", "flops": 200.0}, third]
    assert remaining_seconds(study, entries, states, slots=1) == pytest.approx(120.0 + 60.0)


def test_finished_and_failed_runs_take_no_more_time(study: StudyFolder) -> None:
    runs_of(study)[0].mark_done("done", {})
    runs_of(study)[1].mark_done("diverged", {})
    plant_attempt(runs_of(study)[2], "failed")
    assert remaining(study, slots=1) == 0.0


def cut_newest_attempt(run: RunFolder) -> None:
    plant_attempt(run, "stopped")
    (path := attempt_path(run, 2)).write_bytes(path.read_bytes()[:40])


def cut_configuration(run: RunFolder) -> None:
    (run.path / "run.json").write_text('{"schema": 1, "run"')


def lose_configuration(run: RunFolder) -> None:
    (run.path / "run.json").unlink()


def edit_configuration(run: RunFolder) -> None:
    config = run.config() | {"seed": "none"}
    (run.path / "run.json").unlink()
    run.create(config)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_newest_attempt, "0002.json: not readable as JSON"),
        (cut_configuration, "run.json: not readable as JSON"),
        (lose_configuration, "run.json: no such file"),
        (edit_configuration, "run.json: seed"),
        (lambda run: (run.path / "done.json").write_text("{"), "done.json: not readable as JSON"),
    ],
)
def test_a_run_with_a_damaged_file_is_left_out_and_the_others_go_on(
    tmp_path: Path, damage: Callable[[RunFolder], object], says: str
) -> None:
    folder = make_study(tmp_path / "study", 3)
    runs = [run for _, run in folder.planned()]
    plant_attempt(runs[0], "stopped")
    damage(runs[0])
    events: list[Event] = []
    executor = Scripted(lambda run, times: "done")
    summary = drive(folder, executor, Execution(), entries=folder.study()["plan"], on_event=events.append)
    assert [summary.states[run.fingerprint] for run in runs] == ["damaged", "done", "done"]
    assert says in summary.messages[runs[0].fingerprint] and not summary.is_complete
    assert [t.fingerprints for t in executor.tasks] == [(run.fingerprint,) for run in runs[1:]]
    assert any(e.state == "damaged" and says in e.message for e in events)


def test_an_older_attempt_that_is_damaged_is_history(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", 1)
    (_, run) = next(folder.planned())
    for _ in range(2):
        plant_attempt(run, "oom")
    attempt_path(run, 1).write_text("{")
    assert [a["number"] for a in run.attempts()] == [2]
    assert [a.number for a in ledger.attempts_since_reset(run)] == [2]
    assert micro_batch_of(run, Execution()) == 4
    assert go(folder, Scripted(lambda run, times: "done")).is_complete


def test_what_starts_from_a_damaged_run_is_left(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", 2)
    first, second = (run for _, run in folder.planned())
    study = folder.study()
    study["plan"][1]["init_from"] = first.fingerprint
    write_json(folder.path / "study.json", study)
    first.mark_done("done", {})
    (first.path / "done.json").write_text("")
    summary = go(folder, Scripted(lambda run, times: "done"))
    assert summary.states == {first.fingerprint: "damaged", second.fingerprint: "planned"}


def test_an_outcome_of_a_newer_version_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", 2)
    first, second = (run for _, run in folder.planned())
    plant_attempt(second, "preempted")
    executor = Scripted(lambda run, times: "done")
    with pytest.raises(
        StoreError, match=r"0001\.json: ended as 'preempted', which this version of Gatelab does not know"
    ):
        go(folder, executor)
    assert not executor.tasks and first.done() is None
    # Once it is done nobody asks how it came about.
    second.mark_done("done", {})
    assert go(folder, executor).is_complete
