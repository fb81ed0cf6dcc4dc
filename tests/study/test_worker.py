import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import attempt_path, make_study, plant_attempt, set_age
from places import HERE
from tasks import OutOfMemoryError, n_starts

from gatelab.config import ConfigError
from gatelab.store import RunFolder, StudyFolder
from gatelab.study import ledger
from gatelab.study.executor import EXITS
from gatelab.study.gang import FailedError, LostError
from gatelab.study.worker import _end, classify, disk_is_full


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rows.jsonl")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MemoryError(), "oom"),
        (OutOfMemoryError("CUDA out of memory."), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
        (FULL, "disk-full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "disk-full"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk-full"),
        (raised_from(RuntimeError("cannot save"), FULL), "disk-full"),
        (RuntimeError("shape mismatch"), "failed"),
        (RuntimeError("[…/tcp/unbound_buffer.cc:78] Timed out waiting 2000ms for recv operation to complete"), "lost"),
        (RuntimeError("Wait timeout"), "lost"),
        (RuntimeError("[…/tcp/pair.cc:537] Read error [127.0.0.1]:3: Connection reset by peer. This"), "lost"),
        (RuntimeError("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, …"), "lost"),
        (
            RuntimeError("ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"),
            "lost",
        ),
        (LostError("process 1 of 2 was ended by SIGKILL"), "lost"),
        (raised_from(LostError("process 1 of 2 was ended by SIGKILL"), FULL), "disk-full"),
        (raised_from(FailedError("ended with 1"), RuntimeError("Connection closed by peer")), "failed"),
        (ConnectionResetError("Connection reset by peer"), "failed"),
        (PermissionError(errno.EACCES, "Permission denied"), "failed"),
        (SystemExit(3), "failed"),
    ],
)
def test_exceptions_are_told_apart(error: BaseException, outcome: str) -> None:
    assert classify(error)[0] == outcome


def test_a_mistake_of_the_user_is_told_in_its_own_words() -> None:
    assert (
        classify(ConfigError(["seed=-1: too small", "data.kind: missing"]))[1]
        == "seed=-1: too small; data.kind: missing"
    )
    assert classify(KeyError("w1"))[1] == "KeyError: 'w1'"
    assert classify(RuntimeError())[1] == "RuntimeError: RuntimeError"


def test_the_full_disk_speaks_of_one_run_and_of_many() -> None:
    assert "1 run keeps what it had" in disk_is_full(1) and "3 runs keep what they had" in disk_is_full(3)


def by_hand(*words: object, module: str = "worker", **environ: str) -> tuple[int, str]:
    """The exit status of the command, and what it says on stderr."""
    command = [sys.executable, "-m", f"gatelab.study.{module}", "--target", "tasks:succeed", *map(str, words)]
    environ = os.environ | {"PYTHONPATH": str(HERE)} | environ
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr + (done.stdout if module == "pull" else "")


def all_in(path: Path) -> set[str]:
    return {str(p) for p in path.rglob("*")}


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return make_study(tmp_path / "a" / "b" / "study", 1)


@pytest.fixture
def fake(study: StudyFolder) -> RunFolder:
    (run,) = (run for _, run in study.planned())
    return run


def test_what_cannot_be_carried_out_is_told_in_a_line_and_nothing_is_written(
    tmp_path: Path, study: StudyFolder, fake: RunFolder
) -> None:
    before = all_in(tmp_path)
    here, name = study.path, fake.fingerprint
    for words, says in [
        ((here, f"{name[:-1]}x"), f"{here}: has no run '{name[:-1]}x'; did you mean '{name}'?"),
        ((here, "zzz"), f"{here}: has no run 'zzz'; one that it has is {name}"),
        ((here, "../../../esc"), f"{here}: has no run '../../../esc'; one that it has is {name}"),
        (
            (tmp_path / "none", name),
            f"{tmp_path}/none: no such folder; `gatelab run STUDY --out {tmp_path}/none` makes one",
        ),
        ((here, name, "--execution", "{'tp': 2}"), "--execution {'tp': 2}: cannot be read as JSON (Expecting property"),
        ((here, name, "--execution", "[1]"), "--execution [1]: expected a JSON object"),
        ((here, name, "--execution", '{"thread": 2}'), "execution.thread: no such key; allowed here: attention,"),
    ]:
        code, said = by_hand(*words)
        assert (code, said.count("\n")) == (2, 1) and said.startswith(f"gatelab: {says}"), said
    assert all_in(tmp_path) == before


def test_of_ranks_that_share_a_run_the_first_alone_says_what_is_wrong(study: StudyFolder) -> None:
    assert by_hand(study.path, "zzz", RANK="1", WORLD_SIZE="2") == (2, "")
    assert by_hand(study.path, "zzz", RANK="0", WORLD_SIZE="2")[1].count("\n") == 1


@pytest.mark.parametrize("words", ["{'tp': 2}", "[1]", '{"thread": 2}'])
def test_a_job_says_in_a_line_what_its_execution_cannot_be(study: StudyFolder, words: str) -> None:
    code, said = by_hand(study.path, "--execution", words, module="pull")
    assert (code, said.count("\n")) == (1, 1) and said.startswith("gatelab: ")


def test_how_a_run_ended_is_told_in_a_line(study: StudyFolder, fake: RunFolder) -> None:
    name = fake.fingerprint
    code, said = by_hand(study.path, name, "--target", "tasks:fail")
    says = f"{name}: failed (model.n_heads=3 does not divide d_model=64); {fake.path}/log.txt has more"
    assert (code, said) == (EXITS["failed"], f"gatelab: {says}\n")
    held = plant_attempt(fake)
    assert by_hand(study.path, name) == (EXITS["held"], f"gatelab: {name}: held by process 1 on elsewhere\n")
    set_age(attempt_path(fake, held.number), 2 * ledger.STALE_S)
    for _ in range(2):
        assert by_hand(study.path, name) == (0, f"gatelab: {name}: done\n")
    assert n_starts(fake) == 2


def cut(path: Path) -> str:
    """Cut a file in two; returns what is said of it."""
    path.write_bytes(path.read_bytes()[:40])
    return f"{path}: not readable as JSON"


def test_a_damaged_run_is_told_in_a_line_and_nothing_is_written(tmp_path, study, fake):
    plant_attempt(fake, "stopped")
    says = cut(attempt_path(fake, 1))
    before = all_in(tmp_path)
    code, said = by_hand(study.path, fake.fingerprint)
    assert (code, said.count("\n")) == (2, 1) and said.startswith(f"gatelab: {fake.fingerprint}: damaged ({says}"), said
    assert all_in(tmp_path) == before


@pytest.mark.parametrize("file", ["run.json", "done.json", "attempts/0001.json"])
def test_beside_a_damaged_run_the_others_of_a_hand_are_carried_out(tmp_path: Path, file: str) -> None:
    study = make_study(tmp_path / "study", 2)
    first, second = (run for _, run in study.planned())
    plant_attempt(first, "stopped")
    if file == "done.json":
        first.mark_done("done", {"steps": 1, "seconds": 0.0})
    says = cut(first.path / file)
    code, said = by_hand(study.path, first.fingerprint, second.fingerprint)
    damaged, done = said.splitlines()
    assert damaged.startswith(f"gatelab: {first.fingerprint}: damaged ({says}") and "Traceback" not in said
    assert (code, done) == (1, f"gatelab: {second.fingerprint}: done")
    assert n_starts(first) == 0 and not (first.path / "log.txt").exists()


def test_beside_a_run_that_lost_its_configuration_the_others_are_carried_out(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 2)
    first, second = (run for _, run in study.planned())
    (first.path / "run.json").unlink()
    code, said = by_hand(study.path, first.fingerprint, second.fingerprint)
    lost, done = said.splitlines()
    assert lost.startswith(f"gatelab: {first.fingerprint}: damaged ({first.path}/run.json is missing; `gatelab run` of")
    assert (code, done) == (1, f"gatelab: {second.fingerprint}: done")
    assert by_hand(study.path, first.fingerprint) == (2, f"{lost}\n")


def test_a_run_that_is_damaged_when_its_worker_begins_is_left_out_of_the_group(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", 2)
    first, second = (run for _, run in study.planned())
    plant_attempt(first, "stopped")
    says = cut(attempt_path(first, 1))
    assert by_hand(study.path, first.fingerprint, second.fingerprint, "--owner", "a-driver")[0] == 0
    assert [ledger.state_of(run) for run in (first, second)] == ["damaged", "done"]
    log = (first.path / "log.txt").read_text()
    assert log.startswith(f"{first.fingerprint}: left out, since it is damaged: {says}") and "Traceback" not in log
    assert by_hand(study.path, first.fingerprint, "--owner", "a-driver")[0] == EXITS["held"]


def test_an_attempt_that_is_damaged_while_it_runs_keeps_no_other_from_its_last_word(tmp_path, capsys):
    study = make_study(tmp_path / "study", 3)
    runs = [run for _, run in study.planned()]
    held = [(run, ledger.claim(run, "me")) for run in runs]
    says = cut(attempt_path(runs[0], 1))
    runs[0].mark_done("done", {"steps": 1, "seconds": 0.0})
    (runs[1].path / "done.json").write_text("{")
    runs[2].mark_done("done", {"steps": 1, "seconds": 0.0})
    assert _end(held, [], None, stopped=True) == EXITS["stopped"]
    assert [ledger.state_of(run) for run in runs] == ["done", "damaged", "done"]
    assert ledger.last_attempt(runs[2]).outcome == "done"
    assert f"the end of the attempt could not be written: {says}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ntasks", "world", "outcome"), [(None, "2", "stopped"), ("2", "2", "lost"), ("1", "1", "stopped")]
)
def test_a_step_of_srun_that_lost_a_process_is_lost_though_it_was_asked_to_stop(monkeypatch, ntasks, world, outcome):
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    for name, value in (("SLURM_NTASKS", ntasks), ("WORLD_SIZE", world)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert _end([], [], LostError("another process of the run is gone"), stopped=True) == EXITS[outcome]
