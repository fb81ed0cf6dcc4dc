"""A stack as one captured graph on a GPU: its runs train as they do alone, and one that diverges in it stops alone; run with
`-m gpu`."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny
import torch

from gatelab.config import Execution, OptimConfig, Run, TrainConfig
from gatelab.record import Step
from gatelab.train.checkpoint import read_tensors, write_tensors
from gatelab.train.group import Group
from gatelab.train.loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler uses what torch deprecated
]
# Of a loss: what kernels that sum in no fixed order, compiled and not, may differ by.
NEAR = {"float32": 1e-3, "bfloat16": 5e-2}
by_precision = pytest.mark.parametrize("precision", NEAR)
OPTIMS = (
    OptimConfig(lr=1e-2, clip=0.5),
    OptimConfig(lr=3e-3, betas=(0.8, 0.99), weight_decay=0.3, clip=None, schedule="constant"),
    OptimConfig(lr=5e-3, eps=1e-4, schedule="wsd", warmup=0.3),
)
STEPS = 12


def members(precision: str, gate: str = "sdpa-elementwise") -> list[Run]:
    model = tiny.model(gate=gate, max_seq_len=8, d_model=64, d_ff=64, init_std=0.1)
    budget = TrainConfig(tokens=STEPS * 32, batch_size=4, seq_len=8, precision=precision)
    return [tiny.run(model=model, seed=m, optim=optim, train=budget) for m, optim in enumerate(OPTIMS)]


def trained(group: Group) -> list[Step]:
    """All steps; each group compiles anew, so that none is the one too many that torch would leave uncompiled."""
    torch._dynamo.reset()
    steps = list(train(group))
    assert group.is_stacked and group.stack._captured is not None
    return steps


def assert_near(found: list[float], expected: list[float], precision: str) -> None:
    assert len(found) == len(expected)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < NEAR[precision]


def assert_same_weights(one: Group, m: int, other: Group, n: int) -> None:
    pairs = zip(one.members[m].model.parameters(), other.members[n].model.parameters(), strict=True)
    assert all(((p - q).norm() <= 1e-2 * q.norm()).item() for p, q in pairs)


@by_precision
@pytest.mark.parametrize("gate", ["none", "sdpa-headwise", "sdpa-elementwise"])
def test_each_run_of_a_captured_stack_is_as_it_is_alone(precision: str, gate: str) -> None:
    runs = members(precision, gate)
    group = Group(runs, Execution(device="cuda"))
    steps = trained(group)
    assert len(steps) == STEPS
    for m, run in enumerate(runs):
        own = Group([run], Execution(device="cuda", compile="off"))
        alone = trained(own)
        assert_near([s.loss[m] for s in steps], [s.loss[0] for s in alone], precision)
        assert [s.lr[m] for s in steps] == [s.lr[0] for s in alone]
        if precision == "float32":
            assert [s.grad_norm[m] for s in steps] == pytest.approx([s.grad_norm[0] for s in alone], rel=1e-2)
            assert_same_weights(group, m, own, 0)


@by_precision
@pytest.mark.parametrize("by", ["its rate", "a weight"])
def test_one_that_diverges_in_the_graph_does_not_touch_its_neighbours(precision: str, by: str) -> None:
    calm = members(precision)
    with_calm = Group(calm, Execution(device="cuda"))
    expected = trained(with_calm)
    wild = calm[1]
    if by == "its rate":
        wild = wild.model_copy(update={"optim": OptimConfig(lr=1e30, clip=None, schedule="constant", warmup=0)})
    group = Group([calm[0], wild, calm[2]], Execution(device="cuda"))
    if by == "a weight":
        with torch.no_grad():
            next(group.members[1].model.parameters()).fill_(math.nan)
    steps = trained(group)
    (ended,) = [s.step for s in steps if s.diverged[1]]
    assert ended < len(steps) == len(expected) and (ended == 1) == (by == "a weight")
    assert [m.alive for m in group.members] == [True, False, True]
    assert all(math.isnan(s.loss[1]) for s in steps[ended:])
    for m in (0, 2):
        assert_near([s.loss[m] for s in steps], [s.loss[m] for s in expected], precision)
        if precision == "float32":
            assert_same_weights(group, m, with_calm, m)


@by_precision
@pytest.mark.parametrize("at", [1, 7])
@pytest.mark.parametrize("has_diverged", [False, True])
def test_a_captured_stack_goes_on_from_a_checkpoint(
    tmp_path: Path, precision: str, at: int, has_diverged: bool
) -> None:
    runs, path = members(precision), tmp_path / "state.safetensors"
    if has_diverged:
        wild = OptimConfig(lr=1e30, clip=None, schedule="constant", warmup=0)
        runs[1] = runs[1].model_copy(update={"optim": wild})
    whole = Group(runs, Execution(device="cuda"))
    expected = [asdict(step) for step in trained(whole)]
    assert any(step["diverged"][1] for step in expected) == has_diverged
    torch._dynamo.reset()
    half = Group(runs, Execution(device="cuda"))
    for step in train(half):
        if step.step == at:
            break
    assert half.stack._captured is not None
    write_tensors(path, *half.state())
    again = Group(runs, Execution(device="cuda"))
    again.restore(*read_tensors(path), path)
    found = [asdict(step) for step in trained(again)]
    for row, own in zip(found, expected[at:], strict=True):
        measured = [{name: r.pop(name) for name in ("loss", "grad_norm")} for r in (row, own)]
        assert row == own
        for m in (0, 2) if has_diverged else range(3):
            losses, norms = ([r[name][m] for r in measured] for name in ("loss", "grad_norm"))
            assert losses[0] == pytest.approx(losses[1], abs=NEAR[precision])
            if precision == "float32":
                assert norms[0] == pytest.approx(norms[1], rel=1e-2)
    assert [m.alive for m in again.members] == [True, not has_diverged, True]
    assert [len(m.losses) for m in again.members] == [STEPS] * 3
    if precision == "float32":
        for m in (0, 2):
            assert_same_weights(again, m, whole, m)
