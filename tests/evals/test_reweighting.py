"""Reweighted attention: documents get what the formula says, everything else keeps what it had, and no other pass is changed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from gatelab.config import SinkLogit
from gatelab.config.normaliser import Clipped
from gatelab.evals.middle import Focus, document_attention, reweighted, reweighting_effect
from gatelab.evals.question import Question, of_item
from gatelab.models import build_model
from gatelab.models.decoder import Decoder
from gatelab.probes import capture
from gatelab.probes.capture import Recorder
from gatelab.probes.probe import AttentionView, Probe
from gatelab.tasks import Knobs, open_task

V, T = 31, 18
SPANS = ((1, 4), (5, 7), (8, 12))
START = 14
RELEVANCE, HOT = (0.1, 0.3, 0.2), 0.1


class Whole(Probe):
    """The whole matrix of each layer."""

    name, metrics = "whole", {}

    def attention(self, view: AttentionView) -> None:
        (block,) = view.last.blocks(view.n_queries)
        self.seen[view.layer] = block.weights_BHTS.double()

    def summaries(self, rows: list) -> list:
        return rows


def weights_of(model: Decoder, ids_BT: Tensor, *focuses: Focus, **options: Any) -> dict[int, Tensor]:
    """By layer, reweighted where focuses are given."""
    recorder: Recorder
    with torch.no_grad(), capture(model, []) as recorder:
        probe = Whole(None, ())
        probe.seen = {}
        recorder.probes[:] = [probe]
        if focuses:
            with reweighted(model, focuses, **options):
                model(ids_BT)
        else:
            model(ids_BT)
    return probe.seen


def model(**changes: Any) -> Decoder:
    made = build_model(tiny.model(vocab_size=V, max_seq_len=T, **changes), seed=1)
    for name, parameter in made.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.4)
    return made


def ids(n: int = 1) -> Tensor:
    return torch.randint(0, V, (n, T), generator=torch.Generator().manual_seed(5))


KINDS = {
    "plain": {},
    "grouped-slot": {"n_kv_heads": 1, "softmax": SinkLogit(init=0.7)},
    "gates": {"gate": "sdpa-elementwise+value-headwise", "qk_norm": "rms"},
    "relative": {"positions": "relative"},
    "registers": {"registers": 2},
    "no-positions": {"positions": "none"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_documents_get_alpha_of_their_sum_and_nothing_else_moves(kind: str):
    net = model(**KINDS[kind])
    before = weights_of(net, ids())
    after = weights_of(net, ids(), Focus(SPANS, RELEVANCE, START), temperature=HOT)
    R = net.config.registers
    alpha = np.exp(np.array(RELEVANCE) / HOT)
    alpha /= alpha.sum()
    n = np.array([e - s for s, e in SPANS])
    # The first half of the layers is not changed.
    torch.testing.assert_close(after[0], before[0])
    old, new = before[1][0], after[1][0]
    torch.testing.assert_close(new[:, : R + START], old[:, : R + START])
    inside = torch.zeros(R + T, dtype=torch.bool)
    for s, e in SPANS:
        inside[R + s : R + e] = True
    old, new = old[:, R + START :], new[:, R + START :]
    torch.testing.assert_close(new[..., ~inside], old[..., ~inside], rtol=1e-4, atol=1e-7)
    total = old[..., inside].sum(dim=-1)
    for d, (s, e) in enumerate(SPANS):
        own_old, own_new = old[..., R + s : R + e], new[..., R + s : R + e]
        # Each token of document d has α_d / mean × C of what it had, C = Σ n a / Σ n α.
        mean, c = own_old.mean(dim=-1), total / float((n * alpha).sum())
        torch.testing.assert_close(own_new, own_old * (alpha[d] * c / mean)[..., None], rtol=1e-4, atol=1e-7)


def test_at_the_paper_s_temperature_the_most_relevant_document_has_all():
    net = model()
    before = weights_of(net, ids())[1][0, :, START:]
    after = weights_of(net, ids(), Focus(SPANS, RELEVANCE, START))[1][0, :, START:]
    inside = sum(before[..., s:e].sum(dim=-1) for s, e in SPANS)
    torch.testing.assert_close(after[..., slice(*SPANS[1])].sum(dim=-1), inside)
    assert after[..., 1:4].max() == after[..., 8:12].max() == 0


def test_each_sequence_of_a_batch_has_its_own_documents():
    net, both = model(), ids(2)
    focuses = Focus(SPANS, RELEVANCE, START), Focus(((2, 6), (6, 7)), (0.5, 0.1), 10)
    together = weights_of(net, both, *focuses, temperature=HOT)
    for b in range(2):
        alone = weights_of(net, both[b : b + 1], focuses[b], temperature=HOT)
        torch.testing.assert_close(together[1][b], alone[1][0])


def test_a_document_behind_a_window_takes_no_part():
    net = model(window=9)
    before = weights_of(net, ids())[1][0, :, START:]
    after = weights_of(net, ids(), Focus(SPANS, RELEVANCE, START), temperature=HOT)[1][0, :, START:]
    assert before[..., slice(*SPANS[0])].max() == after[..., slice(*SPANS[0])].max() == 0
    # The last query sees the last document alone, and from its third token on: nothing to deal out.
    torch.testing.assert_close(after[:, -1], before[:, -1], rtol=1e-4, atol=1e-7)
    assert after.isfinite().all()


def test_equal_attention_and_relevance_change_nothing_and_the_model_is_left_as_it_was():
    net = model()
    for block in net.blocks:
        nn.init.zeros_(block.attention.q_proj.weight)
    with torch.no_grad():
        plain = net(ids())
        with reweighted(net, [Focus(SPANS, (0.2, 0.2, 0.2), START)]):
            torch.testing.assert_close(net(ids()), plain)
        with reweighted(net, [Focus(SPANS, RELEVANCE, START)]):
            assert (net(ids())[:, START:] - plain[:, START:]).abs().max() > 1e-3
            torch.testing.assert_close(net(ids())[:, :START], plain[:, :START])
        assert torch.equal(net(ids()), plain)


def copier(gold: int) -> tuple[Decoder, Question]:
    """One head that reads where it looks: attention is uniform, values and the head say the token that was read."""
    net = build_model(tiny.model(vocab_size=16, d_model=16, n_heads=1, n_layers=2, max_seq_len=T))
    with torch.no_grad():
        net.embedding.weight.copy_(torch.eye(16))
        net.head.weight.copy_(torch.eye(16))
        for block in net.blocks:
            own = block.attention
            for proj in (own.q_proj, own.k_proj):
                proj.weight.zero_()
            own.v_proj.weight.copy_(torch.eye(16))
            own.o_proj.weight.copy_(4 * torch.eye(16) if block is net.blocks[1] else torch.zeros(16, 16))
            for parameter in block.mlp.parameters():
                parameter.zero_()
    tokens = [0, 2, 2, 2, 0, 3, 3, 0, 4, 4, 4, 4, 0, 0, 0]
    answer = (2, 3, 4)[gold]
    return net, Question(tuple(tokens), (14,), (answer,), SPANS, (gold,), task="copy")


@pytest.mark.parametrize("gold", [0, 1, 2])
def test_a_copying_model_says_what_it_is_made_to_look_at(gold: int):
    net, question = copier(gold)
    relevance = tuple(float(d == gold) for d in range(3))
    (found,) = document_attention(net, [question], dummy=[0])
    found.raw_LD["mass"][:], found.dummy_LD["mass"][:] = relevance, 0.0
    effect = reweighting_effect(net, [question], dummy=[0], found=[found])
    assert effect.is_right[0][1] and effect.log_p[0][1] > effect.log_p[0][0]
    with torch.no_grad():
        plain = float(net(torch.tensor([question.ids]))[0, 14].double().log_softmax(dim=-1)[question.answer[0]])
    assert effect.log_p[0][0] == pytest.approx(plain, abs=1e-6)
    rows = {(r.metric, r.stage): r.value for r in effect.rows()}
    assert rows["reweighting_gain", None] == pytest.approx(effect.log_p[0][1] - plain, abs=1e-6)
    assert rows["reweighted_answer", "reweighted"] == 1


def test_items_are_asked_and_every_row_is_defined_in_the_metrics_page():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition("(`gatelab.evals.middle`")[2].partition("\n## ")[0]
    net = build_model(tiny.model(vocab_size=4096, max_seq_len=64, gate="sdpa-headwise"))
    questions = [of_item(open_task("cite").item(Knobs(length=64, distractors=4), i)) for i in range(3)]
    effect = reweighting_effect(net, questions, dummy=[64, 65])
    assert all(math.isfinite(x) for pair in effect.log_p for x in pair)
    for row in effect.rows():
        assert f"| `{row.metric}` | {row.unit} |" in section, row.metric
        assert row.task == "cite"


def test_what_cannot_be_reweighted_is_refused():
    focus = Focus(SPANS, RELEVANCE, START)

    def entering(net: nn.Module, **options: Any) -> None:
        with reweighted(net, [focus], **options):
            pass

    for net, options, message in (
        (nn.Linear(2, 2), {}, "Linear is no decoder of Gatelab"),
        (model(), {"layers": [2]}, "layer 2: this model has layers 0 to 1"),
        (model(), {"temperature": 0.0}, "expected a number above 0"),
        (model(softmax=Clipped()), {}, "takes a softmax, with or without a slot"),
        (model(gate="scores-headwise"), {}, "nothing on the scores"),
    ):
        with pytest.raises(ValueError, match=message):
            entering(net, **options)
    net = model()
    with reweighted(net, [focus]):
        with pytest.raises(ValueError, match="1 focuses and 2 sequences; give one each"):
            net(ids(2))
        with pytest.raises(ValueError, match="without a cache"):
            net(ids(), cache=net.new_cache(1))
    with pytest.raises(ValueError, match="have to end before the query"):
        Focus(SPANS, RELEVANCE, 11)
    with pytest.raises(ValueError, match="3 documents and 1 relevances"):
        Focus(SPANS, (0.1,), START)
    with pytest.raises(ValueError, match="expected finite numbers"):
        Focus(SPANS, (0.1, math.nan, 0.2), START)
    with pytest.raises(ValueError, match="no questions"):
        reweighting_effect(net, [], dummy=[0])
