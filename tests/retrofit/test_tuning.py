"""Training on: two rates, one order, a divergence and a penalty that are what they are called; gates that move are seen to."""

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F
from planted import texts

from gatelab.config import GateSpec, validate
from gatelab.config.retrofit import Retrofit
from gatelab.models import build_model
from gatelab.models.model import Model
from gatelab.retrofit.measures import Movement, changes, measure
from gatelab.retrofit.starts import as_identity
from gatelab.retrofit.tuning import divergence_of, gate_parameters, optimizer_of, tune
from gatelab.train.schedule import learning_rate


def config(**changes: object) -> Retrofit:
    given = {"gate": "sdpa-headwise", "train": {"tokens": 4 * 2 * 8, "batch_size": 2, "seq_len": 8}}
    return validate(Retrofit, given | changes)


def plain(seed: int = 5, **changes: object) -> Model:
    return build_model(tiny.model(vocab_size=23, init_std=0.3, **changes), seed=seed).eval()


def retrofitted() -> Model:
    return as_identity(plain(), GateSpec.parse("sdpa-headwise"), seed=0)


def test_every_parameter_has_one_group_and_the_gates_their_own():
    model = retrofitted()
    optimizer = optimizer_of(model, config(gate_optim={"lr": 0.5, "weight_decay": 0.25, "betas": (0.5, 0.75)}))
    grouped = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    gates = [g for g in optimizer.param_groups if g["is_gate"]]
    assert {id(p) for g in gates for p in g["params"]} == {id(p) for p in gate_parameters(model).values()}
    assert [(g["weight_decay"], g["betas"]) for g in gates] == [(0.25, (0.5, 0.75))]
    assert len(gate_parameters(model)) == 2


@pytest.mark.parametrize(("still", "moving"), [("optim", "gate_optim"), ("gate_optim", "optim")])
def test_each_rate_moves_its_own_weights_alone(still: str, moving: str):
    model, ids = retrofitted(), texts(8, 9)
    before = copy.deepcopy(model.state_dict())
    for _ in tune(model, ids, config(**{still: {"lr": 1e-30}, moving: {"lr": 1e-2, "weight_decay": 0.0}})):
        pass
    moved = {name for name, p in model.named_parameters() if (p - before[name]).abs().max() > 1e-6}
    gates = set(gate_parameters(model))
    assert moved == (gates if moving == "gate_optim" else {n for n, _ in model.named_parameters()} - gates)


def test_it_is_adamw_by_hand_at_each_schedule():
    """Against torch's own optimiser over the same batches, the gates with another rate and schedule."""
    c = config(optim={"lr": 1e-2, "weight_decay": 0.0}, gate_optim={"lr": 3e-2, "weight_decay": 0.0, "schedule": "wsd"})
    model, by_hand, ids = retrofitted(), retrofitted(), texts(8, 9)
    losses = [float(step.loss) for step in tune(model, ids, c)]
    gates = {id(p) for p in gate_parameters(by_hand).values()}
    split = [[p for p in by_hand.parameters() if (id(p) in gates) is is_gate] for is_gate in (False, True)]
    optimizer = torch.optim.AdamW([{"params": p, "weight_decay": 0.0} for p in split], betas=(0.9, 0.95))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for step in range(4):
        rows = ids[order[2 * step : 2 * step + 2]]
        loss = F.cross_entropy(by_hand(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        assert float(loss.detach()) == pytest.approx(losses[step], rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        for group, optim in zip(optimizer.param_groups, (c.optim, c.gate_optim), strict=True):
            group["lr"] = learning_rate(optim, step, 4)
        optimizer.step()
    for (name, p), q in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)


def test_a_control_reads_the_same_tokens_in_the_same_order():
    """At a rate of nothing the losses are those of the ungated model, step by step; another seed has another order."""
    still = {"optim": {"lr": 1e-30}, "gate_optim": {"lr": 1e-30}}
    ids = texts(5, 9)  # fewer than are read: a second round

    def losses(model: Model, seed: int = 0) -> list[float]:
        return [float(step.cross_entropy) for step in tune(model, ids, config(**still, seed=seed))]

    assert losses(retrofitted()) == pytest.approx(losses(plain()), rel=1e-6)
    assert losses(plain(), seed=1) != pytest.approx(losses(plain()), rel=1e-3)


def test_the_divergence_is_kl(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    x, w, y, v = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (7, 11, 7, 11))
    x.requires_grad_(), w.requires_grad_()
    monkeypatch.setattr("gatelab.retrofit.tuning._LOGITS", 3 * 11)  # in pieces of three positions
    p, q = (y @ v.T).softmax(dim=-1), (x @ w.T).softmax(dim=-1)
    by_hand = (p * (p.log() - q.log())).sum()
    found = divergence_of(x, w, y, v)
    assert float(found.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    for a, b in zip(torch.autograd.grad(found, (x, w)), torch.autograd.grad(by_hand, (x, w)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_distillation_alone_of_the_model_itself_moves_nothing():
    model, teacher, ids = retrofitted(), plain(), texts(8, 9)
    before = copy.deepcopy(model.state_dict())
    # So that what is nothing but rounding is not scaled up to a step.
    calm = {"lr": 1e-2, "weight_decay": 0.0, "eps": 1.0}
    c = config(distil=1.0, optim=calm, gate_optim=calm)
    steps = list(tune(model, ids, c, teacher=teacher))
    assert all(float(s.divergence) == pytest.approx(0, abs=1e-6) and s.cross_entropy is None for s in steps)
    assert max(float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()) < 1e-4


def test_the_loss_is_its_parts():
    c = config(distil=0.25, penalty=0.5)
    first = next(tune(retrofitted(), texts(8, 9), c, teacher=plain(seed=6)))
    assert float(first.divergence) > 0.01 and float(first.residual_square) > 0.01
    parts = 0.75 * first.cross_entropy + 0.25 * first.divergence + 0.5 * first.residual_square
    assert float(first.loss) == pytest.approx(float(parts), rel=1e-5)


def test_the_penalty_is_the_mean_square_after_each_block():
    model, ids = plain(), texts(2, 9)
    seen = []
    handles = [b.register_forward_hook(lambda _m, _i, out: seen.append(out.square().mean())) for b in model.blocks]
    model(ids[:, :-1])
    for handle in handles:
        handle.remove()
    first = next(tune(model, ids, config(penalty=1e-30)))
    assert float(first.residual_square) == pytest.approx(float(torch.stack(seen).mean().detach()), rel=1e-5)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="no text to train on"):
        next(tune(plain(), texts(0, 9), config()))
    with pytest.raises(ValueError, match="as its teacher"):
        next(tune(plain(), texts(4, 9), config(distil=0.5)))


def test_movement_is_the_distance_from_the_start():
    model, ids = retrofitted(), texts(4, 8)
    movement = Movement(model, ids)
    still = {r.metric: r.value for r in movement.rows(model, "it", 0) if r.layer is None and r.threshold is None}
    assert still["gate_shift"] == 0 and still["gate_mean"] == pytest.approx(0.5) and "gate_shift_relative" not in still
    with torch.no_grad():
        model.blocks[1].attention.gates["sdpa"].g_proj.weight[0, :4] = 3.0
    rows = movement.rows(model, "it", 7)
    shift = {r.layer: r.value for r in rows if r.metric == "gate_shift"}
    assert shift == {0: 0.0, 1: pytest.approx(6.0), None: pytest.approx(3.0)}
    again = Movement(model, ids)
    with torch.no_grad():
        model.blocks[1].attention.gates["sdpa"].g_proj.weight *= 1.5
    relative = {r.layer: r.value for r in again.rows(model, "it", 8) if r.metric == "gate_shift_relative"}
    assert relative == {1: pytest.approx(0.5), None: pytest.approx(0.5)}


def test_losses_are_those_of_each_sequence():
    model, ids = plain(), texts(5, 9)
    found = measure(model, "it", {"real": ids}, 0)
    with torch.no_grad():
        logits = model(ids[:, :-1]).double()
    by_hand = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(dim=1)
    assert found.losses["real"] == pytest.approx(by_hand.tolist(), rel=1e-5)
    assert found.loss("real") == pytest.approx(float(by_hand.mean()), rel=1e-5)
    assert found.value("real", "first_token_mass") is not None and found.value("self", "first_token_mass") is None
    assert found.value("real", "gate_mean") is None and found.largest("real") > 0


def test_changes_are_paired():
    ids = texts(6, 9)
    one, other = (measure(plain(seed=s), str(s), {"real": ids}, 0, probed=False) for s in (5, 6))
    rows = {r.metric: r for r in changes([other], one)}
    paired = [b - a for a, b in zip(one.losses["real"], other.losses["real"], strict=True)]
    assert rows["loss_change"].value == pytest.approx(sum(paired) / 6)
    assert rows["loss_change_low"].value <= rows["loss_change"].value <= rows["loss_change_high"].value
    assert rows["loss_change"].intervention == "beside 5" and rows["loss_change"].run == "6"
