"""Training equals a plain loop written out, whatever the micro-batches, the group or the type."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import tiny
import torch
import torch.nn.functional as F

from gatelab.config import Execution, OptimConfig, Run
from gatelab.config.run import Attention
from gatelab.data import IGNORED, Batch, open_source
from gatelab.models import build_model
from gatelab.ops.gated_attention import IMPLEMENTATIONS, OPERATORS
from gatelab.record import Step
from gatelab.train.group import Group, pick_dtype, resolve
from gatelab.train.loop import train
from gatelab.train.optim import build_optimizer
from gatelab.train.schedule import learning_rate


def weights(group: Group, member: int = 0) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in group.members[member].model.named_parameters()}


def trained(runs: list[Run], execution: Execution | None = None) -> tuple[list[Step], Group]:
    group = Group(runs, execution)
    return list(train(group)), group


def test_training_equals_a_plain_loop_with_plain_adamw() -> None:
    run = tiny.run(steps=5, optim=OptimConfig(lr=1e-2, clip=0.5, weight_decay=0.3, warmup=0.4))
    model, source = build_model(run.model, seed=run.seed), open_source(run.data)
    decayed = [p for n, p in model.named_parameters() if n.endswith(("_proj.weight", "head.weight")) or ".mlp.w" in n]
    rest = [p for p in model.parameters() if not any(p is q for q in decayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}],
        betas=run.optim.betas,
        eps=run.optim.eps,
        foreach=False,
        fused=False,
    )
    steps, group = trained([run])
    for i, step in enumerate(steps):
        batch = source.train_batch(run.seed, i, 4, 8)
        logits_BTV = model(torch.from_numpy(batch.inputs_BT))
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), torch.from_numpy(batch.targets_BT).flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
        for parameter in model.parameters():
            parameter.grad *= min(1.0, 0.5 / (norm.item() + 1e-6))
        for parameters in optimizer.param_groups:
            parameters["lr"] = learning_rate(run.optim, i, 5)
        optimizer.step()
        assert step.loss[0] == pytest.approx(loss.item(), rel=1e-5)
        assert step.grad_norm[0] == pytest.approx(norm.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights(group)[name], parameter.detach(), rtol=1e-3, atol=1e-5)


def test_steps_count_from_one_and_tell_the_rates_and_tokens() -> None:
    steps, _ = trained([tiny.run(steps=3)])
    assert [s.step for s in steps] == [1, 2, 3] and [s.tokens for s in steps] == [32, 64, 96]
    assert [s.lr[0] for s in steps] == [learning_rate(tiny.run().optim, i, 3) for i in range(3)]


def test_training_learns() -> None:
    steps, _ = trained([tiny.run(steps=150)])
    assert sum(s.loss[0] for s in steps[-10:]) / 10 < sum(s.loss[0] for s in steps[:10]) / 10 - 0.4


def test_matrices_decay_and_everything_else_does_not() -> None:
    kinds = {"positions": "learned", "norm": "layer", "bias": True, "softmax": "sink-logit", "qk_norm": "rms"}
    model = build_model(tiny.model(gate="sdpa-headwise-bias+value-elementwise-static", **kinds))
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, rest = build_optimizer(model, OptimConfig(weight_decay=0.25)).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.25, 0.0)
    found = {names[id(p)] for p in decayed["params"]}
    assert len(found) + len(rest["params"]) == len(names)
    assert found == {
        n for n in names.values() if n.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight"))
    } | {"head.weight"}


def test_experts_and_heads_own_maps_decay_and_registers_tables_and_sinks_do_not() -> None:
    kinds = {
        "positions": "relative",
        "softmax": "key-bias",
        "registers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": None,
    }
    experts = {"n_experts": 3, "top_k": 1, "d_expert": 8, "n_shared": 1}
    gate = "sdpa-headwise-head_slice-mlp=2-bias+key-headwise-static"
    config = tiny.model(arch="encoder-decoder", gate=gate, moe=experts, norm="gated-rms", norm_rank=2, **kinds)
    model = build_model(config)
    decayed, rest = ({id(p) for p in g["params"]} for g in build_optimizer(model, OptimConfig()).param_groups)
    assert decayed.isdisjoint(rest)
    matrices = ("_proj.weight", "router.weight", "g_down.weight", "head.weight", ".down.weight", ".up.weight")
    for name, p in model.named_parameters():
        is_matrix = name.endswith(matrices) or (".mlp." in name and name.endswith(".weight"))
        assert (id(p) in decayed, id(p) in rest) == (is_matrix, not is_matrix), name


def test_a_head_tied_to_the_embedding_does_not_decay() -> None:
    model = build_model(tiny.model(tied_embeddings=True))
    decayed, rest = build_optimizer(model, OptimConfig()).param_groups
    assert not any(p is model.head.weight for p in decayed["params"])
    assert sum(p is model.head.weight for p in rest["params"]) == 1


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 100])
def test_accumulation_equals_the_whole_batch(micro_batch: int) -> None:
    whole, group = trained([tiny.run()])
    parts, other = trained([tiny.run()], Execution(micro_batch=micro_batch))
    assert [s.loss[0] for s in parts] == pytest.approx([s.loss[0] for s in whole], rel=1e-5)
    assert [s.grad_norm[0] for s in parts] == pytest.approx([s.grad_norm[0] for s in whole], rel=1e-4)
    for name, parameter in weights(group).items():
        torch.testing.assert_close(weights(other)[name], parameter, rtol=1e-3, atol=1e-4)


class Uneven:
    """A source whose rows have different numbers of targets that count."""

    def train_batch(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        batch = open_source(tiny.run().data).train_batch(seed, step, batch_size, seq_len)
        for row, n_ignored in enumerate((0, 7, 3, 8)):
            batch.targets_BT[row, :n_ignored] = IGNORED
        return batch


@pytest.mark.parametrize("micro_batch", [0, 1, 2])
def test_every_target_counts_the_same_in_whichever_micro_batch_it_is(micro_batch: int) -> None:
    group = Group([tiny.run(steps=1)], Execution(micro_batch=micro_batch))
    model = build_model(group.run.model)
    group.members[0].source = Uneven()
    batch = Uneven().train_batch(0, 0, 4, 8)
    logits_BTV = model(torch.from_numpy(batch.inputs_BT))
    mean = F.cross_entropy(logits_BTV.flatten(0, 1), torch.from_numpy(batch.targets_BT).flatten())
    mean.backward()
    (step,) = train(group)
    assert step.loss[0] == pytest.approx(mean.item(), rel=1e-6)
    norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
    assert step.grad_norm[0] == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("clip", [0.01, None])
def test_clipping_bounds_the_gradient_that_the_optimiser_sees(clip: float | None) -> None:
    group = Group([tiny.run(steps=1, optim=OptimConfig(lr=1e-2, clip=clip))])
    (step,) = train(group)
    seen = torch.sqrt(sum(p.grad.square().sum() for p in group.members[0].model.parameters())).item()
    assert step.grad_norm[0] > 0.1
    assert seen == pytest.approx(clip or step.grad_norm[0], rel=1e-3)


def test_a_group_in_turn_equals_the_runs_alone_bit_for_bit() -> None:
    model = tiny.model(max_seq_len=8, positions="relative")  # which is not stacked
    runs = [
        tiny.run(seed=0, model=model),
        tiny.run(seed=1, model=model, optim=OptimConfig(lr=3e-3, schedule="wsd", clip=None)),
    ]
    together, group = trained(runs)
    for i, run in enumerate(runs):
        alone, single = trained([run])
        assert [(s.loss[i], s.grad_norm[i], s.lr[i]) for s in together] == [
            (s.loss[0], s.grad_norm[0], s.lr[0]) for s in alone
        ]
        assert all(torch.equal(p, weights(group, i)[n]) for n, p in weights(single).items())
    assert weights(group, 0).keys() == weights(group, 1).keys()


def test_the_same_run_twice_is_the_same_bit_for_bit() -> None:
    (first, a), (second, b) = trained([tiny.run()]), trained([tiny.run()])
    assert first == second and all(torch.equal(p, weights(b)[n]) for n, p in weights(a).items())


def test_a_divergence_is_recorded_and_stops_only_that_run() -> None:
    group = Group([tiny.run(seed=0), tiny.run(seed=1)])
    steps = []
    for step in train(group):
        steps.append(step)
        if step.step == 2:
            group.members[0].model.head.weight.data[0, 0] = math.inf
    alone, _ = trained([tiny.run(seed=1)])
    assert [s.diverged for s in steps] == [[i == 2, False] for i in range(6)]
    assert [math.isfinite(s.loss[0]) for s in steps] == [True, True, False, False, False, False]
    assert all(math.isnan(s.loss[0]) and math.isnan(s.grad_norm[0]) for s in steps[3:])
    assert [s.loss[1] for s in steps] == pytest.approx([s.loss[0] for s in alone], rel=1e-5)
    assert [m.alive for m in group.members] == [False, True]


def test_training_ends_when_all_have_diverged() -> None:
    steps, group = trained(
        [tiny.run(steps=200, optim=OptimConfig(lr=1e30, clip=None, warmup=0.0, schedule="constant"))]
    )
    assert len(steps) < 10 and steps[-1].diverged == [True] and not group.members[0].alive
    assert not any(s.diverged[0] for s in steps[:-1])


def test_bfloat16_computes_on_the_cpu_with_float32_weights() -> None:
    run = tiny.run(steps=5)
    exact, _ = trained([run])
    low, group = trained([run.model_copy(update={"train": run.train.model_copy(update={"precision": "bfloat16"})})])
    assert group.facts()["compute_dtype"] == "bfloat16" and group.members[0].model.compute_dtype == torch.bfloat16
    assert {p.dtype for p in group.members[0].model.parameters()} == {torch.float32}
    assert [s.loss[0] for s in low] == pytest.approx([s.loss[0] for s in exact], rel=0.02)
    assert [s.loss[0] for s in low] != [s.loss[0] for s in exact]


def test_auto_precision_is_float32_on_the_cpu() -> None:
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32


def test_a_run_takes_open_fields_from_its_data() -> None:
    open_run = tiny.run(model={"d_model": 16, "n_heads": 2, "n_layers": 1})
    resolved = resolve(open_run).model
    assert (resolved.vocab_size, resolved.max_seq_len, resolved.d_ff, resolved.head_dim) == (17, 8, 64, 8)
    assert resolve(tiny.run()) is not None and resolve(tiny.run()) == tiny.run()


def test_runs_of_two_shapes_make_no_group() -> None:
    with pytest.raises(
        ValueError, match="must share model, objective and train; these differ: put them into two groups"
    ):
        Group([tiny.run(), tiny.run(model=tiny.model(max_seq_len=8))])


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch sees no CUDA device here; use execution.device=cpu or auto"):
        Group([tiny.run()], Execution(device="cuda"))


def test_the_facts_say_what_was_used() -> None:
    facts = Group([tiny.run()], Execution(micro_batch=2)).facts()
    assert facts["device"] == "cpu" and facts["threads"] == 1 and facts["attention"] == "sdpa"
    assert (facts["micro_batch"], facts["compiled"], facts["runs_in_group"], facts["processes"]) == (2, False, 1, 1)


def test_no_tensor_is_kept_from_step_to_step() -> None:
    import gc

    counts = []
    for step in train(tiny.run(steps=30)):
        if step.step in (5, 29):
            gc.collect()
            counts.append(sum(type(o) in (torch.Tensor, torch.nn.Parameter) for o in gc.get_objects()))
    assert counts[0] == counts[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
def test_a_compiled_run_equals_an_eager_one() -> None:
    eager, _ = trained([tiny.run()])
    compiled, group = trained([tiny.run()], Execution(compile="on"))
    assert group.is_compiled
    assert [s.loss[0] for s in compiled] == pytest.approx([s.loss[0] for s in eager], rel=1e-4)


def test_packed_products_train_as_separate_ones_and_the_facts_say_so() -> None:
    run = tiny.run(model=tiny.model(n_heads=4, n_kv_heads=2, gate="sdpa-elementwise+value-headwise-bias", bias=True))
    apart, group = trained([run])
    packed, other = trained([run], Execution(packed=True))
    assert (group.members[0].model.is_packed, other.members[0].model.is_packed) == (False, True)
    assert (group.facts()["packed"], other.facts()["packed"]) == (False, True)
    assert [s.loss[0] for s in packed] == pytest.approx([s.loss[0] for s in apart], rel=1e-5)
    assert weights(group).keys() == weights(other).keys()


GATES = {
    "": False,
    "sdpa-headwise": True,
    "sdpa-headwise-lse": False,
    "sdpa-elementwise-rank=4": False,
    "sdpa-headwise-static": False,
    "value-headwise+sdpa-headwise-static": True,
}


@pytest.mark.parametrize("gate", GATES)
def test_products_are_packed_by_themselves_on_a_gpu_where_a_gate_joins_them(
    monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    group = Group([tiny.run(model=tiny.model(gate=gate or None))])
    assert group.is_packed is group.members[0].model.is_packed is group.facts()["packed"] is False
    monkeypatch.setattr(group, "device", torch.device("cuda"))
    assert group.is_packed is GATES[gate]
    monkeypatch.setattr(group, "ranks", replace(group.ranks, mesh=object()))
    assert not group.is_packed
    monkeypatch.setattr(group, "execution", Execution(packed=True))
    assert group.is_packed is True
    monkeypatch.setattr(group, "execution", Execution(packed=False))
    assert group.is_packed is False


def test_attention_runs_through_the_implementation_that_is_named_and_the_facts_say_so() -> None:
    (plain, _), (named, group) = (trained([tiny.run()], Execution(attention=name)) for name in ("auto", "reference"))
    assert group.members[0].model.attention == group.facts()["attention"] == "reference"
    assert [s.loss[0] for s in named] == pytest.approx([s.loss[0] for s in plain], rel=1e-4)


def test_an_implementation_that_cannot_serve_the_run_is_refused_before_it_begins() -> None:
    with pytest.raises(ValueError, match="take sdpa, or auto"):
        Group([tiny.run()], Execution(device="cpu", attention="hopper"))


def test_the_implementations_that_a_run_may_name_are_those_that_there_are() -> None:
    assert get_args(Attention) == ("auto", *IMPLEMENTATIONS, *OPERATORS)
