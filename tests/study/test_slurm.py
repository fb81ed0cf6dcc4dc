"""Slurm: the script and what is refused before one is handed in; on a real one, what pre-emption and a time limit cost.

That runs end as they should in its jobs is in test_conformance.py.
"""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import attempt_path, make_study, plant_attempt, set_age, wait_until
from places import HERE, Job, OfSlurm, needs_slurm
from tasks import n_starts

from gatelab import SCHEMA
from gatelab.cli import _status
from gatelab.config import ConfigError, Execution
from gatelab.store import RunFolder, StoreError, StudyFolder, read_json, write_json
from gatelab.study import ledger, local, pull, slurm
from gatelab.study.slurm import Allocation

HOUR = 3600.0
slow = pytest.mark.slow


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return make_study(tmp_path / "study", 5)


def runs_of(study: StudyFolder) -> list[RunFolder]:
    return [run for _, run in study.planned()]


def test_the_script_says_what_was_asked(study: StudyFolder) -> None:
    allocation = Allocation(
        time="4:00:00", tasks=3, cpus=8, partition="gpu", mem="16G", account="lab", constraint="a100|h100"
    )
    lines = slurm.script(study, Execution(threads=2), allocation).splitlines()
    assert lines[0] == "#!/bin/bash"
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert asked == {
        "job-name=gatelab-fake", "array=0-2", "nodes=1", "ntasks=1", "cpus-per-task=8", "time=4:00:00", "signal=B:USR1@90",
        "open-mode=append", f'output="{study.path}/slurm/%A_%a.log"', "partition=gpu", "mem=16G", "account=lab",
        'constraint="a100|h100"', "requeue",
    }  # fmt: skip
    inside = '{"device": "cpu", "slots": 4, "threads": 2}'
    pulled = f"exec {sys.executable} -P -m gatelab.study.pull {study.path} --execution '{inside}' --grace-s 30"
    assert lines[-1] == pulled


@pytest.mark.parametrize(
    ("allocation", "execution", "cpus", "tasks"),
    [
        (Allocation(), Execution(), 1, 5),
        (Allocation(), Execution(slots=2), 2, 3),
        (Allocation(cpus=4), Execution(threads=2), 4, 3),
        (Allocation(cpus=7), Execution(threads=2), 7, 2),
        (Allocation(tasks=40), Execution(), 1, 40),
        (Allocation(gpus="1"), Execution(), 1, 5),
        (Allocation(gpus="h100:2"), Execution(), 2, 3),
        (Allocation(gpus="8"), Execution(), 8, 1),
        (Allocation(gpus="2"), Execution(threads=3, gpu_share=0.5), 12, 2),
        (Allocation(gpus="8"), Execution(processes=4), 8, 3),
        (Allocation(gpus="8"), Execution(processes=3), 6, 3),
        (Allocation(gpus="8"), Execution(parallel={"tp": 8}), 8, 5),
        (Allocation(gpus="8"), Execution(slots=1), 1, 5),
        (Allocation(gpus="8", cpus=32), Execution(), 32, 1),
    ],
)
def test_tasks_and_cpus_follow_what_there_is_to_do(
    study: StudyFolder, allocation: Allocation, execution: Execution, cpus: int, tasks: int
) -> None:
    text = slurm.script(study, execution, allocation)
    assert f"--cpus-per-task={cpus}\n" in text and f"--array=0-{tasks - 1}\n" in text


def test_gpus_are_asked_for_and_dealt_inside(study: StudyFolder) -> None:
    text = slurm.script(study, Execution(gpu_share=0.5), Allocation(gpus="2"))
    assert "#SBATCH --gres=gpu:2\n" in text and '{"gpu_share": 0.5}' in text


def test_machines_that_share_a_run_are_asked_for_together(study: StudyFolder) -> None:
    text = slurm.script(study, Execution(parallel={"tp": 8}, threads=2), Allocation(gpus="h100:4", nodes=2))
    lines = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"array=0-4", "nodes=2", "ntasks-per-node=4", "cpus-per-task=2", "gres=gpu:h100:4"} <= lines
    assert not any(line.startswith("ntasks=") for line in lines) and text.endswith(" --grace-s 30 --nodes 2\n")
    assert '"device"' not in text
    text = slurm.script(study, Execution(processes=6), Allocation(cpus=8, nodes=2, tasks=1))
    assert "--ntasks-per-node=3\n" in text and "--cpus-per-task=2\n" in text
    assert """--execution '{"device": "cpu", "processes": 6}'""" in text


@pytest.mark.parametrize(
    ("allocation", "execution", "message"),
    [
        (Allocation(nodes=0), Execution(), r"^--nodes 0: expected at least 1$"),
        (
            Allocation(nodes=2),
            Execution(),
            r"^--nodes 2: a run of execution\.processes=1 .* execution\.processes=2, or leave",
        ),
        (
            Allocation(nodes=2),
            Execution(processes=3),
            r"processes=3 does not lie evenly .* as execution\.processes=4, or",
        ),
        (
            Allocation(nodes=2),
            Execution(processes=2, slots=2),
            r"^--nodes 2: each run takes them all, and execution\.slots=2",
        ),
        (
            Allocation(nodes=2, gpus="8"),
            Execution(processes=8),
            r"over --nodes 2 take 4 GPUs of each machine; take --gpus 4$",
        ),
        (Allocation(nodes=2, gpus="a100"), Execution(processes=4), r"take 2 GPUs of each machine; take --gpus a100:2$"),
        (
            Allocation(nodes=2, cpus=3),
            Execution(processes=4, threads=2),
            r"over --nodes 2 take 4 CPUs; take --cpus 4, or",
        ),
    ],
)
def test_machines_that_could_not_share_a_run_are_refused(
    allocation: Allocation, execution: Execution, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        allocation.check(execution)


def test_what_is_done_takes_no_task(study: StudyFolder) -> None:
    for run in runs_of(study)[1:]:
        run.mark_done("done", {})
    assert "--array=0-0\n" in slurm.script(study, Execution(), Allocation())


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("10", 600),
        ("90", 5400),
        ("90:00", 5400),
        ("10:30", 630),
        ("1:00:00", 3600),
        ("48:00:00", 172800),
        ("1-0", 86400),
        ("1-12:30", 131400),
        ("2-00:00:05", 172805),
    ],
)
def test_slurms_times_are_read_as_slurm_reads_them(time: str, expected: int) -> None:
    """Its manual: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, …"""
    assert slurm.seconds(time) == expected


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        (Allocation(time="2"), "--time 2: too short, since the runs are saved 90 s before the end; take 3 minutes"),
        (Allocation(time="soon"), "--time soon: expected minutes, H:MM:SS or D-HH:MM:SS"),
        (Allocation(partition="gpu\n#SBATCH --uid=0"), "--partition .*: expected letters, digits"),
        (Allocation(gpus="1 "), "--gpus '1 ': expected letters"),
        (Allocation(tasks=-1), "--tasks -1: expected at least 0"),
        (Allocation(time="0:99:99"), "--time 0:99:99: expected minutes, H:MM:SS or D-HH:MM:SS, minutes and seconds"),
        (Allocation(time="1-99:99:99"), "--time 1-99:99:99: expected minutes"),
        (Allocation(time="1-24"), "--time 1-24: expected minutes"),
        (Allocation(time="0:30:00:00"), "--time 0:30:00:00: expected minutes"),
        (Allocation(time="١٠"), "--time ١٠: expected minutes"),
        (Allocation(grace_s=-1.0), "--grace -1: expected at least 0 seconds"),
        (Allocation(grace_s=math.inf), "^--grace inf: expected at least 0 seconds, and not without end$"),
        (Allocation(grace_s=math.nan), "^--grace nan: expected at least 0 seconds"),
        (Allocation(grace_s=1e300), "--time 1:00:00: too short"),
    ],
)
def test_what_makes_no_sense_is_refused(study: StudyFolder, allocation: Allocation, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        slurm.script(study, Execution(), allocation)


def test_a_gpu_has_to_be_asked_for(study: StudyFolder) -> None:
    with pytest.raises(ConfigError, match=r"Slurm was asked for no GPU; add --gpus 1"):
        slurm.script(study, Execution(device="cuda"), Allocation())


@pytest.mark.parametrize(
    ("gpus", "execution", "message"),
    [
        ("0", Execution(), "--gpus 0: expected 1 or more; for CPUs alone leave it out"),
        ("h100:0", Execution(), "--gpus h100:0: expected 1 or more"),
        ("1,2", Execution(), "--gpus 1,2: expected a count, or TYPE:COUNT"),
        ("1", Execution(processes=4), r"processes=4: each takes a GPU, and --gpus 1 is 1 a task; take --gpus 4$"),
        ("h100", Execution(processes=2), "--gpus h100 is 1 a task; take --gpus h100:2$"),
        ("1g.5gb:2", Execution(parallel={"tp": 4}), "--gpus 1g.5gb:2 is 2 a task; take --gpus 1g.5gb:4$"),
        (
            "8",
            Execution(device="cpu"),
            "--gpus 8: execution.device='cpu' would leave them idle; leave one of the two out$",
        ),
    ],
)
def test_gpus_with_which_a_task_could_only_fail_are_refused(gpus: str, execution: Execution, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Allocation(gpus=gpus).check(execution)


@pytest.mark.parametrize("gpus", ["4", "h100:4", "nvidia_a100_80gb:8"])
def test_gpus_for_all_processes_of_a_task_are_enough(gpus: str) -> None:
    Allocation(gpus=gpus).check(Execution(processes=4))


@pytest.mark.parametrize("gpus", [None, "2"])
def test_cpus_that_one_slot_does_not_have_are_refused(gpus: str | None) -> None:
    message = r"--cpus 5: execution\.threads=3 × execution\.processes=2 take 6 CPUs; take --cpus 6, or leave it out$"
    with pytest.raises(ConfigError, match=message):
        Allocation(cpus=5, gpus=gpus).check(Execution(threads=3, processes=2))
    Allocation(cpus=6, gpus=gpus).check(Execution(threads=3, processes=2))


def test_a_path_that_slurm_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes no quotes"):
        slurm.script(make_study(tmp_path / 'a"b', 1), Execution(), Allocation())


def test_without_slurm_there_is_one_sentence(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = slurm.write_script(study, slurm.script(study, Execution(), Allocation()))
    monkeypatch.setenv("PATH", str(study.path))
    with pytest.raises(
        StoreError, match=f"sbatch is not on the PATH here; on a login node of the cluster: sbatch {path}"
    ):
        slurm.submit(path)


def test_what_is_to_be_typed_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "s p%a", 1)
    path = slurm.write_script(study, slurm.script(study, Execution(), Allocation()))
    monkeypatch.setattr("gatelab.lab.submit_folder", lambda *_, is_dry, **__: (path, None if is_dry else "17"))
    words = ["submit", str(study.path), "--to", "slurm"]
    assert _status([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()[1]
    assert shlex.split(said.removeprefix("hand it in with: ")) == ["sbatch", str(path)]
    assert _status(words) == 0
    asked = capsys.readouterr().out.splitlines()[1].split("`")[1]
    assert shlex.split(asked) == ["gatelab", "status", str(study.path)]


def pulled(study: StudyFolder, target: str = "succeed", **environ: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-P", "-m", "gatelab.study.pull", str(study.path), "--target", f"tasks:{target}"]
    command += ["--execution", '{"slots": 2, "device": "cpu"}']
    environ = {"PYTHONPATH": str(HERE), **environ}
    return subprocess.Popen(
        command, env=os.environ | environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_study_of_a_newer_version_is_left_alone(study: StudyFolder) -> None:
    write_json(study.path / "study.json", {**read_json(study.path / "study.json"), "schema": SCHEMA + 1})
    job = pulled(study)
    said = job.communicate()[0]
    assert job.returncode == 1 and said.count("\n") == 1
    assert f"written by another version of Gatelab (schema {SCHEMA + 1}, this one reads {SCHEMA})" in said
    assert not any(
        (run.path / "ran.txt").exists() for run in (study.run(p.name) for p in (study.path / "runs").iterdir())
    )


@pytest.mark.parametrize(("number", "asks_again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_warning_saves_and_queues_again_and_a_farewell_only_saves(
    tmp_path: Path, number: signal.Signals, asks_again: bool
) -> None:
    study = make_study(tmp_path / "study", 2)
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(0o755)
    job = pulled(study, "count_until_told", SLURM_JOB_ID="17", PATH=f"{fake.parent}:{os.environ['PATH']}")
    wait_until(lambda: all(n_starts(run) for run in runs_of(study)), "both have begun")
    job.send_signal(number)
    job.send_signal(signal.SIGTERM)  # Slurm's own, when the time is over: not a second Ctrl-C
    job.communicate()
    assert job.returncode == 0 and [ledger.state_of(run) for run in runs_of(study)] == ["stopped"] * 2
    assert (tmp_path / "asked").exists() == asks_again
    if asks_again:
        assert (tmp_path / "asked").read_text() == "requeue 17\n"


def test_a_job_waits_for_an_owner_that_fell_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner beat less than a minute ago; it is the same job, whose machine failed and that was queued again elsewhere."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    study = make_study(tmp_path / "study", 1)
    (run,) = runs_of(study)
    set_age(attempt_path(run, plant_attempt(run).number), ledger.STALE_S - 2.0)
    summary = pull.pull(study, Execution(slots=1, device="cpu"), target="tasks:succeed")
    assert summary.is_complete and [a["outcome"] for a in run.attempts()] == ["lost", "done"]


@pytest.fixture(scope="module")
def place() -> Iterator[OfSlurm]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        place = OfSlurm()
        yield place
        place.close()


def wait_until_state(job: Job, state: str) -> None:
    wait_until(lambda: job.state() == state, f"the job is {state}")


def saved(study: StudyFolder) -> list[int]:
    return [json.loads((run.path / "checkpoint.json").read_text()) for run in runs_of(study)]


@slow
@needs_slurm
def test_a_pre_empted_job_saves_and_goes_on_when_it_may(tmp_path: Path, place: OfSlurm) -> None:
    study = make_study(tmp_path / "study", 2)
    job = place.hand_in(study, "count_until_told", Execution(slots=2), 5.0, cpus=4, partition="low")
    wait_until(lambda: all(n_starts(run) for run in runs_of(study)), "both have begun")
    urgent = place.cluster.run(
        "sbatch", "--parsable", "-p", "high", "-c", "4", "-o", "/dev/null", "--wrap", "sleep 600"
    ).strip()
    wait_until_state(job, "PENDING")
    wait_until(lambda: [ledger.state_of(run) for run in runs_of(study)] == ["stopped"] * 2, "both have saved")
    counted = saved(study)
    (study.path / "finish").touch()
    place.cluster.run("scancel", urgent)
    job.wait()
    assert [run.done()["steps"] for run in runs_of(study)] == counted
    assert [[a["outcome"] for a in run.attempts()] for run in runs_of(study)] == [["stopped", "done"]] * 2


@slow
@needs_slurm
def test_a_job_whose_time_is_nearly_up_saves_and_is_queued_again(tmp_path: Path, place: OfSlurm) -> None:
    study = make_study(tmp_path / "study", 2)
    # Slurm looks at its clocks every half minute and may warn a minute early.
    job = place.hand_in(study, "count_until_told", Execution(slots=2), 1.0, time="2:02")
    wait_until(lambda: all(n_starts(run) for run in runs_of(study)), "both have begun")
    wait_until(lambda: job.state() == "RUNNING", "it runs")
    wait_until(lambda: [ledger.state_of(run) for run in runs_of(study)] == ["stopped"] * 2, "both have saved", 120.0)
    counted = saved(study)
    (study.path / "finish").touch()
    said = job.wait()
    assert "the time is nearly up: the runs are saved, and this job is queued again" in said
    assert [run.done()["steps"] for run in runs_of(study)] == counted


@slow
@needs_slurm
def test_an_array_shares_the_work(tmp_path: Path, place: OfSlurm) -> None:
    study = make_study(tmp_path / "study", 12)
    place.hand_in(study, "succeed", Execution(slots=1), 1.0, tasks=3, cpus=1).wait()
    assert [[a["outcome"] for a in run.attempts()] for run in runs_of(study)] == [["done"]] * 12
    assert [n_starts(run) for run in runs_of(study)] == [1] * 12


@slow
@needs_slurm
@pytest.mark.skipif(bool(local._n_gpus()), reason="has real GPUs, which are not those that this Slurm deals out")
@pytest.mark.parametrize(
    ("gpus", "n_tasks", "execution"),
    [
        ("2", 1, Execution()),
        ("1", 2, Execution()),
        ("2", 1, Execution(processes=2)),
        ("2", 1, Execution(gpu_share=0.5)),
    ],
)
def test_tasks_see_the_gpus_of_their_slot(
    tmp_path: Path, place: OfSlurm, monkeypatch: pytest.MonkeyPatch, gpus: str, n_tasks: int, execution: Execution
) -> None:
    """Of two that are only said to be there. A slot's task waits until all slots have one."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho GPU 0: said\necho GPU 1: said\n")
    fake.chmod(0o755)
    monkeypatch.setitem(place.cluster.environ, "PATH", f"{tmp_path}:{place.cluster.environ['PATH']}")
    expected = {"processes": ["0,1"], "gpu_share": ["0", "0", "1", "1"]}
    devices = expected.get(next(iter(execution.model_fields_set), ""), ["0", "1"])
    study = make_study(tmp_path / "study", len(devices))
    place.hand_in(study, "see_device_together", execution, 1.0, gpus=gpus, tasks=n_tasks, cpus=2).wait()
    assert sorted(run.done()["CUDA_VISIBLE_DEVICES"] for run in runs_of(study)) == devices


@slow
@needs_slurm
def test_what_slurm_refuses_is_told_in_its_words(
    tmp_path: Path, place: OfSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "study", 1)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, place.cluster.environ[name])
    path = slurm.write_script(study, slurm.script(study, Execution(), Allocation(partition="mars")))
    with pytest.raises(StoreError, match=r"sbatch refused .*submit\.sh: .*invalid partition specified: mars"):
        slurm.submit(path)


@slow
@needs_slurm
def test_the_daemons_listen_on_loopback_alone(place: OfSlurm) -> None:
    pids = {str(process.pid) for process in place.cluster.processes}
    said = place.cluster.run("ss", "-ltnpH")
    lines = [line for line in said.splitlines() if any(f"pid={pid}," in line for pid in pids)]
    assert lines and all("127.0.0.1:" in line.split()[3] for line in lines)
