"""Studies of fake and of real runs at STUDY_ADDRESS, on an object store, and how they are driven and looked at."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from conftest import wait_until
from object_tasks import signals
from planted_store import HERE

from gatelab.config import Execution
from gatelab.objects import Objects
from gatelab.store import RunFolder, StudyFolder, query
from gatelab.study.drive import Summary, drive
from gatelab.study.local import LocalExecutor


def address() -> str:
    return os.environ["STUDY_ADDRESS"]


def study(n_seeds: int = 2, arms: tuple[str, ...] = ("none",)) -> StudyFolder:
    """As a plan leaves it: one cell, arms and seeds."""
    folder = StudyFolder.at(address())
    folder.check()
    plan = [
        {
            "cell": "toy",
            "arm": arm,
            "seed": seed,
            "fingerprint": f"{i:02d}{seed:010x}",
            "flops": 100.0,
            "n_parameters": 1,
        }
        for i, arm in enumerate(arms)
        for seed in range(n_seeds)
    ]
    StudyFolder.create(folder.path, {"name": "fake", "plan": plan})
    for entry, run in folder.planned():
        run.create({"seed": entry["seed"], "model": {"gate": entry["arm"]}, "train": {"batch_size": 8}})
    folder.push()
    return folder


def go(folder: StudyFolder, executor: LocalExecutor, target: str, **execution: object) -> Summary:
    entries, settings = folder.study()["plan"], Execution(**execution)
    return drive(folder, executor, settings, entries=entries, target=f"object_tasks:{target}", grace_s=20.0)


def start_driver(target: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(HERE / "object_tasks.py"), address(), f"object_tasks:{target}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def seen_anew(name: str = "another") -> StudyFolder:
    """The study as a machine sees it that has never seen it."""
    folder = StudyFolder.at(address(), signals().parent / name)
    folder.refresh(None)
    return folder


def runs_of(folder: StudyFolder) -> list[RunFolder]:
    return [run for _, run in folder.planned()]


def outcomes(run: RunFolder) -> list[str]:
    return [attempt["outcome"] for attempt in run.attempts()]


def steps(folder: StudyFolder, run: RunFolder) -> list[int]:
    return [row["step"] for row in query(folder, "SELECT step FROM rows WHERE run = ? ORDER BY ALL", [run.fingerprint])]


STUDY = """
from gatelab import Arm, BigramBackcopy, Execution, ModelConfig, ProbeConfig, Run, Study, TrainConfig

study = Study(
    name="small", question="Does it survive?",
    cells={"toy": Run(
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2), data=BigramBackcopy(vocab_size=16),
        train=TrainConfig(tokens=600 * 64, batch_size=4, seq_len=16), probe=ProbeConfig(times=2, sequences=2, eval_sequences=2),
    )},
    arms=(Arm("none", {"model.gate": "none"}), Arm("gated", {"model.gate": "sdpa-headwise"})),
    seeds=1, execution=Execution(device="cpu", slots=1, checkpoint_s=0.1),
)
"""


def gatelab(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gatelab.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def has_checkpoint(objects: Objects) -> bool:
    """Whether a run has a save with one."""
    for name in objects.names():
        if re.fullmatch(r"runs/\w+/saved/[\d-]+\.json", name):
            with suppress(FileNotFoundError):
                if json.loads(objects.read(name))["step"]:
                    return True
    return False


def kill_and_go_on(place: Path, *words: str) -> None:
    """A real study whose worker and driver are killed once a checkpoint is carried up, and which another machine takes up: it ends
    with the bytes of one in a folder, and has its page."""
    (place / "small.py").write_text(STUDY)
    run_it = ["run", str(place / "small.py"), *words]
    told = gatelab(*run_it, "--out", str(place / "folder"))
    assert told.returncode == 0, told.stderr
    command = [sys.executable, "-m", "gatelab.cli", *run_it, "--out", address()]
    driver = subprocess.Popen(command, start_new_session=True)
    objects = Objects(address())
    wait_until(lambda: has_checkpoint(objects), "a checkpoint is carried up")
    attempts = {
        name: json.loads(objects.read(name)) for name in objects.names() if name.endswith("/attempts/0001.json")
    }
    name, running = next((name, a) for name, a in attempts.items() if a["outcome"] == "running")
    for pid in (running["pid"], driver.pid):
        os.kill(pid, signal.SIGKILL)
    driver.wait()
    assert "lost" in gatelab("status", address()).stdout
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    told = gatelab(*run_it, "--out", address())
    assert told.returncode == 0, told.stderr
    assert "resuming at step" in gatelab("logs", address(), name.split("/")[1]).stdout
    page = Path(gatelab("report", address()).stdout.strip())
    assert page.is_relative_to(os.environ["XDG_CACHE_HOME"]) and page.stat().st_size > 100_000
    there, folder = seen_anew(), StudyFolder.open(place / "folder")
    there.refresh(lambda name: True)
    for run in runs_of(folder):
        for name in ("rows.jsonl", "weights.safetensors"):
            assert (there.run(run.fingerprint).path / name).read_bytes() == (run.path / name).read_bytes()
    assert not [name for name in objects.names() if "/checkpoint" in name]
