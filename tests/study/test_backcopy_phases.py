"""The phase diagram of Bigram-Backcopy: which settings it has, which runs share a step, and how its gates start."""

import pytest
import torch

from gatelab.config import canonical
from gatelab.models import build_model
from gatelab.studies.backcopy_phases import recipe, study
from gatelab.study.grouping import group_size, shape_of
from gatelab.study.plan import make_plan
from gatelab.train.group import Group


def test_every_setting_is_there_once_and_runs_of_a_shape_fill_one_stack() -> None:
    runs = make_plan(study).runs
    assert len(runs) == len({p.fingerprint for p in runs}) == 60 * 64
    shapes: dict[str, int] = {}
    for p in runs[::64]:
        shape = shape_of(canonical(p.run))
        shapes[shape] = shapes.get(shape, 0) + 64
    assert list(shapes.values()) == [384] * 10
    assert group_size(runs[0].run, has_gpus=True) == 256


@pytest.mark.parametrize("gate", ["headwise", "elementwise"])
def test_gates_of_both_starts_differ_in_the_value_alone(gate: str) -> None:
    part = recipe((2e-3,), (1,), with_bos=(True,), seeds=1)
    models = {p.arm: build_model(p.run.model, seed=0).state_dict() for p in make_plan(part).runs}
    half, opened = models[f"{gate}-half"], models[f"{gate}-open"]
    (bias,) = [name for name in half if not torch.equal(half[name], opened[name])]
    assert "gates" in bias and bias.endswith("g_proj.bias")
    torch.testing.assert_close(half[bias].sigmoid(), torch.full_like(half[bias], 0.5))
    torch.testing.assert_close(opened[bias].sigmoid(), torch.full_like(opened[bias], 0.95))


def test_runs_of_all_cells_of_a_shape_stack() -> None:
    runs = [p.run for p in make_plan(recipe(depths=(2,), seeds=2)).runs if p.arm == "headwise-open"]
    group = Group(runs)
    assert len(runs) == 12 and group.is_stacked and len({id(m.source) for m in group.members}) == 2
