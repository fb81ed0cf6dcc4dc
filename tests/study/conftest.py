"""A small study folder with fake runs, and attempts planted as if others had made them."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import outcomes
import pytest

from gatelab.store import RunFolder, StudyFolder, write_json
from gatelab.study import ledger
from gatelab.study.processes import process_start

TIMES_OUT_S = 60.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[object]:
    report = yield
    outcomes.note(item, report)
    return report


def make_study(path: Path, n_seeds: int, arms: tuple[str, ...] = ("none",)) -> StudyFolder:
    """One cell, `arms` and seeds; the runs' batch is 8."""
    plan = [
        {"cell": "toy", "arm": arm, "seed": seed, "fingerprint": f"{i:02d}{seed:010x}", "flops": 100.0}
        for i, arm in enumerate(arms)
        for seed in range(n_seeds)
    ]
    folder = StudyFolder.create(path, {"name": "fake", "plan": plan})
    for entry, run in folder.planned():
        run.create({"seed": entry["seed"], "model": {"gate": entry["arm"]}, "train": {"batch_size": 8}})
    return folder


def plant_attempt(run: RunFolder, outcome: str = "running", **facts: object) -> ledger.Attempt:
    """An attempt that another owner made: on another machine, unless `facts` say otherwise."""
    foreign = {"host": "elsewhere", "machine": "another boot", "pid": 1, "process": "1", "owner": "other"}
    last = ledger.last_attempt(run)
    mine = ledger._begin(last, "other", outcome, driver=None)
    attempt = replace(mine, **{**foreign, **facts})
    (run.path / "attempts").mkdir(parents=True, exist_ok=True)
    write_json(attempt_path(run, attempt.number), asdict(attempt))
    return attempt


def attempt_path(run: RunFolder, number: int) -> Path:
    return run.path / "attempts" / f"{number:04d}.json"


def set_age(path: Path, seconds: float) -> None:
    """Let a file have been touched `seconds` ago (negative: in the future)."""
    os.utime(path, (time.time() - seconds,) * 2)


def wait_until(condition: Callable[[], bool], what: str, times_out_s: float = TIMES_OUT_S) -> None:
    """Wait for something that must happen; the deadline is far beyond what it takes."""
    deadline = time.monotonic() + times_out_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return next(make_study(tmp_path / "study", 1).planned())[1]


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: all(process_start(pid) is None for pid in pids), "the processes are gone")
