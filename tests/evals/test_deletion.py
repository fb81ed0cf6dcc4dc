"""Deletion: a model that copies its evidence loses its answer with it, one that ignores the text loses nothing."""

import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from gatelab.data import ByteTokenizer
from gatelab.evals.deletion import TASK_NOISE, faithfulness, other_spans
from gatelab.evals.next_token import NextToken
from gatelab.evals.question import Question, of_item, of_text
from gatelab.models import build_model
from gatelab.tasks import VOCAB_SIZE, Knobs, open_task

T = 64
SURE = 9.0


class Copier(NextToken):
    """After a token that was read before, says what followed it there, with logit 9; else finds all tokens alike."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1), VOCAB_SIZE, None)

    def states(self, ids: list[int]) -> list[int]:
        return ids

    def logits(self, states: list[int], positions: Tensor) -> Tensor:
        out_NV = torch.zeros(len(positions), self.n_ids)
        for row_V, p in zip(out_NV, positions.tolist(), strict=True):
            earlier = [i for i in range(p) if states[i] == states[p]]
            if earlier:
                row_V[states[earlier[0] + 1]] = SURE
        return out_NV


def questions(name: str = "multikey", n: int = 8, **knobs: int) -> list[Question]:
    return [of_item(open_task(name).item(Knobs(**{"length": T, "distractors": 6, **knobs}), i)) for i in range(n)]


def test_a_model_that_copies_loses_its_answer_with_the_evidence_and_not_with_other_text():
    found = faithfulness(Copier(), questions(), noise=TASK_NOISE)
    known, unknown = SURE - math.log(math.e**SURE + VOCAB_SIZE - 1), -math.log(VOCAB_SIZE)
    for deleted in found.deleted:
        assert deleted.log_p == pytest.approx(known, abs=1e-5)
        assert deleted.without_evidence == pytest.approx(unknown, abs=1e-5)
        assert deleted.without_other == pytest.approx(known, abs=1e-5)
    rows = {r.metric: r for r in found.rows("r", 3)}
    for metric, value in (
        ("evidence_drop", known - unknown),
        ("control_drop", 0),
        ("evidence_excess", known - unknown),
    ):
        assert rows[metric].value == pytest.approx(value, abs=1e-5)
    assert rows["evidence_drop_low"].value == pytest.approx(known - unknown, abs=1e-4)
    assert {(r.task, r.length, r.step, r.unit) for r in rows.values()} == {("multikey", T, 3, "nats")}


def test_a_model_that_ignores_the_text_loses_nothing():
    model = build_model(tiny.model(vocab_size=VOCAB_SIZE, max_seq_len=T))
    for block in model.blocks:
        nn.init.zeros_(block.attention.o_proj.weight)
    found = faithfulness(model, questions(), noise=TASK_NOISE)
    assert all(d.evidence_drop == d.control_drop == 0 for d in found.deleted)
    assert all(r.value == 0 for r in found.rows())


def test_log_probabilities_are_those_of_the_edited_texts():
    model = build_model(tiny.model(vocab_size=VOCAB_SIZE, max_seq_len=T, gate="sdpa-headwise"), seed=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    (question,) = questions("multivalue", 1)
    (deleted,) = faithfulness(model, [question], noise=[64], seed=5).deleted

    def log_p(spans: tuple[tuple[int, int], ...]) -> float:
        ids = torch.tensor([question.ids])
        for start, end in spans:
            ids[0, start:end] = 64
        with torch.no_grad():
            log_p_TV = model(ids)[0].double().log_softmax(dim=-1)
        return sum(float(log_p_TV[p, t]) for p, t in zip(question.asked, question.answer, strict=True))

    assert deleted.log_p == pytest.approx(log_p(()), abs=1e-4)
    assert deleted.without_evidence == pytest.approx(log_p(question.evidence), abs=1e-4)
    assert deleted.without_other == pytest.approx(log_p(deleted.spans), abs=1e-4)
    assert deleted.without_evidence != deleted.log_p != deleted.without_other


def test_the_control_takes_as_much_and_never_the_evidence_the_question_or_the_beginning():
    for name in ("needle", "multikey", "cite", "multivalue"):
        (question,) = questions(name, 1, length=96)
        lengths = sorted(e - s for s, e in question.evidence)
        taken: set[int] = set()
        for seed in range(200):
            spans = other_spans(question, np.random.default_rng(seed))
            assert sorted(e - s for s, e in spans) == lengths
            tokens = [t for s, e in spans for t in range(s, e)]
            assert len(set(tokens)) == len(tokens)
            taken |= set(tokens)
        barred = {t for s, e in (*question.evidence, *question.kept) for t in range(s, e)}
        assert not taken & barred and max(taken) < question.asked[0]
        # Anywhere else: nearly every place is taken by one seed or another.
        assert len(taken) > 0.8 * (question.asked[0] - len(barred))


def test_the_same_seed_takes_the_same_whatever_else_is_asked():
    both = faithfulness(Copier(), questions(n=2), noise=TASK_NOISE, seed=1).deleted
    (one,) = faithfulness(Copier(), questions(n=1), noise=TASK_NOISE, seed=1).deleted
    assert both[0] == one
    other = faithfulness(Copier(), questions(n=2), noise=TASK_NOISE, seed=2).deleted
    assert [d.spans for d in other] != [d.spans for d in both]


def test_text_is_asked_in_the_tokens_of_a_transformers_model():
    transformers = pytest.importorskip("transformers")
    tokenizer = ByteTokenizer()

    def encode(text: str) -> list[int]:
        return tokenizer.encode([text.encode()])[0].tolist()

    config = transformers.LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.4)
    task = open_task("needle")
    item = task.item(Knobs(length=40, distractors=2), 0)
    question = of_text(task, item, encode, bos_id=tokenizer.bos_id, max_tokens=512)
    (deleted,) = faithfulness(model, [question], noise=encode(" the a of"), seed=0).deleted
    ids = torch.tensor([question.ids])
    with torch.no_grad():
        log_p_TV = model.eval()(ids).logits[0].double().log_softmax(dim=-1)
    expected = sum(float(log_p_TV[p, ids[0, p + 1]]) for p in question.asked)
    assert deleted.log_p == pytest.approx(expected, abs=1e-4)
    assert math.isfinite(deleted.evidence_drop) and math.isfinite(deleted.control_drop)


def test_what_cannot_be_deleted_is_refused():
    (question,) = questions(n=1)
    for asked, noise, message in (
        ([], [64], "0 questions and 1 ids of noise"),
        ([question], [], "1 questions and 0 ids of noise"),
        ([question], [VOCAB_SIZE], f"noise has the id {VOCAB_SIZE}"),
        (
            [Question((0, 5, 6, 7), (3,), (1,), ((1, 3),), (0,), ((0, 1), (3, 4)))],
            [64],
            "no 2 tokens side by side are left",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            faithfulness(Copier(), asked, noise=noise)


def test_every_row_is_defined_in_the_metrics_page():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition("(`gatelab.evals.deletion`")[2].partition("\n## ")[0]
    for row in faithfulness(Copier(), questions(n=2), noise=TASK_NOISE).rows():
        assert f"| `{row.metric}` | {row.unit} |" in section, row.metric
