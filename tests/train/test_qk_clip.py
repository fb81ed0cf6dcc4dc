"""QK-Clip: a planted head is found and clipped to the threshold, and every other weight keeps its bits."""

import kinds
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from gatelab.config import Execution, ModelConfig, OptimConfig, Run
from gatelab.data import objective_batch, open_source
from gatelab.models import build_model
from gatelab.nn.attention import GatedAttention
from gatelab.train import qk_clip
from gatelab.train.group import Group, resolve
from gatelab.train.loop import train
from gatelab.train.parallel import Ranks
from gatelab.train.qk_clip import clip_queries, largest_logits

TINY_RATE = 1e-12  # so that what a step changes is what the clip changes
GATES = "query-elementwise+key-headwise+sdpa-headwise"
SHAPE = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "init": "fan-in"}


def attentions(model: torch.nn.Module) -> list[GatedAttention]:
    return [m for m in model.modules() if isinstance(m, GatedAttention)]


def planted(model: torch.nn.Module, layer: int = 0, head: int = 2, factor: float = 50.0) -> None:
    attention = attentions(model)[layer]
    with torch.no_grad():
        for p in attention.q_proj.parameters():
            p.unflatten(0, (attention.n_heads, -1))[head] *= factor


def by_loops(q_BTHK: Tensor, k_BSGK: Tensor, sees: object) -> list[float]:
    """The largest q·k/√K of each head, one pair after the other, in float64."""
    q, k = q_BTHK.detach().double().numpy(), k_BSGK.detach().double().numpy()
    B, T, H, K = q.shape
    group = H // k.shape[2]
    return [
        max(
            q[b, t, h] @ k[b, s, h // group] / np.sqrt(K)
            for b in range(B)
            for t in range(T)
            for s in range(k.shape[1])
            if sees(b, t, s)
        )
        for h in range(H)
    ]


@pytest.mark.parametrize("cells", [1, 40, 2**26], ids=["a query at a time", "two at a time", "all at once"])
@pytest.mark.parametrize(
    ("options", "segments", "sees"),
    [
        ({}, None, lambda b, t, s: s <= t),
        ({"window": 3}, None, lambda b, t, s: t - 3 < s <= t),
        ({"arch": "encoder"}, None, lambda b, t, s: True),
        ({}, [[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]], "same document"),
    ],
    ids=["causal", "window", "both ways", "documents"],
)
def test_the_largest_logit_is_that_of_the_pairs_that_see_each_other(
    monkeypatch: pytest.MonkeyPatch, options: dict, segments: list | None, sees: object, cells: int
) -> None:
    monkeypatch.setattr(qk_clip, "_LOGITS", cells)
    model = build_model(ModelConfig(vocab_size=17, max_seq_len=8, gate=GATES, **SHAPE, **options))
    if segments is not None:
        sees = lambda b, t, s: s <= t and segments[b][t] == segments[b][s]  # noqa: E731
    seen: dict[int, list[Tensor]] = {}
    for i, attention in enumerate(attentions(model)):
        for tap in (attention.tap_q, attention.tap_k):
            tap.register_forward_hook(lambda _m, _i, output, i=i: seen.setdefault(i, []).append(output))
    with largest_logits(model) as found:
        model(torch.randint(0, 17, (2, 6)), segment_ids_BT=None if segments is None else torch.tensor(segments))
    assert list(found) == attentions(model)
    for i, largest_H in enumerate(found.values()):
        assert largest_H.tolist() == pytest.approx(by_loops(*seen[i], sees), rel=1e-5)
        assert len(set(largest_H.tolist())) == 4


def test_cross_attention_sees_the_whole_context_and_passes_are_joined_by_their_maximum() -> None:
    model = build_model(ModelConfig(arch="encoder-decoder", vocab_size=17, max_seq_len=8, **SHAPE))
    passes = [(torch.randint(0, 17, (1, 5)), torch.randint(0, 17, (1, 3))) for _ in range(2)]
    apart = []
    for tokens in passes:
        with largest_logits(model) as found:
            model(*tokens)
        apart.append(torch.stack(list(found.values())))
    with largest_logits(model) as found:
        for tokens in passes:
            model(*tokens)
    assert len(found) == 6  # two encoder layers, and two attentions of two decoder layers
    assert torch.equal(torch.stack(list(found.values())), torch.maximum(*apart))
    cross, seen = attentions(model)[3], []
    for tap in (cross.tap_q, cross.tap_k):
        tap.register_forward_hook(lambda _m, _i, output: seen.append(output))
    model(*passes[0])
    assert apart[0][3].tolist() == pytest.approx(by_loops(*seen, lambda b, t, s: True), rel=1e-5)


def test_watching_leaves_no_hook_and_changes_no_output() -> None:
    model, ids_BT = build_model(tiny.model()), torch.randint(0, 17, (2, 8))
    expected = model(ids_BT)
    with largest_logits(model):
        assert torch.equal(model(ids_BT), expected)
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="stop"), largest_logits(model):
        raise RuntimeError("stop")
    assert not any(m._forward_hooks for m in model.modules())


def first_batch(run: Run) -> tuple[Tensor, ...]:
    t = run.train
    batch = objective_batch(open_source(run.data), run.resolved_objective, run.seed, 0, t.batch_size, t.seq_len)
    given = (batch.inputs_BT, batch.decoder_inputs_BT)
    return tuple(torch.from_numpy(a) for a in given if a is not None)


@pytest.mark.parametrize("micro_batch", [0, 1, 3])
@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("experts", {"bias": True}),
        ("encoder", {}),
        ("encoder-decoder", {"cross_gate": "sdpa-headwise-bias"}),
        ("experts", {"positions": "relative"}),
    ],
)
def test_a_planted_head_is_clipped_to_the_threshold_and_nothing_else_moves(
    kind: str, model: dict[str, object], micro_batch: int
) -> None:
    run = resolve(kinds.run(kind, steps=1, model=model, optim=OptimConfig(lr=TINY_RATE, weight_decay=0.0, qk_clip=5.0)))
    group = Group([run], Execution(micro_batch=micro_batch))
    model = group.members[0].model
    planted(model)
    with torch.no_grad(), largest_logits(model) as before:
        model(*first_batch(run))
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    list(train(group))
    with torch.no_grad(), largest_logits(model) as after:
        model(*first_batch(run))
    first = attentions(model)[0]
    assert before[first][2] > 5.0 and (before[first][[0, 1, 3]] < 5.0).all()
    assert after[first][2].item() == pytest.approx(5.0, rel=1e-5)
    names = {id(p): n for n, p in model.named_parameters()}
    clipped = {names[id(p)] for p in first.q_proj.parameters()}
    assert len(clipped) == (2 if run.model.bias else 1)
    for name, p in model.named_parameters():
        moved = ~torch.isclose(p, weights[name], rtol=0, atol=1e-9)
        if name in clipped:
            moved_H = moved.unflatten(0, (4, 4)).flatten(1).any(dim=1)
            assert moved_H.tolist() == [False, False, True, False]
            factor = (5.0 / before[first][2]).item()
            torch.testing.assert_close(p.view(4, -1)[2], weights[name].view(4, -1)[2] * factor, rtol=1e-5, atol=1e-9)
        else:
            assert not moved.any(), name


def test_heads_below_the_threshold_keep_every_bit() -> None:
    model = build_model(ModelConfig(vocab_size=17, max_seq_len=8, bias=True, **SHAPE))
    planted(model, layer=1, head=0)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = {
        a: torch.tensor([9.0, -3.0, 4.0, 5.0]) if i else torch.full((4,), -2.0) for i, a in enumerate(attentions(model))
    }
    clip_queries(found, 5.0, Ranks())
    for name, p in model.named_parameters():
        rows = slice(4, None) if name.startswith("blocks.1.attention.q_proj") else slice(None)
        assert torch.equal(p[rows], weights[name][rows])
    torch.testing.assert_close(
        attentions(model)[1].q_proj.weight[:4], weights["blocks.1.attention.q_proj.weight"][:4] * 5 / 9
    )


def test_a_threshold_that_is_never_reached_trains_as_without_one_bit_for_bit() -> None:
    plain, clipped = (
        list(train(kinds.run("encoder-decoder", optim=OptimConfig(lr=1e-2, qk_clip=tau)))) for tau in (None, 1e4)
    )
    assert plain == clipped


def test_logits_stay_bounded_through_training() -> None:
    largest = {}
    for tau in (None, 0.5):
        group = Group([kinds.run("encoder", steps=40, optim=OptimConfig(lr=3e-2, qk_clip=tau))])
        list(train(group))
        with torch.no_grad(), largest_logits(group.members[0].model) as found:
            group.members[0].model(*first_batch(group.run))
        largest[tau] = torch.stack(list(found.values())).max().item()
    assert largest[0.5] < 1.0 < largest[None]


def test_compilation_is_refused_when_asked_for_and_left_out_when_not() -> None:
    run = tiny.run(optim=OptimConfig(qk_clip=100.0))
    with pytest.raises(
        ValueError, match="reads attention logits by hooks, which compiled code leaves out; set execution"
    ):
        Group([run], Execution(compile="on"))
    group = Group([run])
    group.device = torch.device("cuda")
    assert not group.is_compiled
    group.members[0].run = tiny.run()
    assert group.is_compiled
