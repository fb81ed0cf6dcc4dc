"""Two processes that share a run train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from gatelab.train.group import Group
from gatelab.train.loop import train
from gatelab.train.parallel import Ranks, join


def two_processes(*command: str) -> list[str]:
    """Standard outputs of ranks 0 and 1 of a Python script."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks = []
    for rank in range(2):
        environ = os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "PYTHONPATH": str(Path(tiny.__file__).parent),
        }
        ranks.append(
            subprocess.Popen(
                [sys.executable, *command], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    ended = [process.communicate(timeout=300) for process in ranks]
    assert [p.returncode for p in ranks] == [0, 0], [error for _, error in ended]
    return [out for out, _ in ended]


def test_two_processes_train_as_one() -> None:
    """Each takes half of the batch, one sequence at a time."""
    first, second = (json.loads(out) for out in two_processes(str(Path(__file__).with_name("rank.py"))))
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
