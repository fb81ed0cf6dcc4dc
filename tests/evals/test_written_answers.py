"""Answers that are written: the gold one's bits against the definition in float64, and outputs that copy the prompt."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

from asked import both, log_p
from bench_slice import BENCH

from gatelab.evals.harness import written
from gatelab.evals.harness.evaluate import evaluate
from gatelab.evals.harness.language_model import GatelabLM
from gatelab.evals.harness.tasks import Asking
from gatelab.evals.harness.tokens import Tokens


def test_gold_answers_of_gsm8k_have_bits_a_byte_and_copies_are_counted(tmp_path: Path):
    found, _ = both(tmp_path, max_position_embeddings=512)
    made = evaluate(lambda: found, Asking(("gsm8k",), BENCH, shots=1), batch_size=2, new_tokens=4)
    rows = {(r.task, r.metric): r for r in made.rows}
    assert rows["gsm8k", "copied_from_start"].value == 0
    row = rows["gsm8k", "answer_bits_per_byte"]
    assert row.unit == "bits/byte" and row.source == "harness"
    assert [line["metric"] for line in made.records if line["task"] == "gsm8k"].count("answer_bits_per_byte") == 1
    assert row.value > 1


def test_bits_are_those_of_the_definition(tmp_path: Path):
    found, sides = both(tmp_path)
    pairs = [("a gate may", "close and stay"), ("a sink", "where the first é stands")]
    expected = 0.0
    for context, answer in pairs:
        ids, whole = (found.tokenizer(text).input_ids for text in (context, f"{context} {answer}"))
        expected -= log_p(found.model, ids, whole[len(ids) :])[0] / math.log(2)
    expected /= sum(len(answer.encode()) for _, answer in pairs)
    for passes in sides.values():
        lm = GatelabLM(passes, Tokens(found.tokenizer, passes.n_ids), batch_size=2)
        assert written._bits_per_byte(lm, pairs, " ") == pytest.approx(expected, rel=1e-4)
        # An answer longer than the positions has no bits.
        assert written._bits_per_byte(lm, [("a", "gate " * 200)], " ") is None


def test_an_output_that_begins_as_the_prompt_does_is_a_copy():
    def rows(*texts: str, target: object = None) -> dict[str, float]:
        samples = [
            {"doc_id": i, "arguments": [("Answer the question: why?", {})], "resps": [[text]], "target": target}
            for i, text in enumerate(texts)
        ]
        config = SimpleNamespace(unsafe_code=True, target_delimiter=" ")
        task = SimpleNamespace(OUTPUT_TYPE="generate_until", config=config)
        return {r.metric: r.value for r in written.written_rows("m", None, {"t": task}, {"t": samples}, chat=False)}

    assert rows(" Answer the question of gates", "the question", "", "Answer the gate") == {"copied_from_start": 0.25}
