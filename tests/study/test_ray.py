"""Ray: what it is refused for, what it listens on, and what is left when a slot, a node or the head of a cluster dies.

That tasks end as they should is in test_conformance.py.
"""

import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import make_study, wait_until
from places import HERE, needs_ray
from ray_cluster import Cluster
from tasks import n_starts

from gatelab.config import ConfigError, Execution
from gatelab.store import RunFolder, StudyFolder
from gatelab.study import ledger
from gatelab.study import ray as over_ray

# The driver of tasks.py, which does not wait so long for a head.
DRIVER = "import sys, gatelab.study.ray as r; r._HEAD_S = 3.0; import tasks; sys.exit(tasks.main())"
slow = pytest.mark.slow


def test_without_ray_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_ray, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'gatelab\[ray\]'"):
        over_ray.check_ray(None)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("head", "expected host:port"),
        ("ray://head:10001", "expected host:port"),
        ("127.0.0.1:6379x", "expected host:port"),
        ("127.0.0.1:9", "nothing answers there"),
        ("127.0.0.1:99999", "nothing answers there"),
        ("no-such-host.invalid:6379", "nothing answers there"),
    ],
)
def test_a_cluster_that_is_not_there_is_refused(address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_ray, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=f"--ray-address {address}: {message}"):
        over_ray.check_ray(address)


def in_a_process(code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False
    )


_LISTENING = """
import os, subprocess, sys
from pathlib import Path
from gatelab.config import Execution
from gatelab.study import ray as over_ray
from ray._raylet import AuthenticationMode, get_authentication_mode

def sockets():
    "{inode: address} of all that listen."
    out = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                out[words[9]] = words[1].rpartition(":")[0]
    return out

def family(pid):
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from family(int(child))

print("before")
over_ray._embed(Execution())
executor = over_ray.RayExecutor(Execution(), preload=())
executor._idle = [executor._start()]
executor._ray.get(executor._idle[0].stop.remote("nobody"))
addresses = set()
for pid in list(family(os.getpid())):
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(file)
        except OSError:
            continue
        if target.startswith("socket:["):
            addresses.add(sockets().get(target[8:-1]))
print(len(list(family(os.getpid()))) > 5, get_authentication_mode() == AuthenticationMode.TOKEN, *sorted(addresses - {None}))
executor.close()
executor.close()
print(list(family(os.getpid())) == [os.getpid()])
"""


@slow
@needs_ray
def test_embedded_ray_listens_on_loopback_wants_a_token_and_leaves_nothing() -> None:
    done = in_a_process(_LISTENING)
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    before, line, gone = done.stdout.splitlines()
    several, mode, *addresses = line.split()
    assert (before, several, mode, gone) == ("before", "True", "True", "True"), done.stderr
    assert addresses and set(addresses) <= loopback


@slow
@needs_ray
def test_a_ray_that_listens_elsewhere_is_shut_down_again() -> None:
    code = (
        "import ray; from gatelab.config import Execution; from gatelab.study import ray as over_ray\n"
        "ray.util.get_node_ip_address = lambda: '192.0.2.7'\n"
        "try: over_ray._embed(Execution())\n"
        "except ValueError as error: print(error, ray.is_initialized())"
    )
    said = in_a_process(code).stdout
    assert "listens at 192.0.2.7, not only on loopback" in said and said.endswith("False\n")


@pytest.fixture
def start_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cluster]]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    for name, value in {"MODE": "token", "TOKEN": secrets.token_hex(32)}.items():
        monkeypatch.setenv(f"RAY_AUTH_{name}", value)
    started: list[Cluster] = []

    def start(n_machines: int, **resources: float) -> Cluster:
        started.append(Cluster(n_machines, **resources))
        return started[-1]

    yield start
    for cluster in started:
        cluster.close()


def start_driver(cluster: Cluster, study: StudyFolder, target: str = "count_until_told") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", DRIVER, str(study.path), f"tasks:{target}", f"ray@{cluster.address}", "10"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def runs_of(study: StudyFolder) -> list[RunFolder]:
    return [run for _, run in study.planned()]


def wait_for_starts(study: StudyFolder, times: int = 1) -> None:
    wait_until(lambda: all(n_starts(run) >= times for run in runs_of(study)), "every run has begun")


def steps(run: RunFolder) -> int:
    return json.loads((run.path / "checkpoint.json").read_text())


def parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


@slow
@needs_ray
def test_a_lost_machine_costs_the_work_since_its_checkpoint_and_no_other(
    tmp_path: Path, start_cluster: Callable[..., Cluster]
) -> None:
    study = make_study(tmp_path / "study", 3)
    finished, *running = runs_of(study)
    finished.mark_done("done", {"steps": 7})
    for run in running:
        (run.path / "checkpoint.json").write_text("1000")
    cluster = start_cluster(2)
    driver = start_driver(cluster, study)
    wait_until(lambda: all(n_starts(run) for run in running), "both have begun")
    (lost,) = (run for run in running if parent_of(ledger.last_attempt(run).driver) == cluster.raylets[0])
    os.kill(ledger.last_attempt(lost).pid, signal.SIGKILL)
    cluster.lose(0)
    # One slot is left, and the other run has it.
    wait_until(lambda: ledger.state_of(lost) == "lost", "the run is lost")
    (study.path / "finish").touch()
    assert driver.wait() == 0
    driver.communicate()
    assert finished.done()["steps"] == 7 and not finished.attempts()
    assert lost.done()["steps"] == 1000  # what its checkpoint had
    (kept,) = (run for run in running if run != lost)
    assert kept.done()["steps"] > 1000
    assert [a["outcome"] for a in kept.attempts()] == ["done"]
    assert [a["outcome"] for a in lost.attempts()] == ["lost", "done"]


@slow
@needs_ray
def test_a_killed_slot_lets_its_worker_save_before_another_goes_on(
    tmp_path: Path, start_cluster: Callable[..., Cluster]
) -> None:
    study = make_study(tmp_path / "study", 1)
    driver = start_driver(start_cluster(1), study)
    wait_for_starts(study)
    (run,) = runs_of(study)
    os.kill(ledger.last_attempt(run).driver, signal.SIGKILL)
    wait_for_starts(study, times=2)
    assert [a["outcome"] for a in run.attempts()] == ["stopped", "running"]
    saved = steps(run)
    (study.path / "finish").touch()
    assert driver.wait() == 0
    driver.communicate()
    assert run.done()["steps"] >= saved


@slow
@needs_ray
def test_a_lost_head_is_told_and_the_next_cluster_goes_on(
    tmp_path: Path, start_cluster: Callable[..., Cluster]
) -> None:
    study = make_study(tmp_path / "study", 1)
    (run,) = runs_of(study)
    cluster = start_cluster(1)
    driver = start_driver(cluster, study)
    wait_for_starts(study)
    cluster.lose("head")
    cluster.lose(0)
    said = driver.communicate()[1]
    assert driver.returncode == 1 and f"Ray's head at {cluster.address} is gone" in said
    assert [a["outcome"] for a in run.attempts()] == ["stopped"]
    saved = steps(run)
    (study.path / "finish").touch()
    again = start_driver(start_cluster(1), study)
    again.communicate()
    assert again.returncode == 0 and run.done()["steps"] == saved


@slow
@needs_ray
def test_gpus_are_shared_or_dealt_in_gangs(tmp_path: Path, start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(1, num_cpus=4, num_gpus=2)
    code = (
        "import sys, json; from pathlib import Path; from gatelab.config import Execution; from gatelab.store import StudyFolder\n"
        "from gatelab.study.drive import drive; from gatelab.study.ray import ray_executor\n"
        "folder, execution = StudyFolder.open(sys.argv[1]), Execution(**json.loads(sys.argv[3]))\n"
        "executor = ray_executor(execution, sys.argv[2], folder.path)\n"
        "print(executor.slots, executor.has_gpus)\n"
        "drive(folder, executor, execution, entries=folder.study()['plan'], target='tasks:see_device')\n"
        "executor.close()"
    )
    expected = {"{}": ("2", {"0", "1"}), '{"gpu_share": 0.5}': ("4", {"0", "1"}), '{"processes": 2}': ("1", {"0,1"})}
    for i, (execution, (slots, devices)) in enumerate(expected.items()):
        study = make_study(tmp_path / str(i), 4)
        done = in_a_process(code, str(study.path), cluster.address, execution)
        assert done.stdout.split() == [slots, "True"], done.stderr
        assert {run.done()["CUDA_VISIBLE_DEVICES"] for run in runs_of(study)} <= devices


@slow
@needs_ray
def test_a_cluster_that_differs_is_refused_before_anything_starts(
    tmp_path: Path, start_cluster: Callable[..., Cluster]
) -> None:
    study = make_study(tmp_path / "study", 1)
    cluster = start_cluster(1)
    code = (
        "import sys, ray; from pathlib import Path; from gatelab.config import Execution; from gatelab.study import ray as r\n"
        "{}\n"
        "try: r.ray_executor(Execution({}), sys.argv[2], Path(sys.argv[1]))\n"
        "except ValueError as error: print(error, ray.is_initialized())"
    )
    cases = {
        ("ray.__version__ = '2.1.0'", ""): "ersion mismatch",
        ("r.SCHEMA = 99", ""): "has Gatelab of schema 1, this one is of 99; install one version",
        ("import os\nr._look = lambda f: {'schema': r.SCHEMA, 'study': os.getpid()}", ""): "does not see",
        ("", "device='cuda'"): "no machine of Ray has a GPU",
    }
    for (change, execution), message in cases.items():
        # The look at this machine goes through the changed name, those at others through the module that they load.
        said = in_a_process(code.format(change, execution), str(study.path), cluster.address)
        (line,) = said.stdout.splitlines() or [said.stderr]
        assert message in line and line.endswith("False")
    assert not any(run.attempts() for run in runs_of(study))


@slow
@needs_ray
def test_a_token_that_is_wrong_is_told_in_one_line(
    start_cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = start_cluster(1)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    code = (
        "import sys; from gatelab.study import ray as r\n"
        "try: r._join(sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    done = in_a_process(code, cluster.address)
    assert "cannot be joined" in done.stdout and done.stdout.count("\n") == 1 and not done.stderr


@needs_ray
def test_a_process_that_has_a_ray_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"call ray\.shutdown\(\) first"):
        over_ray.ray_executor(Execution(), None, Path())
