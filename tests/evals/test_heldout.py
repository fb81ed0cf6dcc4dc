"""Held-out loss by plain arithmetic, and the same sequences for everybody."""

import math

import numpy as np
import pytest
import tiny
import torch

from gatelab.data import IGNORED, Batch, open_source
from gatelab.evals import heldout
from gatelab.evals.heldout import measure
from gatelab.models import build_model
from gatelab.record import Row


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
