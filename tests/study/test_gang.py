"""A gang: processes that share a task's runs begin together, end together, and can be reached from nowhere else."""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from carrier import folder as planned
from conftest import make_study, wait_until
from sockets import is_loopback, listening

from gatelab.config import Execution
from gatelab.store import StudyFolder, read_json
from gatelab.study import ledger
from gatelab.study.drive import Summary, drive
from gatelab.study.executor import EXITS, Task
from gatelab.study.gang import FailedError, LostError, _meaning
from gatelab.study.local import LocalExecutor
from gatelab.study.pull import pull


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalExecutor]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(tiny.__file__).parent)]))
    executor = LocalExecutor(slots=1, threads=1, preload=())
    yield executor
    executor.close()


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return make_study(tmp_path / "study", 1)


def go(study: StudyFolder, executor: LocalExecutor, target: str, processes: int = 2) -> Summary:
    entries = study.study()["plan"]
    return drive(study, executor, Execution(processes=processes), entries=entries, target=f"tasks:{target}")


def ranks(study: StudyFolder) -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted(study.path.glob("rank-*"))]


def test_a_gang_has_ranks_and_one_meeting(study: StudyFolder, executor: LocalExecutor) -> None:
    (study.path / "finish").touch()
    assert go(study, executor, "share", processes=3).is_complete
    facts = ranks(study)
    assert [f["RANK"] for f in facts] == [f["LOCAL_RANK"] for f in facts] == ["0", "1", "2"]
    assert {f["WORLD_SIZE"] for f in facts} == {"3"}
    (meeting,) = {f["GATELAB_MEETING"] for f in facts}
    assert meeting.startswith("file:///") and not Path(meeting.removeprefix("file://")).parent.exists()
    assert [a["outcome"] for _, run in study.planned() for a in run.attempts()] == ["done"]


@pytest.mark.slow
def test_one_that_fails_fails_the_attempt(study: StudyFolder, executor: LocalExecutor) -> None:
    """Twice: out of memory is tried again with half the micro-batch."""
    summary = go(study, executor, "fail_beside")
    assert set(summary.states.values()) == {"oom"}
    (message,) = summary.messages.values()
    assert message == "out of memory: one of the processes that share this run ran out of memory; log.txt has its words"


@pytest.mark.parametrize("how", ["drive", pytest.param("pull", marks=pytest.mark.slow)])
def test_the_run_of_one_that_is_killed_is_lost_and_goes_on_by_itself(
    study: StudyFolder, executor: LocalExecutor, how: str
) -> None:
    """Under a driver, and in a job of Slurm's."""
    if how == "drive":
        summary = go(study, executor, "lose_the_second")
    else:
        summary = pull(study, Execution(processes=2, slots=1, device="cpu"), target="tasks:lose_the_second")
    assert summary.is_complete, summary.messages
    (run,) = (run for _, run in study.planned())
    first, second = run.attempts()
    assert (first["outcome"], first["message"]) == ("lost", "process 1 of 2 was ended by SIGKILL")
    assert second["outcome"] == "done"


@pytest.mark.slow
def test_one_that_is_killed_is_noticed_though_nothing_is_exchanged(study: StudyFolder, executor: LocalExecutor) -> None:
    summary = go(study, executor, "die_as_second")
    assert set(summary.states.values()) == {"lost"}
    assert set(summary.messages.values()) == {"process 1 of 2 was ended by SIGKILL"}


@pytest.mark.slow
def test_one_that_hangs_is_waited_for_as_long_as_is_said(study: StudyFolder, executor: LocalExecutor) -> None:
    execution = Execution(processes=2, wait_s=3.0)
    summary = drive(study, executor, execution, entries=study.study()["plan"], target="tasks:hang_beside")
    assert summary.is_complete, summary.messages
    (run,) = (run for _, run in study.planned())
    first, second = run.attempts()
    says = "another process of the run did not answer for execution.wait_s seconds"
    assert (first["outcome"], first["message"], second["outcome"]) == ("lost", says, "done")


@pytest.mark.slow
def test_one_that_fails_by_itself_is_no_loss(study: StudyFolder, executor: LocalExecutor) -> None:
    summary = go(study, executor, "raise_beside")
    assert set(summary.states.values()) == {"failed"}
    (message,) = summary.messages.values()
    assert message == "FailedError: one of the processes that share this run ended with 1; log.txt has its words"
    (run,) = (run for _, run in study.planned())
    assert "ZeroDivisionError" in (run.path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("codes", "kind", "says"),
    [
        ([None, 0], None, ""),
        ([1, -9], LostError, "process 2 of 3 was ended by SIGKILL"),
        ([-15, EXITS["oom"]], LostError, "process 1 of 3 was ended by SIGTERM"),
        ([1, EXITS["oom"]], MemoryError, "ran out of memory"),
        ([EXITS["lost"], 1], FailedError, "ended with 1"),
        ([EXITS["lost"], None], LostError, "waited in vain"),
    ],
)
def test_how_the_others_ended_says_what_it_means(codes: list[int | None], kind: type | None, says: str) -> None:
    """A signal before all; one that lost another has only noticed it."""
    found = _meaning(codes)
    assert (type(found) is kind and says in str(found)) if kind else found is None


def test_the_others_leave_with_a_killed_worker_and_nothing_stays_behind(
    tmp_path: Path, study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    executor = LocalExecutor(slots=1, threads=1, preload=())
    (_, run) = next(study.planned())
    executor.submit(
        Task(str(study.path), (run.fingerprint,), Execution(processes=2).model_dump(mode="json"), target="tasks:share")
    )
    wait_until(lambda: len(list(study.path.glob("rank-*"))) == 2, "both are there")
    wait_until(lambda: all(path.read_text() for path in study.path.glob("rank-*")), "both have said who they are")
    assert len(list(tmp_path.glob("gatelab-*"))) == 1
    first, second = (int(f["pid"]) for f in ranks(study))
    assert ledger.last_attempt(run).pid == first
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: ledger.process_start(second) is None, "the other has left")
    wait_until(lambda: not list(tmp_path.glob("gatelab-*")), "the place where they met is gone")
    executor.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which Linux has")
def test_a_gang_listens_on_loopback_alone(study: StudyFolder, executor: LocalExecutor) -> None:
    """Its processes have joined each other as training does; the driver listens on nothing."""
    summary = go(study, executor, "listen")
    assert summary.is_complete, summary.messages
    for rank in (0, 1):
        addresses = json.loads((study.path / f"listens-{rank}").read_text())
        assert addresses and all(map(is_loopback, addresses))
    assert not listening(os.getpid())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which Linux has")
def test_listeners_are_seen_for_what_they_are() -> None:
    assert listening(os.getpid()) == set()
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.create_server((address, 0), family=family):
            assert listening(os.getpid()) == {address}
            assert is_loopback(address) == (address == "127.0.0.1")
    assert is_loopback("::1") and is_loopback("::ffff:127.0.0.1") and not is_loopback("::ffff:192.0.2.1")


@pytest.mark.slow
def test_a_gang_trains_a_run(tmp_path: Path, executor: LocalExecutor) -> None:
    study = StudyFolder.create(tmp_path / "study", {"name": "real", "plan": []})
    run = planned(study.path / "runs", tiny.run(steps=3))
    entries = [{"cell": "toy", "arm": "none", "seed": 0, "fingerprint": run.fingerprint}]
    summary = drive(study, executor, Execution(processes=2, device="cpu"), entries=entries)
    assert summary.is_complete, (run.path / "log.txt").read_text()
    assert read_json(run.path / "environment.json")["processes"] == 2
