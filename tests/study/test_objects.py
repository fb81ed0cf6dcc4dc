"""A study on an object store: what the conformance suite asks of folders, across real processes; and what is refused."""

import asyncio
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import wait_until
from fsspec.asyn import AsyncFileSystem
from object_study import (
    go,
    kill_and_go_on,
    outcomes,
    runs_of,
    seen_anew,
    start_driver,
    steps,
    study,
)  # fmt: skip
from object_tasks import signals, starts
from places import needs_ray
from planted_store import PlantedStore, plant

from gatelab import lab, objects
from gatelab.config import ConfigError
from gatelab.objects import Objects, address_of, is_name
from gatelab.store import RunFolder, StoreError, StudyFolder
from gatelab.study import carry_up, ledger, place
from gatelab.study.carry_up import Carrier
from gatelab.study.drive import retry
from gatelab.study.executor import EXITS
from gatelab.study.local import LocalExecutor
from gatelab.study.worker import _end, classify

HOUR = 3600.0
ADDRESS = "planted://bucket/study"
MESH = ("execution.processes=2", "execution.parallel.shard=zero3", "train.tokens=25600")
RAY = ("--executor", "ray")


@pytest.fixture(autouse=True)
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store's own folder of the bucket."""
    for name, value in {**plant(tmp_path), "STUDY_ADDRESS": ADDRESS}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # the path of a socket has 107 bytes at most
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "store" / "bucket"


@pytest.fixture
def executor(bucket: Path) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(slots=2, threads=1, preload=())
    yield executor
    executor.close()


def plant_attempt(run: RunFolder, **facts: object) -> ledger.Attempt:
    """An attempt of an owner on another machine."""
    foreign = {"host": "elsewhere", "machine": "another boot", "pid": 1, "process": "1", "owner": "other"}
    run.look()
    attempt = replace(ledger._begin(ledger.last_attempt(run), "other", "running", driver=None), **foreign | facts)
    assert run.objects.create(run.path / "attempts" / f"{attempt.number:04d}.json", "other", asdict(attempt))
    return attempt


def saves_of(bucket: Path, run: RunFolder) -> list[dict[str, Any]]:
    found = sorted((bucket / "study" / "runs" / run.fingerprint / "saved").glob("*.json"))
    return [json.loads(path.read_text()) for path in found]


def test_success_is_done_once_and_seen_from_anywhere(executor: LocalExecutor, bucket: Path) -> None:
    folder = study()
    assert go(folder, executor, "succeed").is_complete
    assert go(StudyFolder.open(ADDRESS), executor, "succeed").is_complete
    there = seen_anew()
    for run in runs_of(there):
        assert outcomes(run) == ["done"] and len(starts(run)) == 1
        assert steps(there, run) == [1] and "about to succeed" in (run.path / "log.txt").read_text()
        objects = {p.name for p in (bucket / "study" / "runs" / run.fingerprint).rglob("*") if p.is_file()}
        assert {"run.json", "0001.json", "done.json", "rows.jsonl"} <= objects
    executor.close()
    assert not list(Path(tempfile.gettempdir()).glob("gatelab-*"))


def test_what_is_printed_after_the_result_leaves_it_alone(executor: LocalExecutor) -> None:
    assert go(study(1), executor, "succeed_and_talk").is_complete
    there = seen_anew()
    assert steps(there, runs_of(there)[0]) == [1]


def test_an_exception_is_told_and_retried(executor: LocalExecutor) -> None:
    folder = study()
    summary = go(folder, executor, "fail")
    assert set(summary.messages.values()) == {"model.n_heads=3 does not divide d_model=64"}
    assert all("raise ValueError" in (run.path / "log.txt").read_text() for run in runs_of(seen_anew()))
    assert set(go(folder, executor, "succeed").states.values()) == {"failed"}
    assert len(retry(StudyFolder.open(ADDRESS, is_light=True))) == 2
    assert go(folder, executor, "succeed").is_complete
    assert all(outcomes(run) == ["failed", "reset", "done"] for run in runs_of(seen_anew("third")))


def test_a_killed_worker_is_lost_and_tried_again(executor: LocalExecutor) -> None:
    assert go(study(), executor, "die_once").is_complete
    for run in runs_of(seen_anew()):
        assert outcomes(run) == ["lost", "done"] and run.attempts()[0]["signal"] == "SIGKILL"


def test_who_takes_over_goes_on_from_the_last_checkpoint(executor: LocalExecutor, bucket: Path) -> None:
    folder = study(1)
    (run,) = runs_of(folder)
    driver = start_driver("count")
    wait_until(
        lambda: any(s["files"].get("checkpoint.json") for s in saves_of(bucket, run)), "a checkpoint is carried up"
    )
    wait_until(
        lambda: len(saves_of(bucket, run)) and (saves_of(bucket, run)[-1]["files"]["rows.jsonl"] > "0001-000002"), "two"
    )
    (worker,) = starts(run)
    # At once, as a machine's end ends them.
    for pid in (driver.pid, worker):
        os.kill(pid, signal.SIGKILL)
    driver.communicate()
    (signals() / "finish").touch()
    assert go(StudyFolder.open(ADDRESS, is_light=True), executor, "count").is_complete
    there = seen_anew()
    (run,) = runs_of(there)
    began = [int(line) for line in (signals() / f"{run.fingerprint}.from").read_text().split()]
    assert outcomes(run) == ["lost", "done"] and began[0] == 0 and began[1] >= 20 and began[1] % 20 == 0
    assert steps(there, run) == list(range(1, run.done()["steps"] + 1))
    # What nobody needs is gone: checkpoints, and files of the other attempt.
    left = {p.name for p in (bucket / "study" / "runs" / run.fingerprint / "saved").rglob("*") if p.is_file()}
    assert "checkpoint.json" not in left and len(saves_of(bucket, run)) == 1


def test_a_silent_owner_elsewhere_is_displaced_and_a_beating_one_is_not(executor: LocalExecutor, bucket: Path) -> None:
    folder = study(3)
    silent, beating, _ = runs_of(folder)
    for run, age in ((silent, HOUR), (beating, 0.0)):
        # By a clock that is years ahead; what counts is the store's.
        attempt = plant_attempt(run, started="2999-01-01T00:00:00.000+00:00")
        path = bucket / "study" / "runs" / run.fingerprint / "attempts" / f"{attempt.number:04d}.json"
        os.utime(path, (time.time() - HOUR,) * 2)
        run.objects.put(run.objects.name_of(run.path) + "/attempts/0001.beat", b"")
        os.utime(path.with_suffix(".beat"), (time.time() - age,) * 2)
    summary = go(StudyFolder.open(ADDRESS), executor, "succeed_by_a_wrong_clock")
    assert summary.elsewhere == (beating.fingerprint,) and not starts(beating)
    assert outcomes(runs_of(seen_anew())[0]) == ["lost", "done"]


@pytest.mark.slow  # a beat
def test_a_displaced_worker_leaves_and_overwrites_nothing(executor: LocalExecutor, bucket: Path) -> None:
    folder = study(1)
    (run,) = runs_of(folder)
    driver = start_driver("count")
    wait_until(lambda: len(saves_of(bucket, run)) > 0, "a save is there")
    (worker,) = starts(run)
    os.kill(worker, signal.SIGSTOP)
    theirs = plant_attempt(run)
    run.objects.put(f"runs/{run.fingerprint}/saved/0002-000001.json", b'{"files": {}, "step": 7}')
    os.kill(worker, signal.SIGCONT)
    wait_until(lambda: ledger.process_start(worker) is None, "it has left")
    there = seen_anew()
    assert ledger.last_attempt(there.run(run.fingerprint)) == theirs
    assert there.objects.saved(f"runs/{run.fingerprint}") == {"files": {}, "step": 7}
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()


def test_two_drivers_at_once_run_every_run_exactly_once(bucket: Path) -> None:
    study(6)
    for driver in [start_driver("meet") for _ in range(2)]:
        driver.communicate()
    for run in runs_of(seen_anew()):
        assert outcomes(run) == ["done"] and len(starts(run)) == 1


def test_after_ctrl_c_all_is_saved_and_the_next_drive_goes_on(executor: LocalExecutor) -> None:
    folder = study()
    driver = start_driver("count")
    wait_until(lambda: all(starts(run) for run in runs_of(folder)), "both have begun")
    time.sleep(0.5)
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.communicate()[0] == "interrupted\n"
    there = seen_anew()
    assert [outcomes(run) for run in runs_of(there)] == [["stopped"]] * 2
    counted = [json.loads((run.path / "rows.jsonl").read_text().splitlines()[-1])["step"] for run in runs_of(there)]
    (signals() / "finish").touch()
    assert go(StudyFolder.open(ADDRESS), executor, "count").is_complete
    assert [run.done()["steps"] for run in runs_of(seen_anew("third"))] == counted


def test_a_result_waits_for_a_store_that_takes_nothing(bucket: Path) -> None:
    (run,) = runs_of(study(1))
    driver = start_driver("count")
    wait_until(lambda: saves_of(bucket, run), "a save is there")
    (signals() / "down").touch()
    (signals() / "finish").touch()
    (worker,) = starts(run)
    (log,) = Path(tempfile.gettempdir()).glob(f"gatelab-*-scratch/runs/{run.fingerprint}/log.txt")
    wait_until(lambda: "not carried, and tried again: [Errno 5] the store is down" in log.read_text(), "it was tried")
    (signals() / "down").unlink()
    assert driver.wait(60) == 0 and driver.communicate()[0] == ""
    (run,) = runs_of(seen_anew())
    assert outcomes(run) == ["done"] and starts(run) == [worker]


def test_a_blip_as_a_driver_closes_an_attempt_is_no_halt(
    executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "_PAUSE_S", 0.01)
    folder, asked = study(1), []

    def names(self: Objects, under: str = "", names: Any = Objects.names) -> dict[str, str]:
        asked.append(under)
        if len(asked) <= 3:
            raise OSError(errno.EIO, "a blip")
        return names(self, under)

    (run,) = runs_of(folder)
    look = run.objects.look

    def begin_to_fail(path: Path) -> None:
        monkeypatch.setattr(Objects, "names", names)
        look(path)

    monkeypatch.setattr(folder.objects, "look", begin_to_fail)
    summary = go(folder, executor, "die_once")
    assert summary.is_complete and not summary.halted
    assert outcomes(runs_of(folder)[0]) == ["lost", "done"] and len(asked) > 3


def test_a_token_that_expires_is_a_loss_and_not_the_runs_fault(executor: LocalExecutor, bucket: Path) -> None:
    folder = study(1)
    (run,) = runs_of(folder)
    driver = start_driver("count")
    wait_until(lambda: saves_of(bucket, run), "a save is there")
    (signals() / "expired").touch()
    (signals() / "finish").touch()
    (worker,) = starts(run)
    wait_until(lambda: ledger.process_start(worker) is None, "it gave up")
    driver.communicate()
    (signals() / "expired").unlink()
    summary = go(StudyFolder.open(ADDRESS, is_light=True), executor, "count")
    assert summary.is_complete and outcomes(runs_of(seen_anew())[0])[-1] == "done"


def test_errors_of_the_place_are_told_from_the_runs_own() -> None:
    (run,) = runs_of(study(1))

    def refused() -> None:
        raise PermissionError("Access Denied")

    with pytest.raises(place.PlaceError) as caught:
        place.patiently(run, refused)
    assert classify(caught.value) == ("lost", "the store failed: Access Denied")
    with pytest.raises(PermissionError, match="Access Denied") as own:
        place.patiently(RunFolder(run.path), refused)
    assert classify(own.value)[0] == "failed"


def test_a_claim_whose_answer_was_lost_is_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = runs_of(study(1))
    monkeypatch.setattr(place, "_PAUSE_S", 0.01)
    monkeypatch.setattr(PlantedStore, "lost", ["attempts/0001.json$"])
    read = run.objects.read

    def read_later(name: str) -> bytes:
        monkeypatch.setattr(run.objects, "read", read)
        raise OSError(errno.EIO, "a blip")

    monkeypatch.setattr(run.objects, "read", read_later)
    mine = place.patiently(run, lambda: ledger.claim(run, "me", known=0))
    assert mine is not None and (mine.number, mine.owner) == (1, "me")
    assert ledger.claim(run, "you") is None


def test_an_end_that_is_not_taken_at_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = runs_of(study(1))
    monkeypatch.setattr(place, "_PAUSE_S", 0.01)
    mine = ledger.claim(run, "me")
    monkeypatch.setattr(PlantedStore, "lost", ["attempts/0001.json$"] * 2)
    assert _end([(run, mine)], [], ValueError("no such key"), stopped=False) == EXITS["failed"]
    assert ledger.last_attempt(runs_of(seen_anew())[0]).outcome == "failed"


def test_extending_the_plan_runs_only_what_is_new(executor: LocalExecutor) -> None:
    assert go(study(), executor, "succeed").is_complete
    folder = study(arms=("none", "sdpa-headwise"))
    assert go(folder, executor, "succeed").is_complete
    assert [len(starts(run)) for run in runs_of(folder)] == [1] * 4


def test_what_is_gone_from_the_store_is_gone_from_the_mirror(executor: LocalExecutor, bucket: Path) -> None:
    folder = study(2)
    assert go(folder, executor, "succeed").is_complete
    there = StudyFolder.open(ADDRESS)
    first, second = runs_of(there)
    first.look()
    shutil.rmtree(bucket / "study" / "runs" / first.fingerprint / "attempts")
    (bucket / "study" / "runs" / first.fingerprint / "done.json").unlink()
    shutil.rmtree(bucket / "study" / "runs" / first.fingerprint / "saved")
    plant_attempt(second)
    (bucket / "study" / "runs" / second.fingerprint / "attempts" / "0002.json").unlink()
    there.refresh()
    assert ledger.state_of(first) == "planned" and not (first.path / "saved.json").exists()
    assert ledger.state_of(second) == "done" and outcomes(second) == ["done"]


def test_of_several_that_claim_one_has_it_and_a_put_that_was_sent_twice_is_one(bucket: Path) -> None:
    (run,) = runs_of(study(1))
    path = run.path / "attempts" / "0001.json"
    assert run.objects.create(path, "me", {"a": 1})
    assert run.objects.create(path, "me", {"a": 1})
    assert not run.objects.create(path, "you", {"a": 2})


def carried(folder: StudyFolder, name: str = "worker") -> tuple[RunFolder, Carrier]:
    """A run of a worker's scratch folder, and what carries it up."""
    worker = StudyFolder.at(ADDRESS, signals().parent / name)
    worker.refresh()
    run = worker.run(runs_of(folder)[0].fingerprint)
    return run, Carrier(run, run.objects, 1)


def test_a_save_whose_answer_was_lost_is_read_anew_after_the_next(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study(1)
    run, carrier = carried(folder)
    run.rows_path.write_text("1\n")
    monkeypatch.setattr(PlantedStore, "lost", [r"/saved/[\d-]+\.json$"])
    with pytest.raises(OSError, match="the answer was lost"):
        carrier.save()
    reader = seen_anew()
    assert runs_of(reader)[0].rows_path.read_text() == "1\n"
    run.rows_path.write_text("1\n2\n")
    carrier.save()
    reader.refresh(None)
    assert runs_of(reader)[0].rows_path.read_text() == "1\n2\n"
    # Of the try nothing is left.
    found = {
        p.relative_to(bucket / "study" / "runs" / run.fingerprint / "saved").as_posix()
        for p in bucket.rglob("saved/**/*")
        if p.is_file()
    }
    assert found == {"0001-000002.json", "0001-000002/rows.jsonl"}


def test_a_result_whose_answer_was_lost_keeps_the_save_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    run, carrier = carried(study(1))
    run.rows_path.write_text("1\n")
    run.mark_done("done", {"steps": 1, "seconds": 0.0})
    monkeypatch.setattr(PlantedStore, "lost", ["done.json$"])
    monkeypatch.setattr(run.objects, "read", lambda name: (_ for _ in ()).throw(PermissionError("closed")))
    with pytest.raises(OSError):
        carrier.finish()
    (run.path / "log.txt").write_text("the last words")
    carrier.save()
    (run,) = runs_of(seen_anew())
    assert ledger.state_of(run) == "done" and run.rows_path.read_text() == "1\n"


def test_two_threads_that_save_are_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    run, carrier = carried(study(1))
    at_once, most, upload = [], [], run.objects.upload

    def slowly(path: Path, name: str) -> None:
        if name.endswith(".json"):
            at_once.append(name)
            time.sleep(0.05)
            most.append(len(at_once))
            at_once.remove(name)
        upload(path, name)

    monkeypatch.setattr(run.objects, "upload", slowly)

    def write_and_save(i: int) -> None:
        (run.path / f"checkpoint{i}.bin").write_text("x")
        carrier.save()

    threads = [threading.Thread(target=write_and_save, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(seen_anew().objects.saved(f"runs/{run.fingerprint}")["files"]) == 4


def test_what_follows_a_run_outlives_any_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _, carrier = carried(study(1))
    is_over, looks = threading.Event(), []

    def look() -> None:
        looks.append(1)
        if len(looks) > 1:
            is_over.set()
        raise ValueError("no OSError")

    monkeypatch.setattr(carrier, "look", look)
    monkeypatch.setattr(carry_up, "LOOK_S", 0.01)
    carry_up._follow([carrier], is_over)
    assert len(looks) == 2


def test_a_reader_without_the_right_to_write_asks_for_the_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = carried(study(1))
    monkeypatch.setenv("PLANTED_FAULT", "closed")
    asked, deleted, put = [], [], run.objects.put
    monkeypatch.setattr(run.objects, "put", lambda name, data: (asked.append(name), put(name, data)))
    monkeypatch.setattr(run.objects, "delete", deleted.extend)
    for _ in range(3):
        assert abs(run.objects.now() - time.time()) < HOUR
    assert len(asked) == 1 and not deleted


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock of this system counts its sleep")
def test_a_machine_that_slept_takes_no_living_owners_run(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = runs_of(study(1))
    attempt = plant_attempt(run)
    assert ledger.is_live(run, attempt)
    since, asleep = time.clock_gettime, 2 * HOUR
    monkeypatch.setattr(time, "clock_gettime", lambda clock: since(clock) + asleep)
    beat = bucket / "study" / "runs" / run.fingerprint / "attempts" / "0001.beat"
    beat.touch()
    monkeypatch.setattr(run.objects, "modified", lambda name: time.time() + asleep)  # the store's clock went on
    assert ledger.is_live(run, attempt)


def test_a_run_starts_from_the_save_that_a_result_names(bucket: Path) -> None:
    run, carrier = carried(study(1))
    saved = bucket / "study" / "runs" / run.fingerprint / "saved"
    for number, weights in (("0001-000002", "of the result"), ("0002-000001", "of one that was displaced")):
        (saved / number).mkdir(parents=True)
        (saved / number / "weights.safetensors").write_text(weights)
        (saved / f"{number}.json").write_text(json.dumps({"files": {"weights.safetensors": number}, "step": 1}))
    assert run.objects.newest(f"runs/{run.fingerprint}") == "0002-000001"
    (saved.parent / "done.json").write_text(json.dumps({"status": "done", "saved": "0001-000002"}))
    carrier.fetch()
    assert (run.path / "weights.safetensors").read_text() == "of the result"


def test_names_of_a_store_lead_nowhere_else(bucket: Path, tmp_path: Path) -> None:
    (run,) = runs_of(study(1))
    names = (
        "../out",
        "a/../../../../out",
        "/tmp/out",
        "a//b",
        ".hidden",
        "a/.b",
        "a\\..\\b",
        "done.json",
        "attempts/0009.json",
        "x\n",
    )
    save = {
        "files": {**dict.fromkeys(names, "0001-000001"), "log.txt": "0001-000001", "rows.jsonl": "../../x"},
        "step": "x",
    }
    run.objects.put(f"runs/{run.fingerprint}/saved/0001-000001.json", json.dumps(save).encode())
    run.objects.put(f"runs/{run.fingerprint}/saved/0001-000001/log.txt", b"said")
    run.objects.put("runs/.x", b"{}")
    there = seen_anew("deep/down")
    assert there.objects.saved(f"runs/{run.fingerprint}") == {"files": {"log.txt": "0001-000001"}, "step": None}
    found = {p.relative_to(there.path).as_posix() for p in there.path.rglob("*") if p.is_file()}
    assert found == {".objects.json", ".objects.lock", "study.json"} | {
        f"runs/{run.fingerprint}/{name}" for name in ("run.json", "log.txt", "saved.json")
    }
    assert not any(is_name(name) for name in (*names[:7], "x\n"))


REFUSED = {
    "planted://nowhere/x": r"nowhere/x: there is no such bucket; make it first",
    "memory://x/y": r"is no place that several processes share",
    "simplecache::s3://x/y": r"is no place that several processes share",
    "file:///tmp/x": r"is a folder of this machine; name it as one, /tmp/x",
    "github://x:y@main/z": r"cannot create an object on the condition that there is none",
    "nothing://x/y": r"nothing://x/y: cannot be used \(Protocol not known: nothing\)",
}


@pytest.mark.parametrize("address", REFUSED)
def test_what_is_no_place_for_a_study_is_refused_in_one_sentence(address: str) -> None:
    with pytest.raises(StoreError, match=REFUSED[address]) as refused:
        StudyFolder.at(address).check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("address", REFUSED)
def test_what_is_refused_leaves_no_mirror(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError), monkeypatch.context() as patched:
        patched.setattr(PlantedStore, "find", lambda *_, **__: (_ for _ in ()).throw(PermissionError("Access Denied")))
        StudyFolder.open(address)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_store_that_does_not_answer_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(AsyncFileSystem):
        protocol = "silent"

        async def _info(self, path: str, **_: object) -> dict[str, object]:
            await asyncio.sleep(60)
            return {}

        async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
            raise AssertionError("nothing more is asked")

    fsspec.register_implementation("silent", Silent, clobber=True)
    monkeypatch.setattr(objects, "FIRST_S", 1)
    with pytest.raises(StoreError, match=r"^silent://b/x: cannot be read \(no answer within 1 s; is the network there"):
        StudyFolder.open("silent://b/x")
    with pytest.raises(StoreError, match=r"^--out silent://b/x: cannot be written \(no answer within 1 s"):
        StudyFolder.at("silent://b/x").check()
    assert not (tmp_path / "cache").exists()


def test_a_protocol_whose_package_is_missing_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(StoreError, match=r"abfs:// needs the package adlfs, which is not installed; pip install adlfs"):
        StudyFolder.at("abfs://x/y").check()


FAULTS = {
    "careless": "creates an object that is there already, so that two workers could begin one run",
    "closed": r"may not be written \(Access Denied\); check your credentials",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_does_not_do_is_refused_before_anything_starts(
    fault: str, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_FAULT", fault)
    with pytest.raises(StoreError, match=FAULTS[fault]):
        study()
    assert not [p for p in bucket.rglob("*") if p.is_file()]


def test_a_plan_that_was_never_pushed_blocks_no_address(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push = PlantedStore.pipe_file

    def refuse(self: PlantedStore, path: str, value: bytes, mode: str = "overwrite", **rest: Any) -> None:
        if path.endswith("study.json"):
            raise PermissionError("Access Denied")
        push(self, path, value, mode, **rest)

    monkeypatch.setattr(PlantedStore, "pipe_file", refuse)
    with pytest.raises(StoreError, match=r"study: may not be written \(Access Denied\); check your credentials for it"):
        study()
    monkeypatch.setattr(PlantedStore, "pipe_file", push)
    folder = StudyFolder.at(ADDRESS)
    assert (folder.path / "study.json").exists()
    folder.check()
    assert not (folder.path / "study.json").exists() and not list(folder.path.glob("runs/*/run.json"))
    study(1)
    # What was read, or written, stays.
    folder.check()
    assert len(runs_of(folder)) == 1 and runs_of(folder)[0].config()["seed"] == 0


def test_what_something_else_lives_in_is_left_alone(bucket: Path) -> None:
    (bucket / "study").mkdir()
    (bucket / "study" / "photo.png").touch()
    with pytest.raises(StoreError, match=r"holds something else \(photo.png\)"):
        study()
    with pytest.raises(StoreError, match=r"planted://bucket/study: holds no study"):
        StudyFolder.open(ADDRESS)


def test_slurm_wants_a_folder(bucket: Path) -> None:
    from gatelab.study.slurm import Allocation

    with pytest.raises(ConfigError, match="name one that all machines see"):
        lab.submit("quickstart", ADDRESS, Allocation())


@pytest.mark.parametrize(
    ("word", "address"),
    [
        ("s3://b/x/", "s3://b/x"),
        ("file:///x/", "file:///x"),
        (Path("s3://b/x"), "s3://b/x"),
        ("C:/x", None),
        ("a/b:/c", None),
        ("runs/x", None),
    ],
)
def test_an_address_is_told_from_a_path(word: str | Path, address: str | None) -> None:
    assert address_of(word) == address


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), MESH, pytest.param(RAY, marks=needs_ray)], ids=["alone", "mesh", "ray"])
def test_a_real_study_that_is_killed_ends_as_in_a_folder_and_has_its_page(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    kill_and_go_on(tmp_path, *words)
