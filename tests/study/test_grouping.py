"""How many runs share a GPU's step."""

import pytest
import tiny

from gatelab.config import OptimConfig, override
from gatelab.studies.quickstart import toy
from gatelab.study.grouping import group_size
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
