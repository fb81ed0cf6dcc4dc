import importlib.util
import subprocess
from pathlib import Path

import pytest

from gatelab.config import ConfigError, Execution
from gatelab.study import local


def test_every_preloaded_module_exists() -> None:
    missing = [name for name in local.PRELOAD if importlib.util.find_spec(name) is None]
    assert not missing


def test_a_preload_that_fails_is_told(tmp_path: Path) -> None:
    from gatelab.study.executor import Task

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
    ("execution", "devices", "slots"),
    [
        (Execution(), [], 6),
        (Execution(threads=2), [], 3),
        (Execution(threads=8), [], 1),
        (Execution(slots=4), [], 4),
        (Execution(), ["0", "1"], 2),
        (Execution(slots=4), ["0", "1"], 4),
        (Execution(device="cpu"), ["0", "1"], 6),
    ],
)
def test_slots_default_to_gpus_or_cores_over_threads(
    execution: Execution, devices: list[str], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "gpus", lambda: devices)
    monkeypatch.setattr(local, "n_cores", lambda: 6)
    monkeypatch.setattr(local, "LocalExecutor", lambda *given: given)
    used = devices if execution.device != "cpu" else []
    assert local.local_executor(execution) == (slots, execution.threads, used)


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
