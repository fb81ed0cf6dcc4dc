"""A full disk, a folder that is read-only, a clock that goes back, readers that come at a bad moment or do not read on."""

import array
import errno
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from carrier import SHORT, folder, result, rows
from conftest import make_study, wait_until
from places import HERE
from safetensors import SafetensorError
from tasks import n_starts

from gatelab import lab
from gatelab.cli import _status
from gatelab.config import Execution
from gatelab.record import Row
from gatelab.store import Appender, StudyFolder, query
from gatelab.study.carry_out import carry_out
from gatelab.study.worker import classify
from gatelab.train import checkpoint

GATELAB = str(Path(sys.executable).with_name("gatelab"))
STUDY = """
from gatelab import Arm, BigramBackcopy, Execution, ModelConfig, ProbeConfig, Run, Study, TrainConfig

study = Study(
    name="small", question="Is there room?",
    cells={"toy": Run(
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2), data=BigramBackcopy(vocab_size=16),
        train=TrainConfig(tokens=300 * 64, batch_size=4, seq_len=16), probe=ProbeConfig(times=2, sequences=2, eval_sequences=2),
    )},
    arms=(Arm("none", {"model.gate": "none"}), Arm("gated", {"model.gate": "sdpa-headwise"})),
    seeds=2, execution=Execution(device="cpu", slots=1, checkpoint_s=0.1),
)
"""


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = folder(tmp_path_factory.mktemp("whole"), SHORT)
    carry_out([run], Execution(), should_stop=never)
    return result(run)


def fill_disk_at(n: int, patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """From its n-th operation on a file on nothing can be written: no flush, no rename, no file of tensors. Returns how many
    there were."""
    counter = itertools.count(1)
    calls = 0

    def full(function: Callable[..., Any], error: Exception) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls = next(counter)
            if calls >= n:
                raise error
            return function(*given, **named)

        return call

    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    patch.setattr(os, "fsync", full(os.fsync, no_space))
    patch.setattr(os, "replace", full(os.replace, no_space))
    # safetensors tells it in words alone.
    words = SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")
    patch.setattr(checkpoint, "save_file", full(checkpoint.save_file, words))
    return lambda: calls


def test_a_disk_that_fills_up_at_any_file_is_told_and_the_run_goes_on_later(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    n_filled = 0
    while True:
        run = folder(tmp_path / str(n_filled), SHORT)
        with pytest.MonkeyPatch.context() as patch:
            fill_disk_at(2 * n_filled + 1, patch)
            try:
                carry_out([run], Execution(checkpoint_s=0), should_stop=never)
                break
            except (OSError, SafetensorError) as error:
                assert classify(error)[0] == "disk-full"
        n_filled += 1
        carry_out([run], Execution(checkpoint_s=0), should_stop=never)
        assert result(run) == undisturbed, n_filled
        assert not [p.name for p in run.path.iterdir() if p.name.endswith(".tmp") or "checkpoint" in p.name]
    assert n_filled > 5


def test_a_clock_that_goes_back_changes_no_result(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour at each look at it, in the middle of a run that is stopped and taken up again."""
    back = itertools.count(1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600.0 * next(back))
    run = folder(tmp_path, SHORT)
    carry_out([run], Execution(), should_stop=lambda: True)
    assert run.done() is None
    carry_out([run], Execution(), should_stop=never)
    assert result(run) == undisturbed
    unix = [json.loads(line)["unix"] for line in (run.path / "clock.jsonl").read_text().splitlines()]
    assert len(unix) > 1 and unix == sorted(unix, reverse=True)


def test_a_cache_of_before_the_clock_went_back_is_not_believed(tmp_path: Path) -> None:
    """It looks newer than the rows of a run that is carried out again."""
    run = folder(tmp_path / "runs", SHORT)
    entry = {"cell": "toy", "arm": "none", "seed": 0, "fingerprint": run.fingerprint, "n_parameters": 1}
    shutil.rmtree(tmp_path / "runs")
    study = StudyFolder.create(tmp_path / "study", {"name": "fake", "plan": [entry]})
    run = folder(study.path / "runs", SHORT)
    carry_out([run], Execution(), should_stop=never)
    n_rows = len(query(study, "SELECT value FROM rows"))
    cache = run.path / "rows.parquet"
    os.utime(cache, (time.time() + 3600,) * 2)
    (run.path / "done.json").unlink()
    carry_out([run], Execution(), should_stop=never)
    assert not cache.exists() and len(query(study, "SELECT value FROM rows")) == n_rows == len(rows(run))


def test_a_reader_sees_a_beginning_of_what_is_being_written(tmp_path: Path) -> None:
    """While rows are appended in pieces, taken back to a checkpoint and written again, and the run comes to its end."""
    run_folder = StudyFolder.create(
        tmp_path / "study",
        {"name": "fake", "plan": [{"cell": "toy", "arm": "none", "seed": 0, "fingerprint": "0a", "n_parameters": 1}]},
    )
    (_, run), *_ = run_folder.planned()
    run.create({"seed": 0})
    n_rows, errors = 3000, []
    is_over = threading.Event()

    def write() -> None:
        for resumed in (0, 1000, 500, 2000):
            size = 0
            if resumed:
                size = len(b"".join(run.rows_path.read_bytes().splitlines(keepends=True)[:resumed]))
            appender = Appender(run.rows_path, size)
            for step in range(resumed, n_rows):
                appender.write([Row(run.fingerprint, step, "train", "loss", float(step), "nats")])
                if step % 100 == 0:
                    appender.flush()
            appender.close()
        run.mark_done("done", {"steps": n_rows})
        is_over.set()

    writer = threading.Thread(target=write)
    writer.start()
    n_looks = 0
    while not is_over.is_set() or not n_looks:
        found = [row["value"] for row in query(run_folder, "SELECT value FROM rows ORDER BY value")]
        if found != [float(i) for i in range(len(found))]:
            errors.append((n_looks, len(found)))
        assert _status(["status", str(run_folder.path), "--json"]) == 0
        n_looks += 1
    writer.join()
    assert not errors
    assert len(query(run_folder, "SELECT value FROM rows")) == n_rows


def test_a_reader_of_the_drivers_words_that_does_not_read_on_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver waits until somebody reads; nothing is started twice, and all ends well."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    n = 80
    study = make_study(tmp_path / "study", n)
    command = [sys.executable, "-m", "gatelab.study.pull", str(study.path), "--target", "tasks:succeed"]
    with subprocess.Popen([*command, "--execution", '{"slots": 2, "device": "cpu"}'], stdout=subprocess.PIPE) as driver:
        size = fcntl.fcntl(driver.stdout, fcntl.F_SETPIPE_SZ, 4096)

        def has_filled_it() -> bool:
            there = array.array("i", [0])
            fcntl.ioctl(driver.stdout, termios.FIONREAD, there)
            return there[0] > size - 80  # longer than any of its lines

        wait_until(has_filled_it, "its pipe is full")
        assert driver.poll() is None and not all(run.done() for _, run in study.planned())
        said, _ = driver.communicate()
    assert driver.returncode == 0 and b"nothing is left" in said
    assert [n_starts(run) for _, run in study.planned()] == [1] * n


REAL = r"""
set -u
mount -t tmpfs -o size=300k tmpfs "$PLACE"
"$GATELAB" run "$STUDY" --out "$PLACE/study" > "$SAID/full" 2>&1; echo $? > "$SAID/full.rc"
mount -o remount,size=60m "$PLACE"
mount -o remount,ro "$PLACE"
"$GATELAB" status "$PLACE/study" > "$SAID/status" 2>&1; echo $? > "$SAID/status.rc"
"$GATELAB" run "$STUDY" --out "$PLACE/study" > "$SAID/again" 2>&1; echo $? > "$SAID/again.rc"
"$GATELAB" run "$PLACE/study" > "$SAID/on" 2>&1; echo $? > "$SAID/on.rc"
mount -o remount,rw "$PLACE"
"$GATELAB" run "$STUDY" --out "$PLACE/study" > "$SAID/whole" 2>&1; echo $? > "$SAID/whole.rc"
cp -r "$PLACE/study" "$SAID/study"
"""


def _mounts() -> bool:
    """Whether this user may mount something that nobody else sees."""
    try:
        done = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _mounts(), reason="needs a mount of its own (Linux, user namespaces)")
def test_a_study_on_a_disk_that_is_full_then_read_only_then_neither(tmp_path: Path) -> None:
    """Really: a disk of 300 kB, which then cannot be written at all. What is there can be read, and in the end all is as if
    nothing had been."""
    (tmp_path / "study.py").write_text(STUDY)
    for name in ("place", "said"):
        (tmp_path / name).mkdir()
    names = {"PLACE": tmp_path / "place", "SAID": tmp_path / "said", "STUDY": tmp_path / "study.py", "GATELAB": GATELAB}
    environ = os.environ | {name: str(value) for name, value in names.items()}
    subprocess.run(["unshare", "-rm", "bash", "-c", REAL], env=environ, check=True)
    said = {path.name: path.read_text() for path in (tmp_path / "said").iterdir() if path.is_file()}
    assert not [name for name, text in said.items() if "Traceback" in text], said
    assert [int(said[f"{name}.rc"]) for name in ("full", "status", "again", "on", "whole")] == [1, 0, 2, 1, 0], said
    refused = f"gatelab: --out {tmp_path}/place/study: cannot be written (Read-only file system); name another folder\n"
    assert "the disk is full" in said["full"] and said["again"] == refused
    assert "cannot be written (Read-only file system): 4 runs keep what they had" in said["on"]
    soaked, whole = (
        StudyFolder.open(tmp_path / "said" / "study"),
        lab.run(str(tmp_path / "study.py"), tmp_path / "whole")[0],
    )
    for _, run in whole.planned():
        assert result(soaked.run(run.fingerprint)) == result(run)
    assert not list(soaked.path.rglob(".*.tmp"))
