"""Two processes that share a run train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from gatelab.train.group import Group
from gatelab.train.loop import train
from gatelab.train.parallel import Ranks, join


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Each takes half of the batch, one sequence at a time."""
    script = Path(__file__).with_name("train_as_two.py")
    environ = os.environ | {"PYTHONPATH": str(Path(tiny.__file__).parent)}
    subprocess.run([sys.executable, script, tmp_path], env=environ, check=True, timeout=300)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    group = Group([tiny.run(steps=4, seed=s) for s in (0, 1)])
    alone = list(train(group))
    assert first["steps"] == second["steps"] and first["weights"] == second["weights"]
    assert (first["writer"], second["writer"]) == (True, False)
    for together, step in zip(first["steps"], alone, strict=True):
        assert together["loss"] == pytest.approx(step.loss, abs=1e-5)
        assert together["grad_norm"] == pytest.approx(step.grad_norm, rel=1e-4)
        assert together["tokens"] == step.tokens
    assert first["agreed"] == second["agreed"] == [False, True, True]


def test_every_sequence_belongs_to_one_rank() -> None:
    shares = [Ranks(rank, 4).share(8) for rank in range(4)]
    assert [i for share in shares for i in range(8)[share]] == list(range(8))
    with pytest.raises(ValueError, match=r"train.batch_size=6 does not divide among 4 processes"):
        Ranks(0, 4).share(6)


def test_one_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = join(torch.device("cpu"))
    assert ranks == Ranks(0, 1) and ranks.is_writer
    assert [ranks.any_says(said, torch.device("cpu")) for said in (False, True)] == [False, True]
