"""Every architecture trains on what its objective makes: losses by plain arithmetic, whatever the micro-batches."""

import kinds
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from gatelab.config import Execution, MaskedTokens, Run, SpanCorruption
from gatelab.data import IGNORED, objective_batch, open_source
from gatelab.models import build_model
from gatelab.nn.moe import Routing
from gatelab.train.checkpoint import read_tensors, write_tensors
from gatelab.train.group import Group, resolve
from gatelab.train.loop import train
from gatelab.train.objectives import choices, router_loss, target_loss
from gatelab.train.parallel import Ranks

by_kind = pytest.mark.parametrize("kind", kinds.KINDS)


def arrays(run: Run) -> tuple[Tensor | None, ...]:
    """Inputs, targets, segment ids and a decoder's inputs of the first step."""
    t = run.train
    batch = objective_batch(open_source(run.data), run.resolved_objective, run.seed, 0, t.batch_size, t.seq_len)
    parts = (batch.inputs_BT, batch.targets_BT, batch.segment_ids_BT, batch.decoder_inputs_BT)
    return tuple(None if a is None else torch.from_numpy(a) for a in parts)


def by_hand(logits_BTV: Tensor, targets_BT: Tensor) -> float:
    """The cross-entropy of the targets that count, one after the other, in float64."""
    logits, total = logits_BTV.detach().double().numpy(), 0.0
    for b, t in np.argwhere(targets_BT.numpy() != IGNORED):
        row = logits[b, t]
        total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[targets_BT[b, t]]
    return total


@by_kind
def test_the_loss_is_that_of_the_targets_that_count(kind: str) -> None:
    run = resolve(kinds.run(kind))
    model, (inputs_BT, targets_BT, _, decoder_BT) = build_model(run.model), arrays(run)
    logits_BTV = model(inputs_BT) if decoder_BT is None else model(inputs_BT, decoder_BT)
    found = target_loss(model, inputs_BT, targets_BT, None, decoder_BT)
    assert found.item() == pytest.approx(by_hand(logits_BTV, targets_BT), rel=1e-6)
    assert (decoder_BT is None) == (run.model.arch in ("decoder", "encoder"))


@by_kind
def test_the_step_reports_the_mean_cross_entropy_alone(kind: str) -> None:
    run = kinds.run(kind, steps=1)
    (step,) = train(run)
    run = resolve(run)
    inputs_BT, targets_BT, _, decoder_BT = arrays(run)
    total = target_loss(build_model(run.model), inputs_BT, targets_BT, None, decoder_BT)
    assert step.loss[0] == pytest.approx(total.item() / (targets_BT != IGNORED).sum().item(), rel=1e-6)


@by_kind
def test_training_learns_on_the_stream(kind: str) -> None:
    losses = [step.loss[0] for step in train(kinds.run(kind, steps=120))]
    assert sum(losses[-20:]) / 20 < sum(losses[:5]) / 5 - 0.2


@by_kind
def test_a_resumed_run_continues_bit_for_bit(tmp_path, kind: str) -> None:
    run = kinds.run(kind, steps=4)
    whole = Group([run])
    steps = list(train(whole))
    stopped, path = Group([run]), tmp_path / "c.safetensors"
    for step in train(stopped):
        if step.step == 2:
            write_tensors(path, *stopped.state())
            break
    resumed = Group([run])
    resumed.restore(*read_tensors(path), path)
    assert list(train(resumed)) == steps[2:]
    expected = whole.state()[0]
    assert all(torch.equal(t, expected[n]) for n, t in resumed.state()[0].items())


def in_float64(run: Run, micro_batch: int) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses, gradient norms and the last gradients of a group whose weights were made float64."""
    group = Group([run], Execution(micro_batch=micro_batch))
    model = group.members[0].model.double()
    model.compute_dtype = torch.float64
    steps = list(train(group))
    gradients = {n: p.grad for n, p in model.named_parameters()}
    return [s.loss[0] for s in steps], [s.grad_norm[0] for s in steps], gradients


@by_kind
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_give_the_loss_and_the_gradients_of_the_whole_batch(kind: str, micro_batch: int) -> None:
    run = kinds.run(kind, steps=3)
    losses, norms, gradients = in_float64(run, 0)
    parts = in_float64(run, micro_batch)
    # The sum of the losses is a float32.
    assert parts[0] == pytest.approx(losses, rel=1e-6) and parts[1] == pytest.approx(norms, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(parts[2][name], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["experts", "encoder-decoder-experts"])
@pytest.mark.parametrize("micro_batch", [0, 1])
def test_the_gradient_is_that_of_cross_entropy_and_the_routers_losses(kind: str, micro_batch: int) -> None:
    run = resolve(kinds.run(kind, steps=1))
    moe, model = run.model.moe, build_model(run.model)
    inputs_BT, targets_BT, _, decoder_BT = arrays(run)
    routed: list[Routing] = []
    loss = target_loss(model, inputs_BT, targets_BT, None, decoder_BT, routed) / targets_BT.numel()
    for r in routed:
        share_X, mean_X = r.counts_X / r.counts_X.sum(), r.probability_X / r.n_tokens
        extra = moe.balance * moe.n_experts * (share_X * mean_X).sum() + moe.z * r.z / r.n_tokens
        loss = loss + extra / len(routed)
    loss.backward()
    group = Group(
        [run.model_copy(update={"optim": run.optim.model_copy(update={"clip": None})})],
        Execution(micro_batch=micro_batch),
    )
    list(train(group))
    for (name, p), q in zip(group.members[0].model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert len({r.n_tokens for r in routed}) == (1 if kind == "experts" else 2)


def test_choices_are_summed_over_passes_and_told_a_layer() -> None:
    passes = [
        [Routing(torch.tensor([1.0, 3.0]), torch.zeros(2), torch.zeros(()), n) for n in (2, 5)],
        [Routing(torch.tensor([0.0, 4.0]), torch.zeros(2), torch.zeros(()), n) for n in (2, 4)],
    ]
    chosen = choices(passes, Ranks())
    assert chosen.counts_LX.tolist() == [[1.0, 7.0], [1.0, 7.0]] and chosen.n_tokens_L == (4, 9)


def test_without_coefficients_the_router_adds_nothing() -> None:
    run = resolve(kinds.run("experts"))
    routed: list[Routing] = []
    inputs_BT, targets_BT, _, _ = arrays(run)
    target_loss(build_model(run.model), inputs_BT, targets_BT, routed=routed)
    silent = run.model.moe.model_copy(update={"balance": 0.0, "z": 0.0})
    assert router_loss(routed, silent, choices([routed], Ranks())).item() == 0.0
    assert router_loss(routed, run.model.moe, choices([routed], Ranks())).item() > 0.3


def test_a_group_of_two_encoders_trains_each_as_it_would_alone() -> None:
    run = kinds.run("encoder")
    runs = [run, run.model_copy(update={"seed": 1})]
    together = list(train(Group(runs)))
    for i, one in enumerate(runs):
        assert [s.loss[i] for s in together] == pytest.approx([s.loss[0] for s in train(one)], rel=1e-5)


def test_runs_of_two_objectives_make_no_group() -> None:
    runs = [kinds.run("encoder"), kinds.run("encoder", objective=MaskedTokens(share=0.2))]
    with pytest.raises(ValueError, match="must share model, objective and train; these differ"):
        Group(runs)


def test_a_model_without_room_for_the_objectives_ids_is_refused() -> None:
    model = tiny.model(arch="encoder-decoder", max_seq_len=9)
    with pytest.raises(ValueError, match=r"17 ids and the 3 that 'span-corruption' adds at train.seq_len=8"):
        Group([tiny.run(model=model, objective=SpanCorruption(share=0.9, mean_span=2.0))])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_a_compiled_run_of_experts_equals_an_eager_one(micro_batch: int) -> None:
    run = kinds.run("encoder-decoder-experts", steps=3)
    eager = list(train(Group([run], Execution(micro_batch=micro_batch))))
    compiled = list(train(Group([run], Execution(micro_batch=micro_batch, compile="on"))))
    assert [s.loss[0] for s in compiled] == pytest.approx([s.loss[0] for s in eager], rel=1e-4)
    assert [s.grad_norm[0] for s in compiled] == pytest.approx([s.grad_norm[0] for s in eager], rel=1e-3)
