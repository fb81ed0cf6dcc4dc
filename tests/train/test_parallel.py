"""Two processes that share a run train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import kinds
import pytest
import tiny
import torch
from ranks import paths

from gatelab.config import OptimConfig
from gatelab.train.group import Group
from gatelab.train.loop import train
from gatelab.train.parallel import Ranks, join


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    """What each of two processes saw, each of which takes half of every batch."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("train_as_two.py")
    subprocess.run([sys.executable, script, folder], env=os.environ | paths(), check=True, timeout=300)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_train_as_one(both: list[dict[str, dict]]) -> None:
    """One sequence at a time."""
    first, second = (found["dense"] for found in both)
    assert first["steps"] == second["steps"] and first["weights"] == second["weights"]
    assert (first["writer"], second["writer"]) == (True, False)
    _equal_one(first, Group([tiny.run(steps=4, seed=s) for s in (0, 1)]))
    assert first["agreed"] == second["agreed"] == [False, True, True]


@pytest.mark.parametrize("micro_batches", ["whole", "parts"])
def test_two_processes_balance_experts_and_clip_queries_as_one(both: list[dict[str, dict]], micro_batches: str) -> None:
    first, second = (found[micro_batches] for found in both)
    assert first["steps"] == second["steps"] and first["weights"] == second["weights"]
    group = Group([kinds.run("encoder-decoder-experts", steps=4, optim=OptimConfig(lr=1e-2, qk_clip=1.0))])
    _equal_one(first, group)
    weights = sum(p.double().sum().item() for p in group.members[0].model.parameters())
    assert first["weights"] == pytest.approx(weights, rel=1e-4)


def _equal_one(seen: dict, group: Group) -> None:
    for together, step in zip(seen["steps"], train(group), strict=True):
        assert together["loss"] == pytest.approx(step.loss, abs=1e-5)
        assert together["grad_norm"] == pytest.approx(step.grad_norm, rel=1e-4)
        assert together["tokens"] == step.tokens


def test_every_sequence_belongs_to_one_rank() -> None:
    shares = [Ranks(rank, 4).share(8) for rank in range(4)]
    assert [i for share in shares for i in range(8)[share]] == list(range(8))
    with pytest.raises(ValueError, match=r"train.batch_size=6 does not divide among 4 processes"):
        Ranks(0, 4).share(6)


def test_one_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = join(torch.device("cpu"), 60.0)
    assert ranks == Ranks(0, 1) and ranks.is_writer
    assert [ranks.any_says(said) for said in (False, True)] == [False, True]
