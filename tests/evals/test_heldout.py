"""Held-out loss by plain arithmetic, and the same sequences for everybody."""

import math

import numpy as np
import pytest
import tiny
import torch

from gatelab.config import Continuation, MaskedTokens, Run, SpanCorruption
from gatelab.data import IGNORED, Batch, objective_heldout, open_source
from gatelab.evals import heldout
from gatelab.evals.heldout import measure
from gatelab.models import build_model
from gatelab.record import Row
from gatelab.train.group import resolve


class Planted:
    """Held-out sequences with two documents, three domains of which the last is empty, and targets that do not count."""

    domains = ("even", "odd", "absent")
    bytes_per_token = 2.5
    n_sequences = 5

    def heldout_sequences(self, seq_len: int) -> int | None:
        return self.n_sequences

    def heldout_batch(self, index: int, batch_size: int, seq_len: int) -> Batch:
        rows = [np.random.default_rng(index * batch_size + i) for i in range(batch_size)]
        ids_BT = np.stack([r.integers(0, 17, seq_len + 1) for r in rows])
        targets_BT = ids_BT[:, 1:].copy()
        targets_BT[:, 2] = IGNORED
        halves_T = (np.arange(seq_len) >= 3).astype(np.int32)
        return Batch(
            inputs_BT=ids_BT[:, :-1].copy(),
            targets_BT=targets_BT,
            segment_ids_BT=np.repeat(halves_T[None], batch_size, axis=0),
            domain_BT=(ids_BT[:, :-1] % 2).astype(np.int8),
        )


def losses(rows: list[Row]) -> dict[str | None, float]:
    return {r.domain: r.value for r in rows if r.metric == "val_loss"}


def expected(n: int) -> dict[str | None, float]:
    """Position by position, in float64."""
    model, found = build_model(tiny.run().model).double(), {None: [], "even": [], "odd": []}
    model.compute_dtype = torch.float64
    for i in range(n):
        batch = Planted().heldout_batch(i, 1, 8)
        with torch.no_grad():
            logits_TV = model(torch.from_numpy(batch.inputs_BT), segment_ids_BT=torch.from_numpy(batch.segment_ids_BT))[
                0
            ]
        for t in range(8):
            target = int(batch.targets_BT[0, t])
            if target != IGNORED:
                loss = float(logits_TV[t].logsumexp(-1) - logits_TV[t, target])
                found[None].append(loss)
                found["odd" if batch.inputs_BT[0, t] % 2 else "even"].append(loss)
    return {domain: sum(v) / len(v) for domain, v in found.items()}


@pytest.mark.parametrize(("probed", "evaluated", "n"), [(2, 4, 4), (4, 2, 4), (3, 50, 5), (50, 3, 5), (1, 1, 1)])
def test_the_loss_is_the_mean_over_targets_that_count(probed: int, evaluated: int, n: int) -> None:
    probe = {"sequences": probed, "eval_sequences": evaluated, "times": 1}
    run = tiny.run(probe=probe)
    rows = measure(build_model(run.model), Planted(), run, fingerprint="run", step=7)
    assert losses(rows) == pytest.approx(expected(n), rel=1e-5)
    assert {r.step for r in rows} == {7} and {r.run for r in rows} == {"run"}
    (bits,) = (r.value for r in rows if r.metric == "val_bpb")
    assert bits == pytest.approx(expected(n)[None] / math.log(2) / 2.5, rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_how_many_sequences_go_through_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    run = tiny.run(probe={"sequences": 5, "eval_sequences": 5, "times": 1})
    model = build_model(run.model)
    whole = measure(model, Planted(), run, fingerprint="run", step=0)
    monkeypatch.setattr(heldout, "_AT_ONCE", at_once)
    parts = measure(model, Planted(), run, fingerprint="run", step=0)
    assert [r.value for r in parts] == pytest.approx([r.value for r in whole], rel=1e-4)
    assert [(r.metric, r.layer, r.head) for r in parts] == [(r.metric, r.layer, r.head) for r in whole]


def test_measuring_leaves_the_model_as_it_was() -> None:
    run = tiny.run()
    model, source = build_model(run.model), open_source(run.data)
    before = {n: p.clone() for n, p in model.named_parameters()}
    first = measure(model, source, run, fingerprint="run", step=0)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert measure(model, source, run, fingerprint="run", step=0) == first


def test_bfloat16_logits_are_summed_in_float32() -> None:
    run = tiny.run(probe={"sequences": 5, "eval_sequences": 5, "times": 1})
    model = build_model(run.model)
    exact = losses(measure(model, Planted(), run, fingerprint="run", step=0))
    model.compute_dtype = torch.bfloat16
    assert losses(measure(model, Planted(), run, fingerprint="run", step=0)) == pytest.approx(exact, rel=3e-3)


EXPERTS = {"n_experts": 4, "top_k": 2, "d_expert": 8}
OBJECTIVES = {
    "masked": ("encoder", MaskedTokens(share=0.4)),
    "span-corruption": ("encoder-decoder", SpanCorruption(share=0.4, mean_span=1.5)),
    "continuation": ("encoder-decoder", Continuation(share=0.25)),
    "next-token": ("decoder", None),
}


def other(kind: str, **model: object) -> Run:
    """A resolved run of an objective, grouped queries, on the stream."""
    arch, objective = OBJECTIVES[kind]
    shape = {"arch": arch, "d_model": 16, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "init": "fan-in"}
    probe = {"sequences": 2, "eval_sequences": 5, "times": 1}
    return resolve(tiny.run(model=shape | model, objective=objective, probe=probe))


def target_by_target(run: Run, n: int) -> dict[str | None, list[float]]:
    """The losses of the held-out targets, one sequence at a time in float64, in all and by domain."""
    model, source = build_model(run.model).double(), open_source(run.data)
    model.compute_dtype = torch.float64
    found: dict[str | None, list[float]] = {None: []}
    for i in range(n):
        batch = objective_heldout(source, run.resolved_objective, i, 1, run.train.seq_len)
        read = [torch.from_numpy(a) for a in (batch.inputs_BT, batch.decoder_inputs_BT) if a is not None]
        with torch.no_grad():
            logits = model(*read)[0].numpy()
        for t, target in enumerate(batch.targets_BT[0]):
            if target != IGNORED:
                loss = np.log(np.exp(logits[t]).sum()) - logits[t, target]
                found[None].append(loss)
                if batch.domain_BT is not None:
                    found.setdefault(source.domains[batch.domain_BT[0, t]], []).append(loss)
    return found


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("at_once", [2, 16])
def test_every_objective_is_scored_on_its_own_targets(monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int) -> None:
    monkeypatch.setattr(heldout, "_AT_ONCE", at_once)
    run = other(kind)
    rows = measure(build_model(run.model), open_source(run.data), run, fingerprint="run", step=3)
    truth = target_by_target(run, 5)
    assert losses(rows) == pytest.approx({domain: sum(v) / len(v) for domain, v in truth.items()}, rel=1e-5)
    assert (len(truth) > 1) == (kind != "span-corruption")
    assert all(math.isfinite(r.value) for r in rows if r.source == "eval")


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_bits_per_byte_are_those_of_the_next_token_alone(kind: str) -> None:
    run, source = other(kind), open_source(tiny.run().data)
    source.bytes_per_token = 2.5
    rows = measure(build_model(run.model), source, run, fingerprint="run", step=0)
    assert any(r.metric == "val_bpb" for r in rows) == (kind == "next-token")


def test_the_load_of_the_busiest_expert_is_that_of_all_sequences() -> None:
    run = other("continuation", moe=EXPERTS)
    model, source = build_model(run.model), open_source(run.data)
    (found,) = (r for r in measure(model, source, run, fingerprint="run", step=0) if r.metric == "expert_load_max")
    counts = torch.zeros(4, 4)
    for i in range(5):
        batch, routed = objective_heldout(source, run.resolved_objective, i, 1, 8), []
        model(torch.from_numpy(batch.inputs_BT), torch.from_numpy(batch.decoder_inputs_BT), routed=routed)
        counts += torch.stack([r.counts_X for r in routed])
    assert counts.sum(1).tolist() == [2 * 5 * 2, 2 * 5 * 2, 2 * 5 * 7, 2 * 5 * 7]
    assert found.value == pytest.approx((counts.amax(1) / counts.sum(1) * 4).mean().item(), rel=1e-6)
    assert 1.0 < found.value <= 2.0 and found.unit == "ratio" and (found.source, found.split) == ("eval", "heldout")


def test_a_router_that_always_chooses_the_same_experts_has_the_greatest_load() -> None:
    run = other("next-token", moe=EXPERTS)
    model = build_model(run.model)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.router.weight.zero_()
    rows = measure(model, open_source(run.data), run, fingerprint="run", step=0)
    # Between equal probabilities the same two experts win: each has half of the choices, twice its share.
    assert [r.value for r in rows if r.metric == "expert_load_max"] == [2.0]
    assert not [
        r
        for r in measure(build_model(tiny.model()), open_source(tiny.run().data), tiny.run(), fingerprint="", step=0)
        if r.metric == "expert_load_max"
    ]
