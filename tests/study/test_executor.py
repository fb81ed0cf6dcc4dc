"""One conformance suite for every executor: what each must do when things go well, wrong, and away."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import attempt_path, make_study, plant_attempt, set_age, wait_until
from tasks import n_starts

from gatelab.config import Execution
from gatelab.store import RunFolder, StudyFolder
from gatelab.study import ledger
from gatelab.study.drive import Summary, drive, retry
from gatelab.study.executor import EXITS, Executor, Task
from gatelab.study.local import LocalExecutor

HOUR = 3600.0
HERE = Path(__file__).parent
EXECUTORS = {
    "local": lambda: LocalExecutor(slots=2, threads=1, preload=()),
    "fresh": lambda: LocalExecutor(slots=2, threads=1, devices=("0", "1")),
}


@pytest.fixture(scope="module", params=list(EXECUTORS))
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        # Workers import the fake tasks by name.
        patch.setenv("PYTHONPATH", str(HERE))
        yield request.param


@pytest.fixture(scope="module")
def executor(kind: str) -> Iterator[Executor]:
    executor = EXECUTORS[kind]()
    yield executor
    executor.close()


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return make_study(tmp_path / "study", 2)


def runs_of(folder: StudyFolder) -> list[RunFolder]:
    return [run for _, run in folder.planned()]


def go(folder: StudyFolder, executor: Executor, target: str, grace_s: float = 10.0, **execution: object) -> Summary:
    entries = folder.study()["plan"]
    settings = Execution(**execution)
    return drive(folder, executor, settings, entries=entries, target=f"tasks:{target}", grace_s=grace_s)


def outcomes(run: RunFolder) -> list[str]:
    return [attempt["outcome"] for attempt in run.attempts()]


def start_driver(folder: StudyFolder, target: str, kind: str, grace_s: float = 10.0) -> "subprocess.Popen[str]":
    command = [sys.executable, str(HERE / "tasks.py"), str(folder.path), f"tasks:{target}", kind, str(grace_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_starts(folder: StudyFolder) -> list[int]:
    """Until every run has begun; returns the workers' process ids."""
    wait_until(lambda: all(n_starts(run) for run in runs_of(folder)), "every run has begun")
    return [int((run.path / "ran.txt").read_text().split()[-1]) for run in runs_of(folder)]


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: all(ledger.process_start(pid) is None for pid in pids), "the processes are gone")


def let_hours_pass_after(condition: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """For the driver's clock, so that no time-out depends on how busy the machine is."""

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + (2 * HOUR if condition() else 0.0)

    monkeypatch.setattr("gatelab.study.drive.time", Clock)


def test_success_is_done_once(study: StudyFolder, executor: Executor) -> None:
    assert go(study, executor, "succeed").is_complete
    assert go(study, executor, "succeed").is_complete
    for run in runs_of(study):
        assert outcomes(run) == ["done"] and n_starts(run) == 1


def test_divergence_is_a_result(study: StudyFolder, executor: Executor) -> None:
    summary = go(study, executor, "diverge")
    assert set(summary.states.values()) == {"diverged"} and summary.is_complete


def test_an_exception_is_told_in_one_line_and_kept_whole(study: StudyFolder, executor: Executor) -> None:
    summary = go(study, executor, "fail")
    assert set(summary.states.values()) == {"failed"} and not summary.is_complete
    assert set(summary.messages.values()) == {"model.n_heads=3 does not divide d_model=64"}
    for run in runs_of(study):
        (attempt,) = run.attempts()
        assert "raise ValueError" in attempt["traceback"] and attempt["exit_code"] == EXITS["failed"]
        log = (run.path / "log.txt").read_text()
        assert "about to fail" in log and "raise ValueError" in log


def test_a_failed_run_waits_for_retry(study: StudyFolder, executor: Executor) -> None:
    go(study, executor, "fail")
    assert set(go(study, executor, "succeed").states.values()) == {"failed"}
    assert sorted(retry(study)) == sorted(run.fingerprint for run in runs_of(study))
    assert go(study, executor, "succeed").is_complete
    for run in runs_of(study):
        assert outcomes(run) == ["failed", "reset", "done"]


def test_a_task_that_returns_unfinished_has_failed(study: StudyFolder, executor: Executor) -> None:
    assert set(go(study, executor, "leave").states.values()) == {"failed"}


def test_a_target_that_does_not_exist_has_failed(study: StudyFolder, executor: Executor) -> None:
    summary = go(study, executor, "no_such_function")
    assert all("no_such_function" in message for message in summary.messages.values())


def test_a_killed_worker_is_lost_and_tried_again(study: StudyFolder, executor: Executor) -> None:
    assert go(study, executor, "die_once").is_complete
    for run in runs_of(study):
        assert outcomes(run) == ["lost", "done"]
        assert run.attempts()[0]["signal"] == "SIGKILL"


def test_lost_retries_are_counted_within_a_drive(study: StudyFolder, executor: Executor) -> None:
    summary = go(study, executor, "die", lost_retries=0)
    assert set(summary.states.values()) == {"lost"}
    assert set(summary.messages.values()) == {"the worker was ended by SIGKILL and could not say why; its log.txt may"}
    assert all(outcomes(run) == ["lost"] for run in runs_of(study))
    go(study, executor, "die", lost_retries=1)
    assert all(outcomes(run) == ["lost"] * 3 for run in runs_of(study))


def test_a_hang_is_ended_at_its_time_out_with_all_it_started(
    study: StudyFolder, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_hours_pass_after(lambda: all((run.path / "grandchild").exists() for run in runs_of(study)), monkeypatch)
    summary = go(study, executor, "hang", grace_s=0.2, timeout_s=HOUR)
    assert set(summary.states.values()) == {"timeout"}
    pids = [int(file.read_text()) for run in runs_of(study) for file in (run.path / "ran.txt", run.path / "grandchild")]
    wait_until_gone(pids)
    assert all(outcomes(run) == ["timeout"] for run in runs_of(study))


def test_a_time_out_that_is_obeyed_resumes_in_the_next_drive(
    study: StudyFolder, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_hours_pass_after(lambda: all(n_starts(run) for run in runs_of(study)), monkeypatch)
    summary = go(study, executor, "count_until_told", timeout_s=HOUR)
    assert set(summary.states.values()) == {"timeout"}
    counted = [json.loads((run.path / "checkpoint.json").read_text()) for run in runs_of(study)]
    (study.path / "finish").touch()
    assert go(study, executor, "count_until_told").is_complete
    assert [run.done()["steps"] for run in runs_of(study)] == counted


def test_out_of_memory_is_tried_again_with_half_the_micro_batch(study: StudyFolder, executor: Executor) -> None:
    assert go(study, executor, "need_small_batch").is_complete
    for run in runs_of(study):
        assert [(a["outcome"], a["micro_batch"]) for a in run.attempts()] == [("oom", 0), ("done", 4)]


def test_out_of_memory_is_tried_again_only_once(study: StudyFolder, executor: Executor) -> None:
    for _ in range(2):
        summary = go(study, executor, "run_out_of_memory", micro_batch=2)
        assert set(summary.states.values()) == {"oom"}
    for run in runs_of(study):
        assert [(a["outcome"], a["micro_batch"]) for a in run.attempts()] == [("oom", 2), ("oom", 1)]


def test_the_run_of_a_lost_machine_is_taken_over(study: StudyFolder, executor: Executor) -> None:
    for run in runs_of(study):
        set_age(attempt_path(run, plant_attempt(run).number), HOUR)
    assert go(study, executor, "succeed").is_complete
    assert all(outcomes(run) == ["lost", "done"] for run in runs_of(study))


def test_the_run_of_a_living_driver_elsewhere_is_left_alone(study: StudyFolder, executor: Executor) -> None:
    theirs, ours = runs_of(study)
    plant_attempt(theirs)
    summary = go(study, executor, "succeed")
    assert summary.elsewhere == (theirs.fingerprint,)
    assert summary.states == {theirs.fingerprint: "running", ours.fingerprint: "done"}
    assert n_starts(theirs) == 0


def test_a_worker_does_not_begin_what_is_held(study: StudyFolder, executor: Executor) -> None:
    theirs = runs_of(study)[0]
    plant_attempt(theirs)
    handle = executor.submit(Task(str(study.path), (theirs.fingerprint,), {}, target="tasks:succeed"))
    ended = []
    wait_until(lambda: ended.extend(executor.poll(0.1)) or bool(ended), "the worker has left")
    assert [(e.handle, e.exit_code, e.signal) for e in ended] == [(handle, EXITS["held"], None)]
    assert n_starts(theirs) == 0


def test_two_drivers_at_once_run_every_run_exactly_once(tmp_path: Path, kind: str) -> None:
    study = make_study(tmp_path / "study", 8)
    drivers = [start_driver(study, "meet", kind) for _ in range(2)]
    for driver in drivers:
        driver.communicate()
        assert driver.returncode == 0
    assert [outcomes(run) for run in runs_of(study)] == [["done"]] * 8
    assert [n_starts(run) for run in runs_of(study)] == [1] * 8


def test_after_ctrl_c_tasks_have_checkpointed_and_the_next_drive_goes_on(
    study: StudyFolder, executor: Executor, kind: str
) -> None:
    driver = start_driver(study, "count_until_told", kind)
    workers = wait_for_starts(study)
    # A terminal sends it to the whole foreground group; the workers must not be in it.
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.communicate()[0] == "interrupted\n"
    assert all(ledger.process_start(pid) is None for pid in workers)
    assert [outcomes(run) for run in runs_of(study)] == [["stopped"]] * 2
    counted = [json.loads((run.path / "checkpoint.json").read_text()) for run in runs_of(study)]
    (study.path / "finish").touch()
    assert go(study, executor, "count_until_told").is_complete
    assert [run.done()["steps"] for run in runs_of(study)] == counted


def test_a_second_ctrl_c_kills_what_does_not_listen(study: StudyFolder, kind: str) -> None:
    driver = start_driver(study, "hang", kind, grace_s=HOUR)
    workers = wait_for_starts(study)
    driver.send_signal(signal.SIGINT)
    wait_until(lambda: all((run.path / "asked").exists() for run in runs_of(study)), "both were asked to stop")
    assert driver.poll() is None and {ledger.state_of(run) for run in runs_of(study)} == {"running"}
    driver.send_signal(signal.SIGINT)
    assert driver.communicate()[0] == "interrupted\n"
    wait_until_gone(workers)
    assert [outcomes(run) for run in runs_of(study)] == [["stopped"]] * 2


def test_workers_of_a_killed_driver_checkpoint_and_leave(study: StudyFolder, executor: Executor, kind: str) -> None:
    driver = start_driver(study, "count_until_told", kind)
    workers = wait_for_starts(study)
    driver.kill()
    driver.communicate()
    wait_until_gone(workers)
    assert [outcomes(run) for run in runs_of(study)] == [["stopped"]] * 2
    (study.path / "finish").touch()
    assert go(study, executor, "count_until_told").is_complete


def test_workers_of_a_killed_driver_that_hang_are_ended(study: StudyFolder, executor: Executor, kind: str) -> None:
    driver = start_driver(study, "hang", kind, grace_s=0.5)
    workers = wait_for_starts(study)
    driver.kill()
    driver.communicate()
    wait_until_gone(workers)
    assert {ledger.state_of(run) for run in runs_of(study)} == {"lost"}
    assert go(study, executor, "succeed").is_complete


def test_extending_the_plan_runs_only_what_is_new(tmp_path: Path, executor: Executor) -> None:
    go(make_study(tmp_path / "study", 2), executor, "succeed")
    study = make_study(tmp_path / "study", 2, arms=("none", "sdpa-headwise"))
    assert go(study, executor, "succeed").is_complete
    assert [n_starts(run) for run in runs_of(study)] == [1] * 4


def test_a_full_disk_stops_the_drive_and_nothing_else(tmp_path: Path, executor: Executor) -> None:
    study = make_study(tmp_path / "study", 5)
    summary = go(study, executor, "fill_disk")
    assert summary.halted == "the disk is full: 5 runs keep what they had; free space and run the same command again"
    states = list(summary.states.values())
    assert "disk-full" in states and "planned" in states and set(states) == {"disk-full", "planned"}
    assert go(study, executor, "succeed").is_complete


def test_a_disk_too_full_for_the_last_word_is_told_all_the_same(study: StudyFolder, executor: Executor) -> None:
    summary = go(study, executor, "fill_disk_wholly")
    assert "disk-full" in summary.states.values() and summary.halted.startswith("the disk is full: 2 runs keep")
    assert go(study, executor, "succeed").is_complete


def test_a_group_of_one_shape_shares_a_process(tmp_path: Path, executor: Executor) -> None:
    study = make_study(tmp_path / "study", 3, arms=("none", "sdpa-headwise"))
    assert go(study, executor, "succeed", group=2).is_complete
    workers = [(run.path / "ran.txt").read_text() for run in runs_of(study)]
    assert workers[0] == workers[1] and workers[3] == workers[4]
    assert len(set(workers)) == 4


def test_tasks_see_their_threads_and_device(study: StudyFolder, executor: Executor, kind: str) -> None:
    go(study, executor, "see_device")
    done = [run.done() for run in runs_of(study)]
    assert all(d["OMP_NUM_THREADS"] == "1" and d["session"] for d in done)
    if kind == "fresh":
        assert {d["CUDA_VISIBLE_DEVICES"] for d in done} == {"0", "1"}


def test_close_leaves_no_process(study: StudyFolder, kind: str) -> None:
    executor = EXECUTORS[kind]()
    for run in runs_of(study):
        executor.submit(Task(str(study.path), (run.fingerprint,), {}, target="tasks:hang"))
    workers = wait_for_starts(study)
    wait_until(lambda: all((run.path / "grandchild").exists() for run in runs_of(study)), "all have children")
    server = executor._server.pid
    executor.close()
    executor.close()
    started = [int((run.path / "grandchild").read_text()) for run in runs_of(study)]
    wait_until_gone([*started, *workers, server])
    with pytest.raises(ChildProcessError):
        os.waitpid(server, os.WNOHANG)


def test_a_dead_server_takes_its_tasks_along_and_is_replaced(study: StudyFolder, kind: str) -> None:
    executor = EXECUTORS[kind]()
    for run in runs_of(study):
        executor.submit(Task(str(study.path), (run.fingerprint,), {}, target="tasks:hang"))
    workers = wait_for_starts(study)
    assert executor.poll(0.0) == []
    os.kill(executor._server.pid, signal.SIGKILL)
    ended = []
    wait_until(lambda: ended.extend(executor.poll(0.1)) or len(ended) == 2, "both are reported")
    assert {(e.exit_code, e.signal) for e in ended} == {(None, None)}
    wait_until_gone(workers)
    assert go(study, executor, "succeed").is_complete
    executor.close()


def test_the_worker_command_runs_by_hand(study: StudyFolder, kind: str) -> None:
    run = runs_of(study)[0]
    command = [sys.executable, "-m", "gatelab.study.worker", str(study.path), run.fingerprint]
    done = subprocess.run([*command, "--execution", "{}", "--target", "tasks:succeed"], check=False)
    assert done.returncode == 0 and outcomes(run) == ["done"]
