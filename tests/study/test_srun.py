"""Runs that several machines share: two agents of torchrun, and tasks of a real Slurm of two nodes, all on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
from carrier import folder as planned
from carrier import rows
from conftest import make_study, wait_until
from places import HERE, Job, OfSlurm, needs_slurm
from tasks import n_starts

from gatelab.cli import _status
from gatelab.config import ConfigError, Execution, ModelConfig, Run
from gatelab.store import RunFolder, StudyFolder
from gatelab.study import ledger, slurm, srun
from gatelab.study.carry_out import carry_out
from gatelab.study.executor import Task
from gatelab.study.pull import pull
from gatelab.train.checkpoint_folder import steps

RUN = tiny.run(steps=4, model=ModelConfig(d_model=16, n_heads=2, n_layers=2, init="fan-in", gate="sdpa-headwise"))
TWO = Execution(processes=2)
slow = pytest.mark.slow


def real_study(path: Path, run: Run = RUN) -> tuple[StudyFolder, RunFolder]:
    name = planned(path.parent / "planned", run).fingerprint
    entry = {"cell": "toy", "arm": "gated", "seed": 0, "fingerprint": name, "flops": 1.0}
    study = StudyFolder.create(path, {"name": "real", "plan": [entry]})
    return study, planned(path / "runs", run)


def same_as_alone(run: RunFolder, tmp_path: Path, like: Run = RUN) -> None:
    """The rows of one process, up to rounding."""
    alone = planned(tmp_path / "alone", like)
    carry_out([alone], Execution(), should_stop=lambda: False)
    found, expected = rows(run), rows(alone)
    assert [{**r, "value": 0} for r in found] == [{**r, "value": 0} for r in expected]
    assert [r["value"] for r in found] == pytest.approx([r["value"] for r in expected], rel=1e-4, abs=1e-5)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What looks like a job of Slurm's: programs that note how they were called. The fake srun starts two processes."""
    programs = {
        "srun": f"#!{sys.executable}\n" + _SRUN,
        "scancel": '#!/bin/sh\necho "$@" >> "$(dirname "$0")/cancelled"\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "3", "PYTHONPATH": str(HERE)}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


_SRUN = """
import json, os, subprocess, sys
from pathlib import Path
(Path(__file__).parent / "called.json").write_text(json.dumps(sys.argv[1:]))
words = sys.argv[sys.argv.index("--kill-on-bad-exit=1") + 1:]
facts = {"SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
ranks = [subprocess.Popen(words, env=os.environ | facts | {"SLURM_PROCID": str(i)}) for i in range(2)]
codes = [rank.wait() for rank in ranks]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""


def task(study: StudyFolder, target: str) -> Task:
    (_, run), *_ = study.planned()
    return Task(str(study.path), (run.fingerprint,), TWO.model_dump(mode="json"), target=f"tasks:{target}")


def test_a_step_is_asked_for_and_its_processes_know_each_other(job: Path) -> None:
    study = make_study(job / "study", 1)
    executor = srun.SrunExecutor(TWO, 2)
    handle = executor.submit(task(study, "count_as_first"))
    (_, run), *_ = study.planned()
    wait_until(lambda: n_starts(run) == 1 and len(list(study.path.glob("rank-*"))) == 2, "both are there")
    facts = [json.loads((study.path / f"rank-{i}").read_text()) for i in (0, 1)]
    assert [f["RANK"] for f in facts] == ["0", "1"]
    assert {(f["WORLD_SIZE"], f["LOCAL_RANK"], f["MASTER_ADDR"], f["OMP_NUM_THREADS"]) for f in facts} == {
        ("2", "0", "127.0.0.1", "1")
    }
    assert len({f["MASTER_PORT"] for f in facts}) == 1
    asked = json.loads((job / "called.json").read_text())
    assert asked[:4] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=3"]
    assert asked[4:6] == ["--wait=0", "--kill-on-bad-exit=1"]
    assert executor.poll(0.0) == [] and executor.slots == 1
    executor.stop("another")
    executor.stop(handle)
    assert (job / "cancelled").read_text() == "--signal=TERM 17\n"
    (study.path / "finish").touch()
    wait_until(
        lambda: (ended := executor.poll(0.1)) and (ended[0].handle, ended[0].exit_code) == (handle, 0), "its end"
    )
    assert [a["outcome"] for a in run.attempts()] == ["done"]
    executor.close()


@pytest.mark.parametrize(("code", "expected"), [(6, (6, None)), (137, (None, "SIGKILL")), (255, (255, None))])
def test_how_a_step_ended_is_read_from_sruns_code(
    job: Path, code: int, expected: tuple[int | None, str | None]
) -> None:
    (job / "srun").write_text(f"#!/bin/sh\nexit {code}\n")
    executor = srun.SrunExecutor(TWO, 2)
    executor.submit(task(make_study(job / "study", 1), "succeed"))
    (ended,) = executor.poll(60.0)
    assert (ended.exit_code, ended.signal) == expected and executor.poll(0.0) == []


def test_a_job_of_several_machines_carries_runs_of_one_shape_out_one_by_one(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a group the other processes could not know which runs the first one has claimed."""
    groups: list[tuple[str, ...]] = []
    submit = srun.SrunExecutor.submit

    def note(self: srun.SrunExecutor, task: Task) -> str:
        groups.append(task.fingerprints)
        return submit(self, task)

    monkeypatch.setattr(srun.SrunExecutor, "submit", note)
    study = make_study(job / "study", 2)
    runs = [run for _, run in study.planned()]
    summary = pull(study, TWO.model_copy(update={"group": 2}), target="tasks:succeed_as_first", nodes=2)
    assert summary.is_complete and groups == [(run.fingerprint,) for run in runs]
    assert [n_starts(run) for run in runs] == [1, 1]
    asked = json.loads((job / "called.json").read_text())
    assert json.loads(asked[asked.index("--execution") + 1])["group"] == 1


def test_what_is_left_ends_with_the_executor(job: Path) -> None:
    (job / "srun").write_text("#!/bin/sh\nexec sleep 600\n")
    executor = srun.SrunExecutor(TWO, 2)
    executor.submit(task(make_study(job / "study", 1), "succeed"))
    pid = executor._step.pid
    executor.close()
    executor.close()
    assert ledger.process_start(pid) is None


def test_outside_a_job_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match=r"--nodes 2: this is no job of Slurm's; `gatelab submit --nodes 2` writes"):
        srun.SrunExecutor(TWO, 2)


def test_the_commands_of_the_docs_can_be_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (HERE.parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    (study,) = re.findall(r"```python\n(.*?)```", text[: text.index("\n### 1. ")], re.DOTALL)
    (tmp_path / "study.py").write_text(study)
    monkeypatch.chdir(tmp_path)
    part = text[text.index("\n### A run on several machines") :]
    first, second = re.findall(r"^\$ gatelab (submit .*?)(?: +#.*)?$", part, re.MULTILINE)
    assert _status(first.split()) == 0
    (words,) = set(re.findall(r"--execution '(.*?)'", part))
    by_hand = Execution.model_validate_json(words)
    assert by_hand.processes == 2 * int(re.search(r"--nnodes 2 --nproc-per-node (\d+)", part)[1])
    capsys.readouterr()
    assert _status([*second.split(), "--dry-run"]) == 0
    script = (tmp_path / "shared" / "walk" / "slurm" / "submit.sh").read_text()
    assert "--nodes=2\n" in script and "--ntasks-per-node=4\n" in script and "--gres=gpu:4\n" in script
    capsys.readouterr()
    assert _status(["status", "shared/walk", "--json"]) == 0
    assert all(len(json.loads(line)["fingerprint"]) == 12 for line in capsys.readouterr().out.splitlines())


@slow
def test_agents_of_torchrun_share_a_run(tmp_path: Path) -> None:
    """The commands of docs/scale.md, of two machines that are both this one."""
    study, run = real_study(tmp_path / "study")
    torchrun = Path(sys.executable).with_name("torchrun")
    where = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(srun._free_port()),
    ]
    what = ["-m", "gatelab.study.worker", study.path, run.fingerprint, "--execution", '{"parallel": {"tp": 2}}']
    environ = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    agents = [subprocess.Popen([torchrun, *where, "--node-rank", str(r), *what], env=environ) for r in (0, 1)]
    assert [agent.wait(timeout=300) for agent in agents] == [0, 0]
    same_as_alone(run, tmp_path)
    facts = json.loads((run.path / "environment.json").read_text())
    assert facts["processes"] == 2 and facts["parallel"]["tp"] == 2


@pytest.fixture(scope="module")
def place() -> Iterator[OfSlurm]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        place = OfSlurm(n_nodes=2)
        yield place
        place.close()


@slow
@needs_slurm
def test_two_nodes_train_a_run(tmp_path: Path, place: OfSlurm) -> None:
    study, run = real_study(tmp_path / "study")
    execution = Execution(parallel={"tp": 2}, checkpoint_s=0)
    path = slurm.write_script(study, slurm.script(study, execution, slurm.Allocation(nodes=2)))
    job = Job(place.cluster, study, place.cluster.run("sbatch", "--parsable", str(path)).strip())
    wait_until(lambda: "nothing is left for this job" in job.said(), "the job is done", 200.0)
    assert run.done()["status"] == "done", (run.path / "log.txt").read_text()
    same_as_alone(run, tmp_path)


@slow
@needs_slurm
def test_runs_are_shared_one_after_the_other_stopped_and_gone_on_with(tmp_path: Path, place: OfSlurm) -> None:
    study = make_study(tmp_path / "study", 2)
    first, second = (run for _, run in study.planned())
    job = place.hand_in(study, "count_as_first", TWO, 20.0, nodes=2)
    wait_until(
        lambda: n_starts(first) == 1 and len(list(study.path.glob("rank-*"))) == 2, "both machines are at the first"
    )
    nodes = {json.loads(p.read_text())["SLURMD_NODENAME"] for p in study.path.glob("rank-*")}
    assert len(nodes) == 2 and n_starts(second) == 0
    job.interrupt()
    job.wait()
    assert [ledger.state_of(run) for run in (first, second)] == ["stopped", "planned"]
    counted = json.loads((first.path / "checkpoint.json").read_text())
    (study.path / "finish").touch()
    place.hand_in(study, "count_as_first", TWO, 20.0, nodes=2).wait()
    assert [[a["outcome"] for a in run.attempts()] for run in (first, second)] == [["stopped", "done"], ["done"]]
    assert first.done()["steps"] == counted


@slow
@needs_slurm
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which Linux has")
def test_a_run_whose_process_on_another_node_is_killed_goes_on(tmp_path: Path, place: OfSlurm) -> None:
    """The first process hears of it from its exchange, or from Slurm which ends the step, whichever is faster."""
    long = RUN.model_copy(update={"train": RUN.train.model_copy(update={"tokens": 100 * 32})})
    study, run = real_study(tmp_path / "study", long)
    path = slurm.write_script(
        study, slurm.script(study, Execution(parallel={"tp": 2}, checkpoint_s=0), slurm.Allocation(nodes=2))
    )
    job = Job(place.cluster, study, place.cluster.run("sbatch", "--parsable", str(path)).strip())
    wait_until(lambda: max(steps(run.path), default=0) > 5, "there is a checkpoint")
    os.kill(process_of(run, rank=1), signal.SIGKILL)
    wait_until(lambda: "nothing is left for this job" in job.said(), "the job is done", 200.0)
    assert [a["outcome"] for a in run.attempts()] in (["lost", "done"], ["stopped", "done"]), run.attempts()
    assert run.attempts()[1]["resumed_from_step"] > 5
    same_as_alone(run, tmp_path, long)


def process_of(run: RunFolder, rank: int) -> int:
    """The pid of one of a run's, which may be gone as it is looked at."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words, environ = (set((place / name).read_bytes().split(b"\0")) for name in ("cmdline", "environ"))
            if (
                run.fingerprint.encode() in words
                and f"SLURM_PROCID={rank}".encode() in environ
                and b"srun" not in words
            ):
                return int(place.name)
    raise AssertionError(f"no process of rank {rank}")


@slow
@needs_slurm
def test_a_job_whose_time_is_nearly_up_saves_what_machines_share(tmp_path: Path, place: OfSlurm) -> None:
    study = make_study(tmp_path / "study", 1)
    (_, run), *_ = study.planned()
    job = place.hand_in(study, "count_as_first", TWO, 1.0, nodes=2, time="2:02")
    wait_until(lambda: n_starts(run) == 1, "it has begun")
    wait_until(lambda: ledger.state_of(run) == "stopped", "it is saved", 120.0)
    (study.path / "finish").touch()
    assert "the time is nearly up: the runs are saved, and this job is queued again" in job.wait()
    assert [a["outcome"] for a in run.attempts()] == ["stopped", "done"]
