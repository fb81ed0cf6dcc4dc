import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_study, wait_until, wait_until_gone
from places import EXECUTORS, HERE, OfExecutor
from tasks import n_starts

from gatelab.config import ConfigError, Execution
from gatelab.store import StudyFolder
from gatelab.study import ledger, local
from gatelab.study.drive import drive
from gatelab.study.executor import Task


def test_every_preloaded_module_exists() -> None:
    missing = [name for name in local.PRELOAD if importlib.util.find_spec(name) is None]
    assert not missing


def test_a_preload_that_fails_is_told(tmp_path: Path) -> None:
    executor = local.LocalExecutor(slots=1, threads=1, preload=("gatelab.no_such_module",))
    executor.submit(Task(str(tmp_path), ("0" * 12,), {}))
    with pytest.raises(
        RuntimeError, match=r"did not start: ModuleNotFoundError: No module named 'gatelab\.no_such_module'"
    ):
        while True:
            executor.poll(1.0)
    executor.close()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("1,2", ["1", "2"]),
        ("", []),
        ("0,-1,2", ["0"]),
        ("0,7,1", ["0"]),
        ("GPU-8932f937,1", ["GPU-8932f937", "1"]),
    ],
)
def test_gpus_follow_cuda_visible_devices(
    visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_n_gpus", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.gpus() == expected


def test_gpus_are_counted_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        "GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g.18gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n"
    )

    def no_folder(path: str) -> list[str]:
        raise FileNotFoundError(path)

    monkeypatch.setattr("os.listdir", no_folder)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, listed, ""))
    assert local._n_gpus() == 2


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "gpus", list)
    with pytest.raises(ConfigError, match=r"execution\.device='cuda': no NVIDIA GPU is visible here"):
        local.local_executor(Execution(device="cuda"))


@pytest.mark.parametrize(
    ("execution", "devices", "slots", "dealt"),
    [
        (Execution(), [], 6, []),
        (Execution(threads=2), [], 3, []),
        (Execution(threads=8), [], 1, []),
        (Execution(slots=4), [], 4, []),
        (Execution(processes=3), [], 2, []),
        (Execution(), ["0", "1"], 2, ["0", "1"]),
        (Execution(slots=4), ["0", "1"], 4, ["0", "1"]),
        (Execution(device="cpu"), ["0", "1"], 6, []),
        (Execution(gpu_share=0.5), ["0", "1"], 4, ["0", "1", "0", "1"]),
        (Execution(gpu_share=0.333), ["GPU-8932f937"], 3, ["GPU-8932f937"] * 3),
        (Execution(processes=2), ["0", "1", "2", "3", "4"], 2, ["0,1", "2,3"]),
    ],
)
def test_slots_default_to_gpus_or_cores_over_threads(
    execution: Execution, devices: list[str], slots: int, dealt: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "gpus", lambda: devices)
    monkeypatch.setattr(local, "n_cores", lambda: 6)
    monkeypatch.setattr(local, "LocalExecutor", lambda *given: given)
    assert local.local_executor(execution) == (slots, execution.threads, dealt, local.PRELOAD)


def test_a_gang_larger_than_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "gpus", lambda: ["0"])
    with pytest.raises(ConfigError, match=r"execution\.processes=2: each takes a GPU, and 1 are visible here"):
        local.local_executor(Execution(processes=2))
    with pytest.raises(ValueError, match=r"take whole GPUs; leave out execution\.gpu_share=0\.5"):
        Execution(processes=2, gpu_share=0.5)


def hanging(study: StudyFolder, kind: str) -> tuple[local.LocalExecutor, list[int]]:
    """An executor with two tasks that hear nothing, each with a child; and their process ids."""
    executor = EXECUTORS[kind]()
    runs = [run for _, run in study.planned()]
    for run in runs:
        executor.submit(Task(str(study.path), (run.fingerprint,), {}, target="tasks:hang"))
    wait_until(lambda: all(n_starts(run) for run in runs), "every run has begun")
    names = ("ran.txt", "grandchild")
    # Written, and not only made.
    files = [run.path / name for run in runs for name in names]
    wait_until(lambda: all(f.exists() and f.read_text().split() for f in files), "all have children")
    return executor, [int(f.read_text().split()[-1]) for f in files]


@pytest.mark.parametrize("kind", ["local", "fresh"])
def test_close_leaves_no_process(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    executor, pids = hanging(make_study(tmp_path / "study", 2), kind)
    server = executor._server.pid
    executor.close()
    executor.close()
    wait_until_gone([*pids, server])
    with pytest.raises(ChildProcessError):
        os.waitpid(server, os.WNOHANG)


@pytest.mark.parametrize("kind", ["local", "fresh"])
def test_a_dead_server_takes_its_tasks_along_and_is_replaced(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    study = make_study(tmp_path / "study", 2)
    executor, pids = hanging(study, kind)
    assert executor.poll(0.0) == []
    os.kill(executor._server.pid, signal.SIGKILL)
    ended = []
    wait_until(lambda: ended.extend(executor.poll(0.1)) or len(ended) == 2, "both are reported")
    assert {(e.exit_code, e.signal) for e in ended} == {(None, None)}
    wait_until_gone(pids)
    entries = study.study()["plan"]
    assert drive(study, executor, Execution(), entries=entries, target="tasks:succeed").is_complete
    executor.close()


@pytest.mark.parametrize("kind", ["local", "fresh"])
@pytest.mark.parametrize(("target", "state"), [("hang", "lost"), ("stop_without_a_child", "stopped")])
def test_workers_of_a_driver_killed_with_its_server_leave_nothing_behind(
    tmp_path: Path, kind: str, target: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    study = make_study(tmp_path / "study", 2)
    place = OfExecutor(kind)
    (driver,) = place.start_drivers(study, target, grace_s=0.5)
    runs = [run for _, run in study.planned()]
    files = [run.path / name for run in runs for name in ("ran.txt", "grandchild")]
    wait_until(lambda: all(f.exists() and f.read_text() for f in files), "every task has a child")
    pids = [int(f.read_text()) for f in files]
    server = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
    driver.kill()
    os.kill(server, signal.SIGKILL)
    wait_until_gone([server, *pids])
    assert {ledger.state_of(run) for run in runs} == {state}
    place.close()


def test_leaving_spares_the_strangers_in_anothers_group() -> None:
    """A shell's, whose job the process is; where it leads a session, its group is what it started."""
    code = (
        "import os, time; from gatelab.study.executor import leave\n"
        "if os.fork() == 0: time.sleep(600); os._exit(0)\n"
        "leave(7)"
    )
    for leads in (False, True):
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            start_new_session=leads,
            process_group=None if leads else 0,
        ) as process:
            assert process.wait() == (-signal.SIGKILL if leads else 7)
            if not leads:
                os.killpg(process.pid, signal.SIGKILL)  # the child, which is still there
            assert process.stdout.read() == b""  # nobody holds it any more


def test_a_server_that_is_killed_while_it_starts_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    study = make_study(tmp_path / "study", 2)
    executor = EXECUTORS["local"]()
    os.kill(executor._server.pid, signal.SIGKILL)
    entries = study.study()["plan"]
    assert drive(study, executor, Execution(), entries=entries, target="tasks:succeed").is_complete
    # Of what no worker began nothing is said.
    assert [[a["outcome"] for a in run.attempts()] for _, run in study.planned()] == [["done"], ["done"]]
    executor.close()


@pytest.mark.parametrize(
    ("files", "membership", "limits"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", [1.5]),
        ({"cpu.max": "max 100000"}, "0::/", []),
        ({"job/step/cpu.max": "400000 100000", "job/cpu.max": "200000 100000"}, "0::/job/step", [4.0, 2.0]),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/\n3:memory:/", [3.0]),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", []),
    ],
)
def test_control_groups_limit_the_cores(
    tmp_path: Path, files: dict[str, str], membership: str, limits: list[float]
) -> None:
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    (tmp_path / "cgroup").write_text(membership + "\n")
    assert local._cgroup_limits(tmp_path / "root", tmp_path / "cgroup") == limits


@pytest.mark.parametrize(
    ("slots", "execution", "says"),
    [
        (2, {}, ""),
        (1, {"threads": 4}, ""),
        (1, {"threads": 1000}, "1,000 threads on 4 CPU cores, and wait for one another; execution.threads=4 fits"),
        (
            2,
            {"threads": 3},
            "2 slots × 1 processes × 3 threads (execution.*) are 6 threads on 4 .*; execution.threads=2 fits",
        ),
        (
            2,
            {"processes": 4},
            "2 slots × 4 processes × 1 threads (execution.*) are 8 threads on 4 .*; take fewer slots",
        ),
    ],
)
def test_more_threads_than_cores_are_told_and_not_refused(
    slots: int,
    execution: dict[str, int],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(local, "n_cores", lambda: 4)
    executor = local.local_executor(Execution(slots=slots, device="cpu", **execution), preload=())
    assert executor.slots == slots
    executor.close()
    said = capsys.readouterr()
    assert said.out == "" and bool(said.err) == bool(says)
    if says:
        assert re.search(says.replace("(execution.*)", r"\(execution\.\*\)"), said.err) and said.err.startswith(
            "note: "
        )
