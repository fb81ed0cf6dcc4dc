"""The benchmark of waiting trains what the trainer trains, and hands out the first batch again when it says so."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from gatelab.config import Execution
from gatelab.data import open_source
from gatelab.train import loop
from gatelab.train.group import Group

# Behind everything else: a benchmark may be called what a test's module is.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import waiting

TINY = {
    "alone": waiting.Case(("find", "mqar"), 64, width=16, n_layers=1),
    "stacked": waiting.Case(("find",), 64, width=16, n_layers=1, seeds=2, rates=2),
}


@pytest.mark.parametrize("name", TINY)
def test_anew_it_is_the_trainer_and_again_the_first_batch(name: str, monkeypatch: pytest.MonkeyPatch):
    runs, execution = TINY[name].runs(2), Execution(device="cpu", group=4)
    wanted = loop.train(Group(runs, execution))
    wanted = [next(wanted).loss for _ in range(3)]
    group, items, fetched = Group(runs, execution), waiting.Items(), []
    assert group.is_stacked == (name == "stacked")
    kind = "StackedBatch" if group.is_stacked else "DeviceBatch"
    own = getattr(loop, kind)
    monkeypatch.setattr(loop, kind, lambda batch, *of: fetched.append(batch.inputs_BT) or own(batch, *of))
    steps = loop.train(group)
    with items.feeding():
        assert [next(steps).loss for _ in range(3)] == wanted
        # The first step is behind two batches: its own and that of the next.
        assert len(items.ms) == len(fetched) == 4 and len({batch.tobytes() for batch in fetched}) == 4
        items.is_again = True
        next(steps), next(steps)
        assert len(items.ms) == 4 and all(batch is fetched[0] for batch in fetched[4:])
        items.is_again = False
        next(steps)
    next(steps)
    assert len(items.ms) == 5 and len({batch.tobytes() for batch in fetched[5:]}) == len(fetched) - 5 == 3


def test_the_longest_single_step_of_either_side_is_told_and_shown():
    given = Namespace(batch=2, steps=2, seconds=1, device="cpu")
    found = waiting.measure("find", TINY["alone"], given)
    for side in ("anew_step_ms", "again_step_ms"):
        assert 0 < found[side]["least"] <= found[side]["median"] <= found[side]["most"]
    assert f"{found['anew_step_ms']['most']:.3f} / {found['again_step_ms']['most']:.3f}" in waiting._shown(found)


def test_every_case_has_room_for_its_items():
    for case in waiting.CASES.values():
        (run, *others) = case.runs(len(case.names))
        assert len(others) + 1 == case.seeds * case.rates
        batch = open_source(run.data).train_batch(run.seed, 0, run.train.batch_size, case.seq_len)
        assert batch.inputs_BT.shape == (len(case.names), case.seq_len)
    streams = {n: len({(run.seed, run.data) for run in c.runs(1)}) for n, c in waiting.CASES.items() if "stack" in n}
    assert streams.pop("stack-mixture") == 25 and set(streams.values()) == {5}


def test_an_unknown_case_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["waiting.py", "--cases", "braket-128"])
    with pytest.raises(SystemExit, match="braket-128: no such case; did you mean 'bracket-128'"):
        waiting.main()
