"""One conformance suite for every executor and for Slurm: what each must do when things go well, wrong, and away.

docs/scale.md has a table of how that went, made of the record that a run of this file writes when it is asked to (outcomes.py).
"""

import inspect
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import attempt_path, make_study, plant_attempt, set_age, wait_until, wait_until_gone
from outcomes import read_record, row_of, table
from places import HERE, NOTHING_TO_TEST, PLACES, Place, each
from tasks import n_starts

from gatelab.store import RunFolder, StudyFolder
from gatelab.study import ledger
from gatelab.study.drive import retry
from gatelab.study.executor import EXITS, Task

HOUR = 3600.0


@pytest.fixture(scope="module", params=each(PLACES))
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        # Workers import the fake tasks by name.
        patch.setenv("PYTHONPATH", str(HERE))
        yield request.param


@pytest.fixture(scope="module")
def place(kind: str) -> Iterator[Place]:
    place = PLACES[kind]()
    yield place
    place.close()


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return make_study(tmp_path / "study", 2)


def runs_of(folder: StudyFolder) -> list[RunFolder]:
    return [run for _, run in folder.planned()]


def outcomes(run: RunFolder) -> list[str]:
    return [attempt["outcome"] for attempt in run.attempts()]


def wait_for_starts(folder: StudyFolder) -> list[int]:
    """Until every run has begun; returns the workers' process ids."""
    wait_until(lambda: all(n_starts(run) for run in runs_of(folder)), "every run has begun")
    return [int((run.path / "ran.txt").read_text().split()[-1]) for run in runs_of(folder)]


def wait_for_children(folder: StudyFolder) -> list[int]:
    """Until the task of every run has a child; returns the children's process ids."""
    children = [run.path / "grandchild" for run in runs_of(folder)]
    wait_until(lambda: all(child.exists() and child.read_text() for child in children), "every task has a child")
    return [int(child.read_text()) for child in children]


@contextmanager
def beating(attempt: Path) -> Iterator[None]:
    """As a living owner on another machine does."""
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(0.2):
            os.utime(attempt)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def time_out_after(condition: Callable[[], bool], place: Place, monkeypatch: pytest.MonkeyPatch) -> float:
    """A time-out in seconds. Hours pass for a driver of this process, so that nothing depends on how busy the machine is."""
    if not place.is_in_this_process:
        return 5.0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + (2 * HOUR if condition() else 0.0)

    monkeypatch.setattr("gatelab.study.driver.time", Clock)
    return HOUR


def test_success_is_done_once(study: StudyFolder, place: Place) -> None:
    assert place.go(study, "succeed").is_complete
    assert place.go(study, "succeed").is_complete
    for run in runs_of(study):
        assert outcomes(run) == ["done"] and n_starts(run) == 1


def test_divergence_is_a_result(study: StudyFolder, place: Place) -> None:
    summary = place.go(study, "diverge")
    assert set(summary.states.values()) == {"diverged"} and summary.is_complete


def test_an_exception_is_told_in_one_line_and_kept_whole(study: StudyFolder, place: Place) -> None:
    summary = place.go(study, "fail")
    assert set(summary.states.values()) == {"failed"} and not summary.is_complete
    assert set(summary.messages.values()) == {"model.n_heads=3 does not divide d_model=64"}
    for run in runs_of(study):
        (attempt,) = run.attempts()
        assert "raise ValueError" in attempt["traceback"] and attempt["exit_code"] == EXITS["failed"]
        log = (run.path / "log.txt").read_text()
        assert "about to fail" in log and "raise ValueError" in log


def test_a_failed_run_waits_for_retry(study: StudyFolder, place: Place) -> None:
    place.go(study, "fail")
    assert set(place.go(study, "succeed").states.values()) == {"failed"}
    assert sorted(retry(study)) == sorted(run.fingerprint for run in runs_of(study))
    assert place.go(study, "succeed").is_complete
    for run in runs_of(study):
        assert outcomes(run) == ["failed", "reset", "done"]


def test_a_task_that_returns_unfinished_has_failed(study: StudyFolder, place: Place) -> None:
    assert set(place.go(study, "leave").states.values()) == {"failed"}


def test_a_target_that_does_not_exist_has_failed(study: StudyFolder, place: Place) -> None:
    summary = place.go(study, "no_such_function")
    assert all("no_such_function" in message for message in summary.messages.values())


def test_a_killed_worker_is_lost_and_tried_again(study: StudyFolder, place: Place) -> None:
    assert place.go(study, "die_once").is_complete
    for run in runs_of(study):
        assert outcomes(run) == ["lost", "done"]
        assert run.attempts()[0]["signal"] == "SIGKILL"


def test_lost_retries_are_counted_within_a_drive(study: StudyFolder, place: Place) -> None:
    summary = place.go(study, "die", lost_retries=0)
    assert set(summary.states.values()) == {"lost"}
    assert set(summary.messages.values()) == {"the worker was ended by SIGKILL and could not say why; its log.txt may"}
    assert all(outcomes(run) == ["lost"] for run in runs_of(study))
    place.go(study, "die", lost_retries=1)
    assert all(outcomes(run) == ["lost"] * 3 for run in runs_of(study))


def test_a_hang_is_ended_at_its_time_out_with_all_it_started(
    study: StudyFolder, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_begun = lambda: all((run.path / "grandchild").exists() for run in runs_of(study))  # noqa: E731
    summary = place.go(study, "hang", grace_s=0.2, timeout_s=time_out_after(have_begun, place, monkeypatch))
    assert set(summary.states.values()) == {"timeout"}
    wait_until_gone(wait_for_starts(study) + wait_for_children(study))
    assert all(outcomes(run) == ["timeout"] for run in runs_of(study))


def test_a_time_out_that_is_obeyed_resumes_in_the_next_drive(
    study: StudyFolder, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_begun = lambda: all(n_starts(run) for run in runs_of(study))  # noqa: E731
    summary = place.go(study, "count_until_told", timeout_s=time_out_after(have_begun, place, monkeypatch))
    assert set(summary.states.values()) == {"timeout"}
    counted = [json.loads((run.path / "checkpoint.json").read_text()) for run in runs_of(study)]
    (study.path / "finish").touch()
    assert place.go(study, "count_until_told").is_complete
    assert [run.done()["steps"] for run in runs_of(study)] == counted


def test_out_of_memory_is_tried_again_with_half_the_micro_batch(study: StudyFolder, place: Place) -> None:
    assert place.go(study, "need_small_batch").is_complete
    for run in runs_of(study):
        assert [(a["outcome"], a["micro_batch"]) for a in run.attempts()] == [("oom", 0), ("done", 4)]


def test_out_of_memory_is_tried_again_only_once(study: StudyFolder, place: Place) -> None:
    for _ in range(2):
        summary = place.go(study, "run_out_of_memory", micro_batch=2)
        assert set(summary.states.values()) == {"oom"}
    for run in runs_of(study):
        assert [(a["outcome"], a["micro_batch"]) for a in run.attempts()] == [("oom", 2), ("oom", 1)]


def test_the_run_of_a_lost_machine_is_taken_over(study: StudyFolder, place: Place) -> None:
    for run in runs_of(study):
        set_age(attempt_path(run, plant_attempt(run).number), HOUR)
    assert place.go(study, "succeed").is_complete
    assert all(outcomes(run) == ["lost", "done"] for run in runs_of(study))


def test_the_run_of_a_living_driver_elsewhere_is_left_alone(study: StudyFolder, place: Place) -> None:
    theirs, ours = runs_of(study)
    with beating(attempt_path(theirs, plant_attempt(theirs).number)):
        summary = place.go(study, "succeed")
    assert summary.elsewhere == (theirs.fingerprint,)
    assert summary.states == {theirs.fingerprint: "running", ours.fingerprint: "done"}
    assert n_starts(theirs) == 0


def test_a_worker_does_not_begin_what_is_held(study: StudyFolder, place: Place) -> None:
    theirs = runs_of(study)[0]
    plant_attempt(theirs)
    task = Task(str(study.path), (theirs.fingerprint,), {}, target="tasks:succeed")
    assert place.give(task) == EXITS["held"] and n_starts(theirs) == 0


def test_a_worker_does_not_begin_what_somebody_had_meanwhile(study: StudyFolder, place: Place) -> None:
    theirs = runs_of(study)[0]
    plant_attempt(theirs, "failed")
    known = {theirs.fingerprint: 0}
    task = Task(str(study.path), (theirs.fingerprint,), {}, target="tasks:succeed", known=known)
    assert place.give(task) == EXITS["held"] and n_starts(theirs) == 0


def test_two_drivers_at_once_run_every_run_exactly_once(tmp_path: Path, place: Place) -> None:
    study = make_study(tmp_path / "study", 8)
    for driver in place.start_drivers(study, "meet", n=2):
        driver.wait()
    assert [outcomes(run) for run in runs_of(study)] == [["done"]] * 8
    assert [n_starts(run) for run in runs_of(study)] == [1] * 8


def test_after_ctrl_c_tasks_have_checkpointed_and_the_next_drive_goes_on(study: StudyFolder, place: Place) -> None:
    (driver,) = place.start_drivers(study, "count_until_told")
    workers = wait_for_starts(study)
    driver.interrupt()
    said = driver.wait()
    assert said == "interrupted\n" or not place.is_in_this_process
    assert all(ledger.process_start(pid) is None for pid in workers)
    assert [outcomes(run) for run in runs_of(study)] == [["stopped"]] * 2
    counted = [json.loads((run.path / "checkpoint.json").read_text()) for run in runs_of(study)]
    (study.path / "finish").touch()
    assert place.go(study, "count_until_told").is_complete
    assert [run.done()["steps"] for run in runs_of(study)] == counted


def test_a_second_ctrl_c_kills_what_does_not_listen(study: StudyFolder, place: Place) -> None:
    (driver,) = place.start_drivers(study, "hang", grace_s=HOUR / 2)
    workers = wait_for_starts(study)
    driver.ask()
    wait_until(lambda: all((run.path / "asked").exists() for run in runs_of(study)), "both were asked to stop")
    assert {ledger.state_of(run) for run in runs_of(study)} == {"running"}
    driver.insist()
    said = driver.wait()
    wait_until_gone(workers)
    # Slurm kills the driver too, and nobody is left to say so.
    assert said == "interrupted\n" or not place.is_in_this_process
    assert {ledger.state_of(run) for run in runs_of(study)} == {"stopped" if place.is_in_this_process else "lost"}


def test_workers_of_a_killed_driver_checkpoint_and_leave(study: StudyFolder, place: Place) -> None:
    (driver,) = place.start_drivers(study, "count_until_told")
    workers = wait_for_starts(study)
    driver.kill()
    wait_until_gone(workers)
    # Slurm ends what a job leaves behind, so its workers may have no time to say so.
    told = {"stopped"} if place.is_in_this_process else {"stopped", "lost"}
    assert {ledger.state_of(run) for run in runs_of(study)} <= told
    driver.wait()
    (study.path / "finish").touch()
    assert place.go(study, "count_until_told").is_complete


def test_workers_of_a_killed_driver_that_hang_are_ended(study: StudyFolder, place: Place) -> None:
    (driver,) = place.start_drivers(study, "hang", grace_s=0.5)
    processes = wait_for_starts(study) + wait_for_children(study)
    driver.kill()
    wait_until_gone(processes)
    assert {ledger.state_of(run) for run in runs_of(study)} == {"lost"}
    driver.wait()
    assert place.go(study, "succeed").is_complete


def test_no_clock_but_the_file_systems_counts(tmp_path: Path, place: Place) -> None:
    """An owner whose clock is years ahead beats and keeps its run; a beat from the future is nobody's; workers with a wrong
    clock get on."""
    study = make_study(tmp_path / "study", 3)
    ahead, future, ours = runs_of(study)
    kept, dropped = (plant_attempt(run, started="2999-01-01T00:00:00.000+00:00") for run in (ahead, future))
    set_age(attempt_path(future, dropped.number), -HOUR)
    with beating(attempt_path(ahead, kept.number)):
        summary = place.go(study, "succeed_by_a_wrong_clock")
    assert summary.states == {ahead.fingerprint: "running", future.fingerprint: "done", ours.fingerprint: "done"}
    assert outcomes(future) == ["lost", "done"]


def test_extending_the_plan_runs_only_what_is_new(tmp_path: Path, place: Place) -> None:
    place.go(make_study(tmp_path / "study", 2), "succeed")
    study = make_study(tmp_path / "study", 2, arms=("none", "sdpa-headwise"))
    assert place.go(study, "succeed").is_complete
    assert [n_starts(run) for run in runs_of(study)] == [1] * 4


def test_a_full_disk_stops_the_drive_and_nothing_else(tmp_path: Path, place: Place) -> None:
    study = make_study(tmp_path / "study", 5)
    summary = place.go(study, "fill_disk")
    assert summary.halted == "the disk is full: 5 runs keep what they had; free space and run the same command again"
    states = list(summary.states.values())
    assert "disk-full" in states and "planned" in states and set(states) == {"disk-full", "planned"}
    assert place.go(study, "succeed").is_complete


def test_a_disk_too_full_for_the_last_word_is_told_all_the_same(study: StudyFolder, place: Place) -> None:
    summary = place.go(study, "fill_disk_wholly")
    assert "disk-full" in summary.states.values() and summary.halted.startswith("the disk is full: 2 runs keep")
    assert place.go(study, "succeed").is_complete


def test_a_group_of_one_shape_shares_a_process(tmp_path: Path, place: Place) -> None:
    study = make_study(tmp_path / "study", 3, arms=("none", "sdpa-headwise"))
    assert place.go(study, "succeed", group=2).is_complete
    workers = [(run.path / "ran.txt").read_text() for run in runs_of(study)]
    assert workers[0] == workers[1] and workers[3] == workers[4]
    assert len(set(workers)) == 4


def test_tasks_see_their_threads(study: StudyFolder, place: Place) -> None:
    place.go(study, "see_device")
    assert all(run.done()["OMP_NUM_THREADS"] == "1" and run.done()["session"] for run in runs_of(study))


def test_tasks_see_the_gpu_of_their_slot(study: StudyFolder, place: Place) -> None:
    place.go_on_gpus(study, "see_device")
    assert {run.done()["CUDA_VISIBLE_DEVICES"] for run in runs_of(study)} == {"0", "1"}


def test_the_command_of_a_worker_can_be_given_by_hand(study: StudyFolder) -> None:
    """Of no executor."""
    run = runs_of(study)[0]
    command = [sys.executable, "-m", "gatelab.study.worker", str(study.path), run.fingerprint]
    environ = os.environ | {"PYTHONPATH": str(HERE)}
    done = subprocess.run([*command, "--execution", "{}", "--target", "tasks:succeed"], env=environ, check=False)
    assert done.returncode == 0 and outcomes(run) == ["done"]


def rows() -> list[str]:
    """The tests that all places have."""
    tests = {name: test for name, test in globals().items() if name.startswith("test_")}
    return [row_of(name) for name, test in tests.items() if "place" in inspect.signature(test).parameters]


def test_every_cell_was_tested_or_has_nothing_to_test() -> None:
    cells = read_record()["cells"]
    assert list(cells) == rows() and all(list(cell) == list(PLACES) for cell in cells.values())
    said = {outcome for cell in cells.values() for outcome in cell.values()} - {"passed"}
    assert all(outcome.startswith(NOTHING_TO_TEST) for outcome in said)


def test_the_docs_table_is_the_record() -> None:
    text = (HERE.parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    found = re.search(r"^\| test \|.*\n(?:\|.*\n)+(?:\n\[\^.*\n)*", text, re.MULTILINE).group()
    assert found.strip() == table(read_record()).strip(), "`python tests/study/outcomes.py` prints it"
