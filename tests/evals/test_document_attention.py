"""Attention to documents: a planted bias of place hides a planted relevance, calibration finds it; matrices as they are."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from gatelab.config import SinkLogit
from gatelab.evals.middle import FORMS, DocumentRecall, document_attention, recall_at
from gatelab.evals.question import Question, of_item
from gatelab.models import build_model
from gatelab.models.decoder import Decoder
from gatelab.ops.gated_attention import attention_weights
from gatelab.tasks import Knobs, open_task

V, T, D, WIDTH = 31, 24, 8, 2
DUMMY, DULL, GOLD = 1, 2, 3
BIASED = (0, 1, 7)
# ln of how many times as much a document gets for where it is, and for what it says.
BIAS, DULLNESS, RELEVANCE = 2.0, math.log(1.1), math.log(3)


def question(gold: int) -> Question:
    ids = [0] + [DULL] * (T - 1)
    documents = tuple((1 + WIDTH * d, 1 + WIDTH * (d + 1)) for d in range(D))
    ids[slice(*documents[gold])] = [GOLD] * WIDTH
    ids[T - 4 :] = [9, 10, 11, 12]
    return Question(tuple(ids), (T - 1,), (5,), documents, (gold,), task="planted", index=gold)


def planted(**changes: Any) -> Decoder:
    """Every head of every layer pays key s e to the (bias of s + relevance of its token), whatever the state is."""
    model = build_model(tiny.model(vocab_size=V, max_seq_len=T, **changes))
    read: list[Tensor] = []

    run = model.run

    def remembering(stack: Any, tokens_BT: Tensor, given: Any) -> Tensor:
        read[:] = [tokens_BT]
        return run(stack, tokens_BT, given)

    model.run = remembering

    def keys(_module: nn.Module, _inputs: Any, k_BSGK: Tensor) -> Tensor:
        out, (ids_BT,) = torch.zeros_like(k_BSGK), read
        R = k_BSGK.shape[1] - ids_BT.shape[1]
        for b, ids in enumerate(ids_BT.tolist()):
            for s, token in enumerate(ids):
                slot = (s - 1) // WIDTH if s else -1
                logit = BIAS * (slot in BIASED) + {DULL: DULLNESS, GOLD: RELEVANCE}.get(token, 0.0)
                out[b, R + s, :, 0] = logit * math.sqrt(k_BSGK.shape[-1])
        return out

    def queries(_module: nn.Module, _inputs: Any, q_BTHK: Tensor) -> Tensor:
        out = torch.zeros_like(q_BTHK)
        out[..., 0] = 1.0
        return out

    for block in model.blocks:
        block.attention.tap_k.register_forward_hook(keys)
        block.attention.tap_q.register_forward_hook(queries)
    return model


def test_a_planted_bias_hides_the_gold_document_and_calibration_finds_it():
    questions = [question(gold) for gold in (2, 3, 4, 5, 6)]
    found = document_attention(planted(), questions, dummy=[DUMMY])
    recalled = DocumentRecall(found)
    assert recalled.recall("raw") == [0.0] * 5 and recalled.recall("calibrated") == [1.0] * 5
    assert recalled.chance() == 3 / D
    rows = recalled.rows("r", 4)
    at = {(r.metric, r.stage): r.value for r in rows if r.domain == "mass" and r.layer is None and "recall" in r.metric}
    assert at == {
        ("document_recall", "raw"): 0,
        ("document_recall", "calibrated"): 1,
        # Exact, of 0 and of 5 in 5: 1 − 0.025^(1/5).
        ("document_recall_low", "raw"): 0,
        ("document_recall_high", "raw"): pytest.approx(1 - 0.025 ** (1 / 5)),
        ("document_recall_low", "calibrated"): pytest.approx(0.025 ** (1 / 5)),
        ("document_recall_high", "calibrated"): 1,
        ("document_recall_gain", None): 1,
        ("document_recall_gain_low", None): 1,
        ("document_recall_gain_high", None): 1,
        ("document_recall_nan", None): 0,
    }
    by_place = {(r.stage, r.bin): r.value for r in rows if r.metric == "document_mass"}
    assert all(by_place["dummy", b] > 5 * by_place["dummy", o] for b in BIASED for o in range(D) if o not in BIASED)
    assert {(r.task, r.length, r.step) for r in rows} == {("planted", T, 4)}


def test_a_document_in_a_biased_place_is_found_by_both():
    (found,) = document_attention(planted(), [question(1)], dummy=[DUMMY])
    assert recall_at(found.of("raw"), (1,), 1) == recall_at(found.of("calibrated"), (1,), 1) == 1


def masses(ids: tuple[int, ...]) -> np.ndarray:
    """What the last query pays each token, by hand."""
    logits = [
        BIAS * (s > 0 and (s - 1) // WIDTH in BIASED) + {DULL: DULLNESS, GOLD: RELEVANCE}.get(t, 0.0)
        for s, t in enumerate(ids)
    ]
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("registers", [0, 3])
def test_attention_is_a_mean_over_tokens_and_the_dummy_stands_in_one_place_at_a_time(registers: int):
    asked = question(4)
    (found,) = document_attention(planted(registers=registers), [asked], dummy=[DUMMY, DUMMY])
    for d, (start, end) in enumerate(asked.documents):
        without = (*asked.ids[:start], *[DUMMY] * WIDTH, *asked.ids[end:])
        for ids, stage in ((asked.ids, "raw"), (without, "dummy")):
            mass = masses(ids)
            total = 1 + registers * mass[0]  # a register has neither bias nor relevance, as the first token
            np.testing.assert_allclose(found.of(stage)[d], mass[start:end].mean() / total, rtol=1e-5)
    assert found.layers == (0, 1)


def test_without_a_gate_the_gated_form_is_the_mass_and_a_value_norm_multiplies():
    model = planted()
    for block in model.blocks:
        block.attention.tap_v.register_forward_hook(lambda _m, _i, v: torch.full_like(v, 0.5))
    (found,) = document_attention(model, [question(4)], dummy=[DUMMY])
    np.testing.assert_array_equal(found.of("raw", "gated"), found.of("raw", "mass"))
    K = model.config.head_dim
    np.testing.assert_allclose(found.of("raw", "gated-value"), found.of("raw") * 0.5 * math.sqrt(K), rtol=1e-6)


@pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise"])
def test_a_gate_s_openness_at_the_query_multiplies_its_own_head(gate: str):
    model = planted(gate=gate, n_kv_heads=1)
    scores_H = torch.tensor([0.25, 0.75])

    def set_gate(_module: nn.Module, _inputs: Any, logits_BTHK: Tensor) -> Tensor:
        out = torch.full_like(logits_BTHK, 9.0)  # open elsewhere
        out[:, -1] = scores_H.logit()[:, None]
        return out

    for block in model.blocks:
        block.attention.gates["sdpa"].tap_logits.register_forward_hook(set_gate)
    (found,) = document_attention(model, [question(4)], dummy=[DUMMY])
    # All heads have the same mass here.
    np.testing.assert_allclose(found.of("raw", "gated"), found.of("raw") * 0.5, rtol=1e-5)


def test_heads_that_are_shut_no_longer_count():
    """Of two heads one sees the gold document and is shut: raw attention recalls it, gated attention does not."""
    model = build_model(tiny.model(vocab_size=V, max_seq_len=T, gate="sdpa-headwise", n_layers=1))
    own = model.blocks[0].attention
    asked = question(4)

    def keys(_module: nn.Module, _inputs: Any, k_BSGK: Tensor) -> Tensor:
        out = torch.zeros_like(k_BSGK)
        out[:, slice(*asked.documents[4]), 0, 0] = 9.0 * math.sqrt(out.shape[-1])
        for d in (0, 1, 2):
            out[:, slice(*asked.documents[d]), 1, 0] = 3.0 * math.sqrt(out.shape[-1])
        return out

    def queries(_module: nn.Module, _inputs: Any, q_BTHK: Tensor) -> Tensor:
        return torch.zeros_like(q_BTHK).index_fill(3, torch.tensor([0]), 1.0)

    own.tap_k.register_forward_hook(keys)
    own.tap_q.register_forward_hook(queries)
    own.gates["sdpa"].tap_logits.register_forward_hook(
        lambda _m, _i, x: torch.tensor([-20.0, 20.0])[:, None].expand_as(x)
    )
    recalled = DocumentRecall(document_attention(model, [asked], dummy=[DUMMY]))
    assert recalled.recall("raw", "mass") == [1.0] and recalled.recall("raw", "gated") == [0.0]


KINDS = {
    "plain": {},
    "grouped-rope-slot": {"n_kv_heads": 1, "softmax": SinkLogit(init=0.5)},
    "window": {"window": 7, "global_every": 2},
    "relative": {"positions": "relative"},
    "scores-mul": {"gate": "scores-headwise"},
    "forget": {"gate": "scores-headwise-forget"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_masses_of_our_models_are_those_of_the_whole_matrix(kind: str, monkeypatch: pytest.MonkeyPatch):
    model = build_model(tiny.model(vocab_size=V, max_seq_len=T, **KINDS[kind]), seed=3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    asked = question(4)
    (found,) = document_attention(model, [asked], dummy=[DUMMY])
    seen: list[Tensor] = []

    def whole(
        q: Tensor, k: Tensor, v: Tensor, _logits: Any = None, _gate: Any = None, *, impl: str, **rest: Any
    ) -> Tensor:
        # One document: nothing is kept apart.
        assert rest.pop("segment_ids_BT", None) is None and not rest.pop("dropout")
        weights_BHTS, _ = attention_weights(q, k, **rest)
        seen.append(weights_BHTS)
        return torch.einsum("bhts,bshk->bthk", weights_BHTS, v.repeat_interleave(q.shape[2] // v.shape[2], dim=2))

    monkeypatch.setattr("gatelab.nn.attend.gated_attention", whole)
    with torch.no_grad():
        model(torch.tensor([asked.ids]))
    assert len(seen) == 2
    for layer, weights_BHTS in enumerate(seen):
        mass_S = weights_BHTS[0, :, -1].mean(dim=0).numpy()
        expected = [mass_S[s:e].mean() for s, e in asked.documents]
        np.testing.assert_allclose(found.raw_LD["mass"][layer], expected, rtol=2e-4, atol=1e-7)


def test_masses_of_a_transformers_model_are_those_of_its_eager_matrices():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, attention_dropout=0.2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.4)
    asked = question(4)
    (found,) = document_attention(model.train(), [asked], dummy=[DUMMY, 7])
    assert model.training and found.layers == (0, 1)
    for d, (start, end) in enumerate(asked.documents):
        without = (*asked.ids[:start], DUMMY, 7, *asked.ids[end:])
        for ids, by_form in ((asked.ids, found.raw_LD), (without, found.dummy_LD)):
            with torch.no_grad():
                out = model.eval()(torch.tensor([ids]), output_attentions=True)
            for layer, weights_BHTS in enumerate(out.attentions):
                mass = weights_BHTS[0, :, -1, start:end].mean()
                np.testing.assert_allclose(by_form["mass"][layer, d], mass, rtol=1e-4)
    assert np.isfinite(found.raw_LD["gated-value"]).all()


def test_items_of_a_task_are_looked_at():
    knobs = Knobs(length=64, distractors=4)
    questions = [of_item(open_task("cite").item(knobs, i)) for i in range(3)]
    model = build_model(tiny.model(vocab_size=4096, max_seq_len=64, gate="sdpa-headwise"))
    rows = DocumentRecall(document_attention(model, questions, dummy=[64, 65]), layers=[1]).rows()
    assert {r.domain for r in rows if r.metric == "document_recall"} == set(FORMS)
    assert {r.split for r in rows if r.metric == "document_mass"} == {"layers 1"}
    assert {r.task for r in rows} == {"cite"}


def test_recall_shares_a_place_among_equals_and_has_no_number_where_a_score_has_none():
    assert recall_at([5, 4, 3, 2, 1], [2], 3) == 1 and recall_at([5, 4, 3, 2, 1], [3], 3) == 0
    assert recall_at([1.0] * 8, [4], 3) == 3 / 8
    assert recall_at([2, 1, 1, 1, 0], [1], 3) == 2 / 3
    assert recall_at([5, 4, 3, 2, 1], [0, 4], 3) == 1 / 2 and recall_at([1, 2], [0], 3) == 1
    assert math.isnan(recall_at([1, math.nan], [0], 1))
    with pytest.raises(ValueError, match="take k from 1"):
        recall_at([1, 2], [0], 0)


def test_a_form_that_is_not_told_is_counted_and_has_no_recall():
    # A gate on the log-sum-exp: what it was given is not all that it reads.
    model = build_model(tiny.model(vocab_size=V, max_seq_len=T, gate="sdpa-headwise-lse"))
    rows = DocumentRecall(document_attention(model, [question(4)], dummy=[DUMMY])).rows()
    nan = {r.domain: r.value for r in rows if r.metric == "document_recall_nan"}
    assert nan == {"mass": 0, "gated": 1, "gated-value": 1}
    assert {r.domain for r in rows if r.metric == "document_recall"} == {"mass"}


def test_what_cannot_be_looked_at_is_refused():
    model, asked = planted(), question(4)
    with pytest.raises(ValueError, match="dummy has no ids"):
        document_attention(model, [asked], dummy=[])
    with pytest.raises(ValueError, match=f"dummy has the id {V}; this model has ids 0 to {V - 1}"):
        document_attention(model, [asked], dummy=[V])
    with pytest.raises(ValueError, match="has positions for 16"):
        document_attention(build_model(tiny.model(vocab_size=V)), [asked], dummy=[DUMMY])
    late = Question(asked.ids, (6,), (1,), asked.documents, (0,))
    with pytest.raises(ValueError, match="a document stands after the prompt's end"):
        document_attention(model, [late], dummy=[DUMMY])
    with pytest.raises(ValueError, match="no next-token loss"):
        document_attention(build_model(tiny.model(vocab_size=V, arch="encoder")), [asked], dummy=[DUMMY])
    (found,) = document_attention(model, [asked], dummy=[DUMMY])
    with pytest.raises(ValueError, match=r"layers \[7\]: attention was seen in layers \[0, 1\]"):
        found.of("raw", layers=[7])
    with pytest.raises(ValueError, match="expected raw, dummy or calibrated"):
        found.of("cooked")
    with pytest.raises(ValueError, match="no questions"):
        DocumentRecall([])


def test_every_row_is_defined_in_the_metrics_page():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition("(`gatelab.evals.middle`")[2].partition("\n## ")[0]
    for row in DocumentRecall(document_attention(planted(), [question(4)], dummy=[DUMMY])).rows():
        assert f"| `{row.metric}` | {row.unit} |" in section, row.metric
