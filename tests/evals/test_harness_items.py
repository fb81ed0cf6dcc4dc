"""Items of benchmarks one by one, asked of random models by HFLM and by us: equal log-likelihoods, equal texts."""

from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

from asked import both
from bench_slice import BENCH, CHOSEN, WRITTEN, Requests, agrees, of_hflm, slice_of

FAMILIES = {
    "llama": {"architecture": "LlamaForCausalLM"},
    "qwen3": {"architecture": "Qwen3ForCausalLM", "begins": False, "head_dim": 8},
    "olmo2": {"architecture": "Olmo2ForCausalLM", "begins": False},
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Requests:
    return slice_of(tmp_path_factory.mktemp("definitions"), limit=3, shots=2, new_tokens=24)


def test_the_slice_is_the_harness_s_own_prompts_over_the_files(asked: Requests):
    assert {name: len(of) for name, of in asked.items()} == {
        "hellaswag": 12,
        "arc_easy": 11,
        "lambada_openai": 3,
        WRITTEN: 2,
    }
    assert all(request.request_type == "loglikelihood" for name in CHOSEN for request in asked[name])
    prompt, given = asked[WRITTEN][0].args
    assert prompt.count("Question:") == 3 and prompt.endswith("Answer:") and "Question:" in given["until"]
    assert (BENCH / "hellaswag" / "validation.jsonl").read_text(encoding="utf-8").count("\n") == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_every_item_is_scored_and_written_as_hflm_does(name: str, asked: Requests, tmp_path: Path):
    found, sides = both(tmp_path, max_position_embeddings=512, **FAMILIES[name])
    expected = of_hflm(found, asked, batch_size=4)
    assert len({round(log_p, 3) for log_p, _ in expected[0]}) > 20 and all(expected[1])
    for passes in sides.values():
        agrees(found, passes, asked, expected, batch_size=4, off=1e-3)
