"""A run that is killed at any moment, or asked to stop, and resumed leaves the same bytes as one that was not."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from carrier import LONG, SHORT, WILD, Carrier, folder, result, rows
from conftest import wait_until
from safetensors.torch import load

from gatelab.store import RunFolder
from gatelab.train.checkpoint import read_tensors

KILLED = -signal.SIGKILL
PAIR = (SHORT, SHORT.model_copy(update={"seed": 1}))


def assert_alike(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """To rounding: two runs in one step are multiplied together, and the one that is left goes on alone."""
    rows_a, rows_b = ([json.loads(line) for line in r["rows.jsonl"].splitlines()] for r in (found, expected))
    assert [{**r, "value": 0} for r in rows_a] == [{**r, "value": 0} for r in rows_b]
    assert [r["value"] for r in rows_a] == pytest.approx([r["value"] for r in rows_b], rel=1e-4, abs=1e-6)
    weights_a, weights_b = (load(r["weights.safetensors"]) for r in (found, expected))
    assert weights_a.keys() == weights_b.keys()
    assert all(torch.allclose(w, weights_b[name], rtol=1e-3, atol=1e-5) for name, w in weights_a.items())


def finished(run: RunFolder) -> dict[str, bytes]:
    """The result, which is complete and has nothing beside it that was only needed on the way."""
    assert run.done() is not None
    assert not [p.name for p in run.path.iterdir() if p.name.endswith(".tmp") or "checkpoint" in p.name]
    return result(run)


@pytest.fixture(scope="module")
def carrier() -> Iterator[Carrier]:
    carrier = Carrier()
    yield carrier
    carrier.close()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, carrier: Carrier) -> dict[str, dict[str, bytes]]:
    """Results by fingerprint, each carried out alone, at once."""
    out = {}
    for run in (SHORT, PAIR[1], LONG):
        made = folder(tmp_path_factory.mktemp("whole"), run)
        assert carrier.carry_out(made) == 0
        out[made.fingerprint] = finished(made)
    return out


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_killed_at_an_operation_on_a_file_and_resumed_is_the_same(
    tmp_path: Path, carrier: Carrier, uninterrupted: dict[str, dict[str, bytes]], every: int
) -> None:
    """Before each flush, rename and removal, and in the middle of each file of tensors; it saves after every step."""
    n_killed = 0
    while True:
        run = folder(tmp_path / str(n_killed), SHORT)
        ended = carrier.carry_out(run, die_at=every * n_killed + 1, checkpoint_s=0)
        if ended == 0:
            break
        assert ended == KILLED
        n_killed += 1
        if run.done() is None:
            assert carrier.carry_out(run, checkpoint_s=0) == 0
            assert finished(run) == uninterrupted[run.fingerprint], n_killed
        else:  # it died after the last word; nobody comes to clear away the checkpoint
            assert result(run) == uninterrupted[run.fingerprint], n_killed
    assert n_killed > 20 // every


def test_killed_at_random_moments_and_resumed_is_the_same(
    tmp_path: Path, carrier: Carrier, uninterrupted: dict[str, dict[str, bytes]]
) -> None:
    """Whatever it does at that moment; it saves after every step."""
    run, moments = folder(tmp_path, LONG), random.Random(0)
    n_killed = 0
    while n_killed < 6:
        # Some steps further, and then at any point within a step.
        enough = _size(run) + moments.randrange(500, 1500)
        pid = carrier.start(run, checkpoint_s=0)
        wait_until(lambda size=enough: _size(run) > size, "it went on")
        time.sleep(moments.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        assert carrier.wait() == KILLED
        n_killed += 1
        assert run.done() is None
    assert carrier.carry_out(run) == 0
    assert finished(run) == uninterrupted[run.fingerprint]


def _size(run: RunFolder) -> int:
    return run.rows_path.stat().st_size if run.rows_path.exists() else 0


def test_asked_to_stop_and_resumed_is_the_same(
    tmp_path: Path, carrier: Carrier, uninterrupted: dict[str, dict[str, bytes]]
) -> None:
    run = folder(tmp_path, LONG)
    for stop_after in (1, 7, 30):
        assert carrier.carry_out(run, stop_after=stop_after) == 0
        assert run.done() is None and (run.path / "checkpoint.safetensors").exists()
    assert read_tensors(run.path / "checkpoint.safetensors")[1]["step"] == 38
    assert carrier.carry_out(run) == 0
    assert finished(run) == uninterrupted[run.fingerprint]


def test_asked_to_stop_at_the_last_step_is_done(tmp_path: Path, carrier: Carrier) -> None:
    run = folder(tmp_path, SHORT)
    assert carrier.carry_out(run, stop_after=2) == 0
    assert run.done()["status"] == "done"


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_a_group_that_is_killed_between_two_checkpoints_is_the_same(
    tmp_path: Path, carrier: Carrier, uninterrupted: dict[str, dict[str, bytes]], every: int
) -> None:
    n_killed = 0
    while True:
        runs = [folder(tmp_path / str(n_killed), run) for run in PAIR]
        ended = carrier.carry_out(*runs, die_at=every * n_killed + 1, checkpoint_s=0)
        n_killed += ended == KILLED
        left = [run for run in runs if run.done() is None]
        if left:
            assert carrier.carry_out(*left, checkpoint_s=0) == 0
        for run in runs:
            assert_alike(result(run), uninterrupted[run.fingerprint])
        if ended == 0:
            break
    assert n_killed > 30 // every


def test_rows_behind_the_checkpoint_are_taken_back(tmp_path: Path, carrier: Carrier) -> None:
    run = folder(tmp_path, SHORT)
    assert carrier.carry_out(run, stop_after=1) == 0
    kept = run.rows_path.read_bytes()
    with open(run.rows_path, "ab") as f:
        f.write(b'{"run":"x","step":2,"source":"train","metric":"loss","value":9.0}\n{"half of a l')
    assert carrier.carry_out(run) == 0
    written = run.rows_path.read_bytes()
    assert written.startswith(kept) and b"9.0}" not in written and b"half of a l" not in written
    assert [r["step"] for r in rows(run) if r["metric"] == "loss"] == [1, 2]


def test_a_group_stops_together_and_remembers_who_diverged(tmp_path: Path, carrier: Carrier) -> None:
    wholes, parts = (
        [folder(tmp_path / name, LONG.model_copy(update={"optim": WILD})), folder(tmp_path / name, LONG)]
        for name in ("whole", "parts")
    )
    assert carrier.carry_out(*wholes) == 0
    assert carrier.carry_out(*parts, stop_after=50) == 0 and carrier.carry_out(*parts) == 0
    assert [finished(r) for r in parts] == [finished(r) for r in wholes]
