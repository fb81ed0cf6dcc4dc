"""Blocks that the backward pass computes again: the same numbers to the bit, in less memory."""

import re
import weakref
from dataclasses import asdict
from typing import Any

import kinds
import meshes
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gatelab.config import Execution, OptimConfig, ProbeConfig, Run, fingerprint
from gatelab.evals.heldout import look
from gatelab.models import build_model
from gatelab.models.block import Block
from gatelab.nn.moe import Routing, router_losses
from gatelab.nn.watch import Watch
from gatelab.study.worker import classify
from gatelab.train import loop
from gatelab.train.cost import training_bytes
from gatelab.train.group import Group
from gatelab.train.loop import train
from gatelab.train.objectives import target_loss

AGAIN = Execution(recompute="layer")
WATCHED = ProbeConfig(times=1, sequences=2, eval_sequences=3, watch=1)


def stack(n: int = 2, **model: Any) -> list[Run]:
    config = tiny.model(**{"max_seq_len": 8, "gate": "sdpa-elementwise+value-headwise"} | model)
    optims = (OptimConfig(lr=1e-2, clip=0.5), OptimConfig(lr=3e-3))
    return [tiny.run(model=config, seed=i, steps=3, optim=optims[i], probe=WATCHED) for i in range(n)]


SHARED = kinds.EXPERTS | {"n_shared": 1, "shared_weight": "sigmoid"}
CASES: dict[str, tuple[list[Run], dict[str, Any]]] = {
    "stack": (stack(), {}),
    "stack of experts": (stack(moe=SHARED, d_ff=None), {"micro_batch": 3}),
    "forgetting": (stack(gate="scores-headwise-forget-bias"), {}),
    "packed": (stack(1), {"packed": True}),
    "experts": ([kinds.run("experts", steps=3, probe=WATCHED)], {"micro_batch": 3}),
    "encoder": ([kinds.run("encoder", steps=3)], {}),
    "encoder-decoder of experts": ([kinds.run("encoder-decoder-experts", steps=3)], {}),
    "clipped queries": ([kinds.run("encoder", steps=3, optim=OptimConfig(lr=1e-2, qk_clip=0.5))], {}),
    "relative positions": ([meshes.run_of("relative")], {}),
    "registers, a hidden key": ([meshes.run_of("hidden-first")], {}),
}


def trained(runs: list[Run], execution: Execution) -> tuple[str, list[Tensor], Group]:
    group = Group(runs, execution)
    steps = repr([asdict(step) for step in train(group)])
    return steps, [p.detach() for m in group.members for p in m.model.parameters()], group


@pytest.mark.parametrize("case", CASES)
def test_training_is_to_the_bit_what_it_is_without(case: str) -> None:
    runs, others = CASES[case]
    steps, weights, group = trained(runs, Execution(**others))
    again, same, other = trained(runs, Execution(**others, recompute="layer"))
    assert (group.facts()["recompute"], other.facts()["recompute"]) == ("none", "layer")
    assert again == steps and all(torch.equal(p, q) for p, q in zip(same, weights, strict=True))
    rows, expected = ([r.as_dict() for r in look(g, ["x"] * len(runs))[0]] for g in (other, group))
    assert repr(rows) == repr(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
@pytest.mark.parametrize("case", ["stack", "experts"])
def test_compiled_it_trains_as_without(case: str) -> None:
    runs, others = CASES[case]
    found = []
    for recompute in ("none", "layer"):
        torch._dynamo.reset()
        group = Group(runs, Execution(**others, compile="on", recompute=recompute))
        found.append([(*step.loss, *step.grad_norm) for step in train(group)])
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_is_dropped_the_first_time_is_dropped_the_second(dropout: float) -> None:
    found, tokens_BT = [], torch.arange(16).view(2, 8) % 17
    for recompute in ("none", "layer"):
        model = build_model(tiny.model(gate="sdpa-headwise"), seed=0).train()
        model.recompute = recompute
        for block in model.blocks:
            block.attention.dropout = dropout
        torch.manual_seed(3)
        out_BTV = model(tokens_BT)
        found.append([out_BTV, *torch.autograd.grad(out_BTV.square().sum(), list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_it_is_no_part_of_a_runs_name() -> None:
    (run,) = {group.run for group in (Group(stack(1)), Group(stack(1), AGAIN))}
    assert fingerprint(run, "") and "recompute" not in str(run.model_dump())


def passes(model: nn.Module) -> list[str]:
    """A list that grows as a block begins a forward pass; a second one ends when all is there that was to be kept."""
    seen: list[str] = []
    for name, block in model.named_modules():
        if isinstance(block, Block):
            block.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    return seen


def test_a_block_runs_twice_in_a_step_tells_once_and_once_without_gradient() -> None:
    config = tiny.model(moe=kinds.EXPERTS, d_ff=None, gate="sdpa-headwise")
    tokens_BT = torch.arange(16).view(2, 8) % 17
    told: list[list[Tensor]] = []
    for recompute in ("none", "layer"):
        model, routed, watch = build_model(config, seed=0), list[Routing](), Watch()
        model.recompute = recompute
        seen = passes(model)
        with torch.no_grad():
            model(tokens_BT)
        assert seen == ["blocks.0", "blocks.1"]
        loss = target_loss(model, tokens_BT, tokens_BT, routed=routed, watch=watch)
        balance, z = router_losses(routed, config.moe)
        (loss + balance + z).backward()
        assert len(routed) == len(watch.first_mass_BH) == 2 and {r.n_tokens for r in routed} == {16}
        assert seen[4:] == ([] if recompute == "none" else ["blocks.1", "blocks.0"])
        counts = [t for r in routed for t in (r.counts_X, r.probability_X, r.z)]
        told.append([*counts, *watch.first_mass_BH, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*told, strict=True))


@pytest.mark.parametrize(
    ("error", "recompute", "says"),
    [
        (torch.OutOfMemoryError("Tried to allocate 2 GiB"), "none", "execution.recompute=layer or a smaller execution.micro_"),
        (torch.OutOfMemoryError("Tried to allocate 2 GiB"), "layer", "a step does not fit; a smaller execution.micro_batch takes"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "none", "takes less (DefaultCPUAllocator: can't allocate"),
        (RuntimeError("shapes differ"), "none", "shapes differ"),
    ],
)  # fmt: skip
def test_a_step_that_does_not_fit_says_what_takes_less(
    error: RuntimeError, recompute: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "_optimise", full)
    with pytest.raises(type(error), match=re.escape(says)) as raised:
        next(train(Group(stack(1), Execution(recompute=recompute))))
    assert classify(raised.value)[0] == ("failed" if "shapes" in says else "oom")


class Held(TorchDispatchMode):
    """Bytes of what operators made and is still there, beside a model: now, and at most."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.now = self.most = 0
        own = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
        self._known = {t.untyped_storage()._cdata for t in own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in self._known:
                storage = t.untyped_storage()
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._leave, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _leave(self, name: int, n_bytes: int) -> None:
        self._known.discard(name)
        self.now -= n_bytes


# With layer norm, whose fused kernel CPUs have too.
WIDE = {"d_model": 96, "n_heads": 6, "n_kv_heads": 2, "d_ff": 256, "norm": "layer", "max_seq_len": 48, "vocab_size": 31}


@pytest.mark.parametrize("fields", [{}, {"gate": "sdpa-elementwise"}], ids=["plain", "gated"])
def test_the_peak_grows_by_a_blocks_input_and_not_by_all_that_it_keeps(fields: dict[str, Any]) -> None:
    grown, planned = {}, {}
    for recompute in ("none", "layer"):
        most, plans = [], []
        for n_layers in (2, 6):
            config = tiny.model(**WIDE, **fields, n_layers=n_layers)
            model = build_model(config, seed=0)
            model.recompute = recompute
            tokens_BT = torch.arange(8 * 48).view(8, 48) % 31
            target_loss(model, tokens_BT, tokens_BT).backward()  # gradients are there before, and summed into
            with Held(model) as held:
                target_loss(model, tokens_BT, tokens_BT).backward()
            most.append(held.most)
            kept = training_bytes(config, 8, 48, precision="float32")
            plans.append(kept.recomputed if recompute == "layer" else kept.activations)
        grown[recompute], planned[recompute] = most[1] - most[0], plans[1] - plans[0]
    assert planned["layer"] == 4 * 8 * 48 * 96 * 4
    assert grown["none"] == pytest.approx(planned["none"], rel=0.06)
    assert grown["layer"] == pytest.approx(planned["layer"], rel=0.06)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
def test_compiled_code_keeps_the_inputs_of_blocks_and_no_more() -> None:
    """As the compiler parts the graph; a block is whole in memory once, in the backward pass, and so is not in this count."""
    kept = []
    for n_layers in (2, 6):
        model = build_model(tiny.model(**WIDE, gate="sdpa-elementwise", n_layers=n_layers), seed=0)
        model.recompute = "layer"
        tokens_BT = torch.arange(8 * 48).view(8, 48) % 31
        torch._dynamo.reset()
        loss = torch.compile(target_loss, dynamic=False, fullgraph=True, backend="aot_eager_decomp_partition")
        own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        seen: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, seen=seen: seen.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            loss(model, tokens_BT, tokens_BT)
        kept.append(sum(t.untyped_storage().nbytes() for place, t in seen.items() if place not in own))
    assert kept[1] - kept[0] == pytest.approx(4 * 8 * 48 * 96 * 4, rel=0.06)
