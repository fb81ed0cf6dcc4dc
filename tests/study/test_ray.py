"""Ray: what it is refused for, what it listens on, and what is left when a slot, a node or the head of a cluster dies.

That tasks end as they should is in test_conformance.py.
"""

import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import make_study, wait_until
from places import HERE, needs_ray
from ray_cluster import Cluster
from tasks import n_starts

from gatelab import SCHEMA
from gatelab.cli import _status
from gatelab.config import ConfigError, Execution
from gatelab.store import RunFolder, StudyFolder, read_json, write_json
from gatelab.study import ledger, ray_address
from gatelab.study import ray as over_ray

# The driver of tasks.py, which does not wait so long for a head.
DRIVER = "import sys, gatelab.study.ray_head as h; h.HEAD_S = 3.0; import tasks; sys.exit(tasks.main())"
# The same, which loses its head between a good look at it and a call that then does not return.
BLOCKED = """
import sys, time, pathlib, gatelab.study.ray_head as h, tasks
h.HEAD_S = 3.0
place, ask = pathlib.Path(sys.argv[1]), h.Head.ask

def late(self, call):
    if not (place / "begun").exists() or (place / "between").exists():
        return ask(self, call)
    (place / "between").touch()
    while not (place / "lost").exists():
        time.sleep(0.01)
    import ray
    return ask(self, ray.nodes)

h.Head.ask = late
sys.exit(tasks.main())
"""
slow = pytest.mark.slow


def test_without_ray_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'gatelab\[ray\]'"):
        ray_address.check_ray(None)


@contextmanager
def listener(says: bytes | None) -> Iterator[str]:
    """The address of something that takes one connection after another, and says so much to each; None: it keeps silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    there = server.accept()[0]
                    kept.append(there)
                    if says is not None:
                        with suppress(OSError):
                            there.sendall(says)

        kept: list[socket.socket] = []
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for there in kept:
            there.close()


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
    monkeypatch.setattr(ray_address, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=f"--ray-address {address}: {message}"):
        ray_address.check_ray(address)


@pytest.mark.parametrize("says", [None, b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_no_head_is_refused_before_ray_waits_for_it(
    says: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_address, "find_spec", lambda name: object())
    monkeypatch.setattr(ray_address, "_CONNECT_S", 0.3)
    with listener(says) as address, pytest.raises(ConfigError, match="what answers there is no head of Ray"):
        ray_address.check_ray(address)


@needs_ray
def test_auto_without_a_cluster_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    def nowhere(*_: object) -> NoReturn:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(services, "canonicalize_bootstrap_address_or_die", nowhere)
    with pytest.raises(
        ConfigError, match="--ray-address auto: this machine is of no cluster of Ray; `ray start --head`"
    ):
        ray_address.check_ray("auto")
    monkeypatch.setattr(services, "canonicalize_bootstrap_address_or_die", lambda _: "127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"--ray-address auto \(127\.0\.0\.1:9\): nothing answers there"):
        ray_address.check_ray("auto")


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:9", "no-such-host.invalid:6379"])
def test_a_run_without_its_cluster_leaves_nothing_behind(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _status(["run", "quickstart", "--executor", "ray", "--ray-address", address]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "nothing answers there" in said.err
    assert not list(tmp_path.iterdir())


def in_a_process(code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command, environ = [sys.executable, "-c", code, *words], os.environ | {"PYTHONPATH": str(HERE)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)


_LISTENING = """
import os
from sockets import family, is_loopback, listening
from gatelab.config import Execution
from gatelab.study import ray as over_ray
from ray._raylet import AuthenticationMode, get_authentication_mode

print("before")
over_ray._embed(Execution())
executor = over_ray.RayExecutor(Execution(), preload=())
executor._idle = [executor._start()]
executor._ray.get(executor._idle[0].stop.remote("nobody"))
started = list(family(os.getpid()))
addresses = listening(*started)
print(len(started) > 5, get_authentication_mode() == AuthenticationMode.TOKEN, bool(addresses), all(map(is_loopback, addresses)))
executor.close()
executor.close()
print(list(family(os.getpid())) == [os.getpid()])
"""


@slow
@needs_ray
def test_embedded_ray_listens_on_loopback_wants_a_token_and_leaves_nothing() -> None:
    done = in_a_process(_LISTENING)
    assert done.stdout.split() == ["before", "True", "True", "True", "True", "True"], done.stderr


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


def start_driver(
    cluster: Cluster, study: StudyFolder, target: str = "count_until_told", code: str = DRIVER
) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, str(study.path), f"tasks:{target}", f"ray@{cluster.address}", "10"]
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
    # Its slot is still, and so is given nothing more: what comes of the run comes after its machine is gone.
    os.kill(ledger.last_attempt(lost).driver, signal.SIGSTOP)
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
def test_a_lost_head_is_told_and_the_next_cluster_goes_on_with_what_was_not_done(
    tmp_path: Path, start_cluster: Callable[..., Cluster]
) -> None:
    study = make_study(tmp_path / "study", 2)
    finished, run = runs_of(study)
    cluster = start_cluster(1)
    driver = start_driver(cluster, study, "count_after_the_first")
    wait_for_starts(study)
    cluster.lose("head")
    cluster.lose(0)
    said = driver.communicate()[1]
    assert driver.returncode == 1 and f"Ray's head at {cluster.address} is gone" in said
    assert [[a["outcome"] for a in each.attempts()] for each in (finished, run)] == [["done"], ["stopped"]]
    saved, word = steps(run), (finished.path / "done.json").stat()
    (study.path / "finish").touch()
    again = start_driver(start_cluster(1), study, "count_after_the_first")
    again.communicate()
    assert again.returncode == 0 and run.done()["steps"] == saved
    # What was done before the head was lost is left as it was.
    assert n_starts(finished) == 1 and (finished.path / "done.json").stat() == word
    assert [[a["outcome"] for a in each.attempts()] for each in (finished, run)] == [["done"], ["stopped", "done"]]


@slow
@needs_ray
def test_a_head_lost_as_ray_is_asked_for_something_is_told_in_the_same_sentence(
    tmp_path: Path, start_cluster: Callable[..., Cluster]
) -> None:
    study = make_study(tmp_path / "study", 1)
    cluster = start_cluster(1)
    driver = start_driver(cluster, study, code=BLOCKED)
    wait_for_starts(study)
    (study.path / "begun").touch()
    wait_until((study.path / "between").exists, "the driver is about to ask")
    cluster.lose("head")
    cluster.lose(0)
    (study.path / "lost").touch()
    said = driver.communicate()[1]
    assert driver.returncode == 1 and f"Ray's head at {cluster.address} is gone" in said and "GCS" not in said
    (run,) = runs_of(study)
    wait_until(lambda: ledger.state_of(run) == "stopped", "the worker has saved")


_TRAINING = """
import sys
from gatelab.config import Execution
from gatelab.store import StudyFolder
from gatelab.study.drive import drive
from gatelab.study.ray import check_folder, ray_executor

folder, execution = StudyFolder.open(sys.argv[1]), Execution(device="cpu", checkpoint_s=0)
executor = ray_executor(execution, sys.argv[2])
check_folder(sys.argv[2], folder.path)
summary = drive(folder, executor, execution, entries=folder.study()["plan"])
executor.close()
sys.exit(not summary.is_complete)
"""


@slow
@needs_ray
def test_a_training_run_of_a_lost_machine_goes_on_from_its_checkpoint_to_the_same_rows(
    tmp_path: Path, start_cluster: Callable[..., Cluster]
) -> None:
    from carrier import folder as planned
    from tiny import run as tiny_run

    from gatelab.train.checkpoint import read_tensors

    config = tiny_run(steps=400)
    alone, run = (planned(tmp_path / name / "runs", config) for name in ("alone", "study"))
    entry = {"cell": "toy", "arm": "none", "seed": 0, "fingerprint": run.fingerprint}
    for name in ("alone", "study"):
        write_json(tmp_path / name / "study.json", {"schema": SCHEMA, "name": "real", "plan": [entry]})
    words = [
        "-m",
        "gatelab.study.worker",
        str(tmp_path / "alone"),
        alone.fingerprint,
        "--execution",
        '{"device": "cpu"}',
    ]
    assert subprocess.run([sys.executable, *words], timeout=120, check=False).returncode == 0
    cluster = start_cluster(2)
    driver = subprocess.Popen([sys.executable, "-c", _TRAINING, str(tmp_path / "study"), cluster.address])
    checkpoint = run.path / "checkpoint.safetensors"
    wait_until(checkpoint.exists, "there is a checkpoint")
    attempt = ledger.last_attempt(run)
    machine = cluster.raylets.index(parent_of(attempt.driver))
    os.kill(attempt.pid, signal.SIGSTOP)  # or it would save as it sees its slot go
    reached = read_tensors(checkpoint)[1]["step"]
    cluster.lose(machine)
    os.kill(attempt.pid, signal.SIGKILL)
    assert driver.wait(timeout=120) == 0
    first, *between, last = [a["outcome"] for a in run.attempts()]
    # The slot may be given the run again before it sees that its machine is gone.
    assert (first, last) == ("lost", "done") and set(between) <= {"stopped"}
    assert 0 < reached <= read_json(run.path / "progress.json")["first_step"] < 400
    for name in ("rows.jsonl", "weights.safetensors"):
        assert (run.path / name).read_bytes() == (alone.path / name).read_bytes()


@slow
@needs_ray
def test_gpus_are_shared_or_dealt_in_gangs(tmp_path: Path, start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(1, num_cpus=4, num_gpus=2)
    code = (
        "import sys, json; from pathlib import Path; from gatelab.config import Execution; from gatelab.store import StudyFolder\n"
        "from gatelab.study.drive import drive; from gatelab.study.ray import ray_executor\n"
        "folder, execution = StudyFolder.open(sys.argv[1]), Execution(**json.loads(sys.argv[3]))\n"
        "executor = ray_executor(execution, sys.argv[2])\n"
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
        "try:\n    e = r.ray_executor(Execution({}), sys.argv[2])\n"
        "    try: r.check_folder(sys.argv[2], Path(sys.argv[1]))\n"
        "    finally: e.close()\n"
        "except ValueError as error: print(error, ray.is_initialized())"
    )
    cases = {
        ("ray.__version__ = '2.1.0'", ""): "and here is Ray 2.1.0 on Python",
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
    code = "import sys; from gatelab.cli import main; main()"
    words = ("run", "quickstart", "--out", str(tmp_path / "out"), "--executor", "ray", "--ray-address", cluster.address)
    done = in_a_process(code, *words)
    assert "the cluster does not take our token; set RAY_AUTH_MODE=token" in done.stderr
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    assert not list(tmp_path.iterdir())


@needs_ray
def test_a_process_that_has_a_ray_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"call ray\.shutdown\(\) first"):
        over_ray.ray_executor(Execution(), None)
