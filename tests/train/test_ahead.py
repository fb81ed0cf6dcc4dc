"""Steps that are begun before the numbers of the last are read: the same steps, weights, rows and ends as without them."""

import math
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import kinds
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gatelab.config import Execution, OptimConfig, ProbeConfig, Run, canonical
from gatelab.config.run import fingerprint
from gatelab.record import Step
from gatelab.store import RunFolder
from gatelab.study.carry_out import carry_out
from gatelab.train import loop
from gatelab.train.group import Group, resolve
from gatelab.train.loop import train
from gatelab.train.stack import update

WILD = OptimConfig(lr=1e30, clip=None, schedule="constant", warmup=0)
IN_TURN = {"positions": "relative"}  # which is not stacked
WATCHED = ProbeConfig(times=1, sequences=2, eval_sequences=3, watch=2)


def runs_of(n: int, wild: tuple[int, ...] = (), model: dict[str, Any] | None = None, **changes: Any) -> list[Run]:
    optims = [WILD if i in wild else OptimConfig(lr=1e-2 / (1 + i)) for i in range(n)]
    config = tiny.model(gate="sdpa-headwise", max_seq_len=8, **(model or {}))
    return [tiny.run(model=config, seed=i, optim=o, steps=9, **changes) for i, o in enumerate(optims)]


CASES: dict[str, tuple[list[Run], Execution]] = {
    "alone": (runs_of(1), Execution()),
    "alone, diverging": (runs_of(1, (0,)), Execution()),
    "in turn, diverging": (runs_of(3, (1,), IN_TURN, probe=WATCHED), Execution(micro_batch=3)),
    "stack": (runs_of(3, probe=WATCHED), Execution()),
    "stack, diverging": (runs_of(3, (1,), probe=WATCHED), Execution(micro_batch=3)),
    "stack, all diverging": (runs_of(2, (0, 1)), Execution()),
    "experts": ([kinds.run("experts", seed=i, steps=5) for i in range(2)], Execution(micro_batch=3)),
    "clipped queries": ([kinds.run("encoder", steps=5, optim=OptimConfig(lr=1e-2, qk_clip=0.5))], Execution()),
    "clipped queries, diverging": ([tiny.run(steps=9, optim=WILD.model_copy(update={"qk_clip": 1.0}))], Execution()),
}
by_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(params=[1, 2, 5])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A CPU that begins so many steps ahead, as a GPU does."""
    monkeypatch.setitem(loop.AHEAD, "cpu", request.param)
    return request.param


def told(steps: list[Step]) -> str:
    return repr([asdict(step) for step in steps])


def state(group: Group) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in group.state()[0].items()}


def assert_same(group: Group, expected: Group) -> None:
    """Weights, moments, step counts and losses, to the bit; not-a-number where that is."""
    assert (group.step, [m.alive for m in group.members]) == (expected.step, [m.alive for m in expected.members])
    found, wanted = state(group), state(expected)
    assert found.keys() == wanted.keys()
    for name, t in found.items():
        assert torch.equal(t.nan_to_num(nan=7e7), wanted[name].nan_to_num(nan=7e7)), name


@by_case
def test_steps_and_all_that_is_kept_are_those_of_a_loop_that_waits(case: str, ahead: int) -> None:
    runs, execution = CASES[case]
    group, expected = Group(runs, execution), Group(runs, execution)
    steps, wanted = list(train(group, ())), list(train(expected))
    assert told(steps) == told(wanted)
    assert any(any(step.diverged) for step in wanted) == ("diverging" in case)
    assert group.ahead == 0
    assert_same(group, expected)


def test_a_diverged_run_of_many_stands_where_it_diverged_and_its_neighbours_go_on(ahead: int) -> None:
    for model in (None, IN_TURN):
        group, alone = Group(runs_of(3, (1,), model)), Group([runs_of(3, (1,), model)[1]])
        ended = [step.step for step in train(group, ()) if step.diverged[1]]
        assert ended == [len(list(train(alone)))] and ended[0] < group.step == 9
        for p, q in zip(group.members[1].model.parameters(), alone.members[0].model.parameters(), strict=True):
            assert torch.equal(p.isfinite(), q.isfinite())
        assert [m.alive for m in group.members] == [True, False, True]


def test_it_stands_at_the_steps_that_are_named_and_where_rest_is_asked_for(ahead: int) -> None:
    group, expected = Group(runs_of(2)), Group(runs_of(2))
    before = {step.step: state(expected) for step in train(expected)}
    stood = []
    for step in train(group, {3, 4}):
        if step.step in (3, 4):
            assert group.ahead == 0
        elif group.ahead:
            with pytest.raises(RuntimeError, match=f"after step {step.step} are under way"):
                group.state()
        if step.step >= 6 and group.rest():
            stood.append(step.step)
        if not group.ahead:
            found = state(group)
            assert all(torch.equal(found[name], t) for name, t in before[step.step].items())
    assert stood[0] <= 6 + ahead and stood[-1] == 9


def test_who_says_nothing_of_rests_gets_every_step_with_its_weights(ahead: int) -> None:
    group = Group(runs_of(1))
    for _ in train(group):
        assert group.ahead == 0 and group.rest()


def test_a_group_of_which_steps_are_under_way_is_not_trained_from_elsewhere(ahead: int) -> None:
    group = Group(runs_of(1))
    steps = train(group, ())
    next(steps)
    with pytest.raises(RuntimeError, match="under way"):
        next(train(group))
    with pytest.raises(RuntimeError, match="under way"), group.whole():
        pass


@pytest.mark.parametrize("model", [None, IN_TURN], ids=["stack", "in turn"])
@pytest.mark.parametrize("wild", [(), (1,), (0, 1)], ids=["calm", "diverging", "all diverging"])
def test_a_loop_that_is_left_early_leaves_a_group_that_stands(
    model: dict[str, Any] | None, wild: tuple[int, ...], ahead: int
) -> None:
    group, expected = Group(runs_of(2, wild, model)), Group(runs_of(2, wild, model))
    for _ in train(group, ()):
        group.rest()
        break
    assert group.ahead == 0 and group.step >= 1
    for step in train(expected):
        if step.step == group.step:
            break
    assert_same(group, expected)
    assert repr([m.losses for m in group.members]) == repr([m.losses for m in expected.members])
    assert told(list(train(group, ()))) == told(list(train(expected)))
    assert_same(group, expected)


def planned(at: Path, run: Run) -> RunFolder:
    """A run's folder, as a plan leaves it; a stream has no digest."""
    run = resolve(run)
    folder = RunFolder(at / "runs" / fingerprint(run, ""))
    folder.create(canonical(run))
    return folder


@pytest.mark.parametrize("wild", [(), (1,)], ids=["calm", "diverging"])
def test_rows_weights_and_ends_on_the_disk_are_to_the_byte_those_of_a_loop_that_waits(
    wild: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = runs_of(3, wild, probe=ProbeConfig(times=3, sequences=2, eval_sequences=3, watch=2))
    written = []
    for name, n, execution, stops in (
        ("waits", 0, Execution(), []),
        ("ahead", 1, Execution(), []),
        ("saves", 2, Execution(checkpoint_s=0), []),
        ("stopped", 2, Execution(), [False, True]),
    ):
        monkeypatch.setitem(loop.AHEAD, "cpu", n)
        folders = [planned(tmp_path / name, run) for run in runs]
        if stops:
            carry_out(folders, execution, should_stop=lambda stops=stops: stops.pop(0) if len(stops) > 1 else stops[0])
            assert folders[0].done() is None and (folders[0].path / "checkpoint.safetensors").exists()
        carry_out(folders, execution, should_stop=lambda: False)
        files = [(f.rows_path.read_bytes(), (f.path / "weights.safetensors").read_bytes()) for f in folders]
        written.append((files, [(f.done()["status"], f.done()["steps"]) for f in folders]))
    assert all(found == written[0] for found in written[1:])
    assert [status for status, _ in written[0][1]] == ["diverged" if i in wild else "done" for i in range(3)]


def test_the_host_reads_a_step_when_the_next_has_been_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of what is begun (+) and read (−), with the steps 3 and 6 looked at."""
    for n, expected in ((0, "+−+−+−+−+−+−+−+−+−"), (1, "++−+−−++−+−−++−+−−")):
        monkeypatch.setitem(loop.AHEAD, "cpu", n)
        order: list[str] = []
        log_calls(monkeypatch, loop._Together, "optimise", lambda order=order: order.append("+"))
        log_calls(monkeypatch, loop._Numbers, "read", lambda order=order: order.append("−"))
        list(train(Group(runs_of(2)), {3, 6}))
        monkeypatch.undo()
        assert "".join(order) == expected


class HostReads(TorchDispatchMode):
    """Operators that wait for a GPU, because the host needs a number of theirs."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal.default")
        is_masked = func is torch.ops.aten.index.Tensor and any(i.dtype == torch.bool for i in args[1] if i is not None)
        if is_masked or any(word in str(func) for word in waits):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@by_case
def test_nothing_within_a_step_is_read_by_the_host(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # On CPUs alone it looks at its targets first.
    loss = import_module("gatelab.ops.linear_cross_entropy")
    monkeypatch.setattr(loss, "_check_range", lambda *_: None)
    monkeypatch.setattr(loss, "_counted", lambda x_MND, targets_MN, _: (x_MND, targets_MN))
    runs, execution = CASES[case]
    group, reads = Group(runs, execution), HostReads()
    kind = loop._Together if group.is_stacked else loop._InTurn
    own = kind.optimise

    def optimise(self: Any, *args: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch, reads:
            for name in ("tolist", "item", "numpy", "cpu"):
                log_calls(patch, Tensor, name, lambda name=name: reads.found.append(name))
            return own(self, *args)

    monkeypatch.setattr(kind, "optimise", optimise)
    assert len(list(train(group))) > 1
    assert reads.found == []


def log_calls(patch: pytest.MonkeyPatch, kind: type, name: str, note: Callable[[], None]) -> None:
    own = getattr(kind, name)

    def called(self: Any, *args: Any, **named: Any) -> Any:
        note()
        return own(self, *args, **named)

    patch.setattr(kind, name, called)


def test_a_run_whose_loss_is_no_number_ends_on_the_device_with_that_step() -> None:
    weights, first, second = (torch.rand(2, 12) for _ in range(3))
    hyper, has_ended = torch.full((9, 2), 0.5), torch.zeros(2, dtype=torch.bool)
    losses = torch.tensor([math.inf, 1.0])
    update(weights, torch.ones(2, 12), first, second, torch.ones(12), hyper, losses, has_ended)
    assert has_ended.tolist() == [True, False]
    before = weights.clone()
    update(weights, torch.ones(2, 12), first, second, torch.ones(12), hyper, torch.ones(2), has_ended)
    assert torch.equal(weights[0], before[0]) and not torch.equal(weights[1], before[1])
    assert has_ended.tolist() == [True, False]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
@pytest.mark.parametrize("case", ["alone, diverging", "stack, diverging", "in turn, diverging", "experts"])
def test_on_a_gpu_the_step_after_is_under_way_and_nothing_else_differs(case: str) -> None:
    runs, execution = CASES[case]
    execution = execution.model_copy(update={"device": "cuda", "compile": "off"})
    group, expected = Group(runs, execution), Group(runs, execution)
    ahead, steps = [], []
    for step in train(group, ()):
        ahead.append(group.ahead)
        steps.append(step)
    wanted = list(train(expected))
    assert max(ahead) == 1 and ahead[-1] == 0 and len(steps) == len(wanted)
    for found, other in zip(steps, wanted, strict=True):
        assert found.diverged == other.diverged
        assert found.loss == pytest.approx(other.loss, rel=1e-2, abs=1e-2, nan_ok=True)
    assert [m.alive for m in group.members] == [m.alive for m in expected.members]
