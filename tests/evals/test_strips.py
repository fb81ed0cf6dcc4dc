"""Strips along an item: the attention of the token before the answer by plain arithmetic, gates that are clamped, and of which
items they are kept."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from tapped import queries_and_keys

from gatelab.config import AskConfig, Run, Tasks, TrainConfig
from gatelab.evals import strips
from gatelab.evals.asking import asked
from gatelab.evals.strips import with_strips
from gatelab.models import build_model
from gatelab.nn.attention import GatedAttention
from gatelab.tasks import VOCAB_SIZE, Knobs, open_task

T = 48


def run(arch: str = "decoder", **model: object) -> Run:
    return Run(
        model=tiny.model(arch=arch, vocab_size=VOCAB_SIZE + 1, max_seq_len=T, **model),
        data=Tasks(names=("needle",), distractors=2),
        objective="answers" if arch == "encoder" else None,
        train=TrainConfig(tokens=T, batch_size=1, seq_len=T),
        ask=AskConfig(items=22, times=(1, 2)),
    )


@pytest.mark.parametrize("registers", [0, 3])
def test_attention_is_that_of_the_token_before_the_answer(registers: int) -> None:
    r = run(gate="sdpa-headwise+value-elementwise", registers=registers)
    model = build_model(r.model)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, GatedAttention):
                layer.q_proj.weight.mul_(1000)  # so that attention is not even
                layer.gates["sdpa"].g_proj.weight.zero_()
    _, items = asked(model, r, fingerprint="f", step=0, is_whole=True)
    first = next(x for x in with_strips(model, r, items) if "strips" in x.factors)
    item = open_task("needle").item(Knobs(T, first.factors["knobs"]["asked_depth"], 2), first.item)
    for row, (q_THK, k_THK) in zip(
        first.factors["strips"]["attention"], queries_and_keys(model, item.tokens), strict=True
    ):
        at = item.asked[0] + registers
        logits_HS = torch.einsum("hk,shk->hs", q_THK[at], k_THK[: at + 1]) / math.sqrt(q_THK.shape[-1])
        expected = logits_HS.softmax(dim=-1).mean(dim=0)[registers:].tolist()
        assert len(row) == T and row[: item.asked[0] + 1] == pytest.approx([1000 * p for p in expected], abs=0.6)
        assert max(row) > 100, "some token stands out"
    gates = first.factors["strips"]["gates"]
    assert gates["sdpa"] == [[500] * T] * 2 and len(gates["value"]) == 2 and len(set(gates["value"][0])) > 5


def test_they_are_kept_of_the_items_that_were_most_wrong_at_the_length_of_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(strips, "N_ITEMS", 5)
    r = run()
    model = build_model(r.model)
    _, items = asked(model, r, fingerprint="f", step=0, is_whole=True)
    items[3] = replace(items[3], score=math.nan)
    found = with_strips(model, r, items)
    kept = [i for i, x in enumerate(found) if "strips" in x.factors]
    own = [(x.score, i) for i, x in enumerate(items) if x.factors["length"] == T and i != 3]
    assert sorted(kept) == sorted(i for _, i in sorted(own)[:5])
    assert [x for i, x in enumerate(found) if i not in kept] != [] and len(found) == len(items)
    assert found[kept[0]].factors["strips"]["gates"] == {}


def test_what_is_no_decoder_or_too_long_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    r = run("encoder")
    model = build_model(r.model)
    _, items = asked(model, r, fingerprint="f", step=0, is_whole=True)
    assert with_strips(model, r, items) == items
    monkeypatch.setattr(strips, "LONGEST", T - 1)
    r = run()
    model = build_model(r.model)
    _, items = asked(model, r, fingerprint="f", step=0, is_whole=True)
    assert with_strips(model, r, items) == items
