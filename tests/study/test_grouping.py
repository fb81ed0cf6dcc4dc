"""How many runs share a GPU's step, and which."""

from pathlib import Path

import pytest
import tiny
import torch

from gatelab.config import OptimConfig, override
from gatelab.store import RunFolder
from gatelab.studies.quickstart import toy
from gatelab.study.grouping import group_size, stands_at
from gatelab.train.checkpoint import write_tensors
from gatelab.train.group import resolve


def test_small_runs_fill_a_step_and_large_ones_are_alone() -> None:
    small = resolve(toy)
    assert group_size(small, has_gpus=True) == 256  # 8 × 64 tokens a step: as many as are allowed
    assert group_size(small, has_gpus=False) == 1
    middle = resolve(override(toy, {"train.batch_size": 64, "train.tokens": 10**6}))
    assert group_size(middle, has_gpus=True) == 32
    large = {
        "model.d_model": 2048,
        "model.n_heads": 16,
        "model.n_layers": 24,
        "train.batch_size": 8,
        "train.tokens": 10**6,
    }
    assert group_size(resolve(override(toy, large)), has_gpus=True) < 3
    full = resolve(override(toy, {"train.batch_size": 4096, "train.tokens": 10**8}))
    assert group_size(full, has_gpus=True) == 1


@pytest.mark.parametrize(
    "changes", [{"optim": OptimConfig(qk_clip=100.0)}, {"model": tiny.model(positions="relative")}]
)
def test_what_is_not_stacked_is_alone(changes: dict[str, object]) -> None:
    assert group_size(tiny.run(**changes), has_gpus=True) == 1


def test_where_a_run_stands_is_read_from_its_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "07aa614300b9")
    run.path.mkdir()
    assert stands_at(run) is None
    path = run.path / "checkpoint.safetensors"
    write_tensors(path, {"x": torch.zeros(3)}, {"step": 30, "offset": 0})
    assert stands_at(run) == 30
    for damaged in (path.read_bytes()[:20], b"", b"x" * 100):
        path.write_bytes(damaged)
        assert stands_at(run) is None
