"""A stack of runs: every run's losses, weights, looks and checkpoints are those that it has alone."""

import math
from pathlib import Path
from typing import Any

import kinds
import pytest
import tiny
import torch
from tiny import run as tiny_run

from gatelab.config import BigramBackcopy, Execution, OptimConfig, Run, Text
from gatelab.evals.heldout import look, measure
from gatelab.record import Step
from gatelab.train.group import Group
from gatelab.train.loop import train
from gatelab.train.stack import update, why_not

MODELS: dict[str, dict[str, Any]] = {
    "gated": {"gate": "sdpa-elementwise+value-headwise"},
    "constants and slices": {"gate": "sdpa-headwise-static+out-elementwise-rank=4+query-headwise-head_slice-mlp=4"},
    "layer norm, learned positions, biases": {"norm": "layer", "positions": "learned", "bias": True, "mlp": "gelu"},
    "registers, groups, normed keys": {"registers": 2, "n_heads": 4, "n_kv_heads": 2, "qk_norm": "rms"},
    "tied, gated norm, sandwich": {"tied_embeddings": True, "norm": "gated-rms", "norm_position": "sandwich"},
    "reordered norms, keys normed over all heads": {
        "norm_position": "reordered",
        "qk_norm": "rms-all-heads",
        "embedding_norm": "layer",
        "n_heads": 4,
        "n_kv_heads": 2,
    },
    "sink logit": {"softmax": {"kind": "sink-logit", "init": 0.5}},
    "learned key, groups": {"softmax": "key-bias", "positions": "learned", "n_heads": 4, "n_kv_heads": 2},
    "off by one, routed values": {"softmax": "off-by-one", "kv_experts": "v-4top2"},
    "forgetting": {"gate": "scores-headwise-forget-bias"},
    "experts": {"moe": kinds.EXPERTS, "d_ff": None},
    "experts with biases": {"moe": kinds.EXPERTS | {"bias": True, "router_bias": True}, "d_ff": None},
    "shared experts": {"moe": kinds.EXPERTS | {"n_shared": 1, "shared_weight": "sigmoid"}, "d_ff": None},
}
OPTIMS = (
    OptimConfig(lr=1e-2, clip=0.5),
    OptimConfig(lr=3e-3, betas=(0.8, 0.99), weight_decay=0.3, clip=None, schedule="constant"),
    OptimConfig(lr=5e-3, eps=1e-4, schedule="wsd", warmup=0.3),
)


def trained(runs: list[Run], execution: Execution | None = None) -> tuple[list[Step], Group]:
    group = Group(runs, execution)
    return list(train(group)), group


def members(fields: dict[str, Any], n: int = 3, **changes: Any) -> list[Run]:
    model = tiny.model(**({"max_seq_len": 8, "init_std": 0.3} | fields))
    return [tiny_run(model=model, seed=i, optim=OPTIMS[i % 3], **changes) for i in range(n)]


def assert_each_is_as_alone(runs: list[Run], execution: Execution | None = None) -> None:
    steps, group = trained(runs, execution)
    assert group.is_stacked
    for m, run in enumerate(runs):
        alone, own = trained([run], execution)
        assert [s.loss[m] for s in steps] == pytest.approx([s.loss[0] for s in alone], rel=1e-4)
        assert [s.grad_norm[m] for s in steps] == pytest.approx([s.grad_norm[0] for s in alone], rel=1e-3)
        assert [s.lr[m] for s in steps] == [s.lr[0] for s in alone]
        expected = dict(own.members[0].model.named_parameters())
        for name, p in group.members[m].model.named_parameters():
            if name.endswith("k_proj.bias"):
                continue  # a softmax does not see it: its gradient is rounding, which Adam makes large
            torch.testing.assert_close(p, expected[name], rtol=1e-2, atol=2e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_each_run_of_a_stack_is_as_it_is_alone(name: str) -> None:
    assert_each_is_as_alone(members(MODELS[name]))


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder", "continuation", "encoder-decoder-experts"])
def test_other_architectures_and_objectives_too(kind: str) -> None:
    assert_each_is_as_alone([kinds.run(kind, seed=i, optim=OPTIMS[i]) for i in range(2)])


def test_packed_projections_and_parts_of_a_batch_change_nothing() -> None:
    runs = members({"gate": "sdpa-elementwise-bias", "bias": True})
    assert_each_is_as_alone(runs, Execution(packed=True))
    assert_each_is_as_alone(runs, Execution(micro_batch=3))


def test_experts_of_a_stack_are_chosen_over_the_whole_batch() -> None:
    assert_each_is_as_alone(members(MODELS["experts"]), Execution(micro_batch=3))


def test_runs_may_read_different_texts_with_documents_kept_apart(tmp_path: Path) -> None:
    runs = []
    for i, model in enumerate([tiny.model(max_seq_len=8, vocab_size=None)] * 2):
        path = tmp_path / f"{i}.txt"
        path.write_text("some words of a text that is long enough, " * (40 + i))
        runs.append(tiny_run(model=model, seed=i, data=Text(paths=str(path), document_mask=True)))
    assert_each_is_as_alone(runs)


def mixed() -> list[Run]:
    """One shape: with and without BOS, of two rates, and seeds that come again."""
    model = tiny.model(gate="sdpa-headwise", max_seq_len=8)
    return [
        tiny_run(model=model, seed=seed, optim=OPTIMS[seed], data=BigramBackcopy(vocab_size=16, bos=bos))
        for seed, bos in ((0, True), (1, True), (0, False), (1, False))
    ]


def test_runs_of_cells_that_differ_in_their_stream_and_rate_are_as_alone() -> None:
    assert_each_is_as_alone(mixed())


def test_a_look_at_runs_of_several_streams_gives_each_its_own() -> None:
    _, group = trained(mixed())
    for member, rows in zip(group.members, look(group, list("abcd")), strict=True):
        expected = measure(member.model, member.source, member.run, fingerprint=rows[0].run, step=group.step)
        assert [_name(r) for r in rows] == [_name(r) for r in expected]
        assert [r.value for r in rows] == pytest.approx([r.value for r in expected], rel=1e-4, abs=1e-6)


def test_runs_of_which_some_keep_documents_apart_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some words of a text that is long enough, " * 40)
    model = tiny.model(max_seq_len=8, vocab_size=None)
    runs = [tiny_run(model=model, seed=i, steps=2, data=Text(paths=str(path), document_mask=bool(i))) for i in range(2)]
    steps, group = trained(runs)
    assert "documents" in why_not(group)
    assert [s.loss[1] for s in steps] == [s.loss[0] for s in trained([runs[1]])[0]]


@pytest.mark.parametrize("name", ["gated", "experts with biases"])
def test_one_that_diverges_does_not_touch_its_neighbours(name: str) -> None:
    calm = members(MODELS[name])
    wild = calm[1].model_copy(update={"optim": OptimConfig(lr=1e30, clip=None, schedule="constant", warmup=0)})
    steps, group = trained([calm[0], wild, calm[2]])
    expected, other = trained(calm)
    (ended,) = [s.step for s in steps if s.diverged[1]]
    assert 1 < ended < len(steps) == len(expected)
    assert [m.alive for m in group.members] == [True, False, True]
    assert all(math.isnan(s.loss[1]) for s in steps[ended:])
    for m in (0, 2):
        assert [s.loss[m] for s in steps] == [s.loss[m] for s in expected]
        for p, q in zip(group.members[m].model.parameters(), other.members[m].model.parameters(), strict=True):
            assert torch.equal(p, q)


def test_a_run_that_is_not_alive_keeps_every_bit() -> None:
    weights, first, second = (torch.rand(2, 12) for _ in range(3))
    before = [t.clone() for t in (weights, first, second)]
    hyper = torch.ones(9, 2)
    hyper[-1] = torch.tensor([0.0, 1.0])
    update(
        weights, torch.full_like(weights, torch.nan), first, second, torch.ones(12), hyper,
        torch.ones(2), torch.zeros(2, dtype=torch.bool),
    )  # fmt: skip
    for old, new in zip(before, (weights, first, second), strict=True):
        assert torch.equal(old[0], new[0]) and new[1].isnan().all()


def test_the_place_in_the_stack_does_not_matter() -> None:
    runs = members({"gate": "sdpa-headwise"})
    there, back = trained(runs)[0], trained(runs[::-1])[0]
    for a, b in zip(there, back, strict=True):
        assert a.loss == pytest.approx(b.loss[::-1], rel=1e-6)


def test_a_stack_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    runs = members({"gate": "sdpa-headwise"})
    whole, group = trained(runs)
    half = Group(runs)
    for step in train(half):
        if step.step == 3:
            break
    tensors, state = half.state()
    tensors = {name: t.clone() for name, t in tensors.items()}
    again = Group(runs)
    again.restore(tensors, state, tmp_path / "x")
    assert [s.loss for s in train(again)] == [s.loss for s in whole[3:]]
    for m, n in zip(again.members, group.members, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(m.model.parameters(), n.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["gated", "experts"])
def test_a_run_saved_in_a_stack_goes_on_alone(name: str, tmp_path: Path) -> None:
    runs, execution = members(MODELS[name]), Execution(micro_batch=3)
    whole, _ = trained(runs, execution)
    half = Group(runs, execution)
    for step in train(half):
        if step.step == 3:
            break
    tensors, state = half.state()
    own = {"0" + name[1:]: t.clone() for name, t in tensors.items() if name.startswith("1.")}
    alone = Group([runs[1]], execution)
    alone.restore(own, {"step": state["step"], "alive": [True]}, tmp_path / "x")
    assert [s.loss[0] for s in train(alone)] == pytest.approx([s.loss[1] for s in whole[3:]], rel=1e-4)


@pytest.mark.parametrize(
    "name",
    ["constants and slices", "registers, groups, normed keys", "sink logit", "learned key, groups", "experts"],
)
def test_a_look_at_a_stack_gives_each_run_its_rows(name: str) -> None:
    _, group = trained(members(MODELS[name], n=2))
    together = look(group, ["a", "b"])
    for member, fingerprint, rows in zip(group.members, "ab", together, strict=True):
        expected = measure(member.model, member.source, member.run, fingerprint=fingerprint, step=group.step)
        assert [_name(r) for r in rows] == [_name(r) for r in expected]
        assert [r.value for r in rows] == pytest.approx([r.value for r in expected], rel=1e-4, abs=1e-6)
    assert [r.value for r in together[0]] != [r.value for r in together[1]]


def _name(row: Any) -> dict[str, Any]:
    return {k: v for k, v in row.as_dict().items() if k != "value"}


@pytest.mark.parametrize(
    ("fields", "optim", "why"),
    [
        ({"positions": "relative"}, OptimConfig(), "relative"),
        ({"softmax": "differential"}, OptimConfig(), "differential"),
        ({}, OptimConfig(qk_clip=100.0), "qk_clip"),
    ],
)
def test_what_cannot_be_stacked_is_trained_in_turn(fields: dict[str, Any], optim: OptimConfig, why: str) -> None:
    model = tiny.model(**({"max_seq_len": 8} | fields))
    runs = [tiny_run(model=model, seed=i, steps=2, optim=optim) for i in range(2)]
    steps, group = trained(runs)
    assert why in why_not(group) and not group.is_stacked and not group.facts()["stacked"]
    assert [s.loss[1] for s in steps] == [s.loss[0] for s in trained([runs[1]])[0]]
