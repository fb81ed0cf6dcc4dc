"""The first-token mass of every training step: run by run, free of consequences, in the rows of a study."""

import json
from pathlib import Path
from typing import Any

import kinds
import pytest
import tiny
import torch
from torch import Tensor
from watched import GROUPED, MODELS, assert_close, probed

from gatelab.config import Execution, OptimConfig, ProbeConfig, Run, Text, canonical
from gatelab.config.run import fingerprint
from gatelab.data import objective_batch, open_source
from gatelab.models import build_model
from gatelab.record import Step
from gatelab.store import RunFolder
from gatelab.study.carry_out import carry_out
from gatelab.train.group import Group, resolve
from gatelab.train.loop import train


def watched(run: Run, every: int = 1) -> Run:
    return run.model_copy(update={"probe": run.probe.model_copy(update={"watch": every, "skip_queries": 2})})


def runs_of(name: str, n: int) -> list[Run]:
    model = tiny.model(**GROUPED | {"max_seq_len": 8} | MODELS[name])
    return [watched(tiny.run(model=model, seed=i, optim=OptimConfig(lr=1e-2 * (1 + i)))) for i in range(n)]


def masses(steps: list[Step], m: int) -> Tensor:
    return torch.tensor([s.first_mass[m] for s in steps])


@pytest.mark.parametrize("name", ["gated", "sink logit", "registers"])
def test_each_run_of_a_stack_has_its_own(name: str) -> None:
    runs = runs_of(name, 3)
    group = Group(runs)
    steps = list(train(group))
    assert group.is_stacked and len(steps) == 6
    for m, run in enumerate(runs):
        assert_close(masses(steps, m), masses(list(train(run)), 0))


@pytest.mark.parametrize("n", [1, 2], ids=["alone", "stacked"])
@pytest.mark.parametrize("execution", [Execution(micro_batch=3), Execution(packed=True)], ids=["parts", "packed"])
def test_parts_of_a_batch_are_averaged_over_all_of_it(n: int, execution: Execution) -> None:
    runs = runs_of("gated", n)
    whole, parts = list(train(Group(runs))), list(train(Group(runs, execution)))
    for m in range(n):
        assert_close(masses(parts, m), masses(whole, m))


@pytest.mark.parametrize("kind", [None, "experts", "encoder-decoder", "continuation"])
def test_the_first_step_tells_what_the_probe_sees_in_its_batch(kind: str | None) -> None:
    run = watched(kinds.run(kind) if kind else tiny.run())
    (step, *_), run = list(train(Group([run], Execution(micro_batch=3)))), resolve(run)
    t = run.train
    batch = objective_batch(open_source(run.data), run.resolved_objective, run.seed, 0, t.batch_size, t.seq_len)
    arrays = [a for a in (batch.inputs_BT, batch.decoder_inputs_BT) if a is not None]
    expected = probed(build_model(run.model, seed=run.seed), *map(torch.from_numpy, arrays), skip=2)
    assert_close(masses([step], 0)[0], expected)


@pytest.mark.parametrize("n", [1, 2], ids=["alone", "stacked"])
def test_training_is_the_same_with_and_without(n: int) -> None:
    model = tiny.model(**GROUPED | {"max_seq_len": 8, "d_model": 32, "gate": "sdpa-headwise"})
    runs = [tiny.run(model=model, seed=i) for i in range(n)]
    found = []
    for some in (runs, [watched(run, 3) for run in runs]):
        group = Group(some)
        steps = list(train(group))
        found.append(([s.loss for s in steps], [p for m in group.members for p in m.model.parameters()], steps))
    (losses, weights, plain), (other_losses, other_weights, seen) = found
    assert losses == other_losses
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
    assert all(s.first_mass is None for s in plain)
    assert [s.step for s in seen if s.first_mass is not None] == [3, 6]


@pytest.mark.parametrize("is_stacked", [True, False])
def test_a_run_that_stopped_has_none(is_stacked: bool) -> None:
    model = tiny.model(max_seq_len=8) if is_stacked else tiny.model(max_seq_len=8, positions="relative")
    calm = tiny.run(model=model, steps=8)
    wild = calm.model_copy(update={"optim": OptimConfig(lr=1e30, clip=None, schedule="constant", warmup=0)})
    group = Group([watched(calm), watched(wild)])
    steps = list(train(group))
    assert group.is_stacked is is_stacked
    (ended,) = [s.step for s in steps if s.diverged[1]]
    assert all((s.first_mass[1] is None) == (s.step > ended) for s in steps)
    assert all(s.first_mass[0] is not None for s in steps) and ended < len(steps)


def test_runs_watched_differently_are_two_groups() -> None:
    with pytest.raises(ValueError, match=r"must share probe\.times, probe\.every and probe\.watch"):
        Group([tiny.run(), watched(tiny.run(seed=1))])
    changed = tiny.run(seed=1, probe=ProbeConfig(times=1, skip_queries=3))
    assert len(Group([tiny.run(), changed]).members) == 2  # nobody watches


def test_not_to_watch_renames_no_run() -> None:
    run = resolve(tiny.run())
    assert fingerprint(run, "") == fingerprint(watched(run, 0).model_copy(update={"probe": run.probe}), "")
    assert "watch" not in json.dumps(run.probe.model_dump(mode="json", exclude_defaults=True))
    assert fingerprint(run, "") != fingerprint(
        run.model_copy(update={"probe": run.probe.model_copy(update={"watch": 2})}), ""
    )


def folder(path: Path, run: Run) -> RunFolder:
    run = resolve(run)
    made = RunFolder(path / fingerprint(run, open_source(run.data).digest))
    made.create(canonical(run))
    return made


def told(run: RunFolder) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in run.rows_path.read_text().splitlines()]
    return [r for r in rows if r["metric"] == "first_token_mass" and r["source"] == "train"]


def test_a_study_run_writes_heads_and_layers_and_leaves_out_what_is_not_told(tmp_path: Path) -> None:
    model = tiny.model(**GROUPED | {"max_seq_len": 8, "n_layers": 3, "window": 4, "global_every": 3, "registers": 2})
    run = watched(tiny.run(model=model), 2)
    made = folder(tmp_path, run)
    carry_out([made], Execution(), should_stop=lambda: False)
    found, steps = told(made), list(train(run))
    assert [(r["step"], r["layer"], r.get("head")) for r in found] == [
        (step, 2, head) for step in (2, 4, 6) for head in (None, 0, 1, 2, 3)
    ]
    assert {(r["unit"], r["length"]) for r in found} == {("share", 10)}
    for step in (2, 4, 6):
        mean, *heads = [r["value"] for r in found if r["step"] == step]
        assert heads == pytest.approx(steps[step - 1].first_mass[0][2]) and mean == pytest.approx(sum(heads) / 4)


@pytest.mark.parametrize("n", [1, 2])
def test_a_resumed_run_writes_the_same_rows(tmp_path: Path, n: int) -> None:
    runs = [watched(tiny.run(seed=i), 2) for i in range(n)]
    whole, halved = ([folder(tmp_path / name, run) for run in runs] for name in ("whole", "halved"))
    carry_out(whole, Execution(), should_stop=lambda: False)
    calls = iter([False, False, True])
    carry_out(halved, Execution(), should_stop=lambda: next(calls))
    assert halved[0].done() is None
    carry_out(halved, Execution(), should_stop=lambda: False)
    for a, b in zip(whole, halved, strict=True):
        assert told(a) and a.rows_path.read_bytes() == b.rows_path.read_bytes()


def test_texts_with_documents_kept_apart_write_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words of a text that is long enough, " * 40)
    model = tiny.model(max_seq_len=8, vocab_size=None)
    made = folder(
        tmp_path, watched(tiny.run(model=model, data=Text(paths=str(tmp_path / "a.txt"), document_mask=True)))
    )
    carry_out([made], Execution(), should_stop=lambda: False)
    assert made.done()["status"] == "done" and told(made) == []


@pytest.mark.parametrize("n", [1, 2], ids=["alone", "stacked"])
def test_of_an_encoder_there_is_nothing_to_tell(n: int) -> None:
    steps = list(train(Group([watched(kinds.run("encoder", seed=i)) for i in range(n)])))
    assert [s.first_mass for s in steps] == [[[]] * n] * 6


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("name", ["gated", "sink logit", "registers"])
def test_a_captured_step_tells_what_a_cpu_does(name: str, compiled: str, precision: str) -> None:
    model = tiny.model(**GROUPED | {"max_seq_len": 8, "d_model": 64} | MODELS[name])
    runs = [watched(tiny.run(model=model, seed=i)) for i in range(3)]
    runs = [r.model_copy(update={"train": r.train.model_copy(update={"precision": precision})}) for r in runs]
    here, there = (
        list(train(Group(runs, Execution(device=device, compile=on))))
        for device, on in (("cpu", "off"), ("cuda", compiled))
    )
    # Later steps have weights that rounding has moved apart; compiled code rounds to bfloat16 less often (up to 0.006 on an H200).
    atol = 1e-2 if (compiled, precision) == ("on", "bfloat16") else 2e-3
    torch.testing.assert_close(torch.tensor(there[0].first_mass), torch.tensor(here[0].first_mass), rtol=0, atol=atol)
    assert torch.tensor([s.first_mass for s in there]).isfinite().all()
    assert there[-1].first_mass != there[0].first_mass
