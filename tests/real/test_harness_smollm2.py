"""SmolLM2-135M-Instruct asked by the harness: by HFLM, by us with transformers' code, and by us with ours."""

import logging
import math
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gatelab.evals.harness.external import ExternalPasses
from gatelab.evals.harness.language_model import GatelabLM
from gatelab.evals.harness.own import OwnPasses
from gatelab.evals.harness.tasks import Asking, find, load
from gatelab.evals.harness.tokens import Tokens
from gatelab.models.external import External
from gatelab.models.interop import import_model, load_model

BENCH = Path(__file__).parents[3] / "shared" / "data" / "bench"
TASKS = ("hellaswag", "arc_challenge", "lambada_openai", "blimp_adjunct_island", "mmlu_anatomy")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> list[Instance]:
    """The first two problems of gsm8k behind two worked ones, the answers being written."""
    if not (BENCH / "gsm8k" / "test.jsonl").is_file():
        pytest.skip("benchmark files are not beside this repository, in ../shared/data/bench")
    place = tmp_path_factory.mktemp("definitions")
    asking = Asking(("gsm8k",), BENCH, shots=2)
    (task,) = load(asking, find(asking, print, draft=place, tokenizer=place)).tasks.values()
    task.set_config("generation_kwargs", dict(task.get_config("generation_kwargs")) | {"max_gen_toks": 24})
    task.build_all_requests(limit=2)
    return list(task.instances)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Instance]:
    """The first four items of each task."""
    if not BENCH.is_dir():
        pytest.skip("benchmark files are not beside this repository, in ../shared/data/bench")
    place = tmp_path_factory.mktemp("definitions")
    asking = Asking(TASKS, BENCH)
    found = []
    for task in load(asking, find(asking, print, draft=place, tokenizer=place)).tasks.values():
        task.build_all_requests(limit=4)
        found += task.instances
    return found


@pytest.fixture(scope="module")
def expected(smollm2_with_head: External, asked: list[Instance]) -> list[tuple[float, bool]]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = HFLM(pretrained=smollm2_with_head.model, tokenizer=smollm2_with_head.tokenizer, batch_size=8)
    return lm.loglikelihood(asked, disable_tqdm=True)


@pytest.fixture(scope="module")
def smollm2_with_head(smollm2_opened) -> External:
    from gatelab.models.external import Loading, load_external

    return load_external(smollm2_opened.source.title, Loading(head=True))


def agree(lm: GatelabLM, asked: list[Instance], expected: list[tuple[float, bool]]) -> None:
    for (log_p, is_greedy), (log_p_theirs, is_greedy_theirs) in zip(lm.loglikelihood(asked), expected, strict=True):
        # Of up to a hundred tokens in float32.
        assert math.isclose(log_p, log_p_theirs, abs_tol=2e-3) and is_greedy == is_greedy_theirs


def test_it_scores_as_hflm_does(smollm2_with_head: External, asked: list[Instance], expected: list) -> None:
    passes = ExternalPasses(smollm2_with_head.model)
    assert passes.shares and passes.pads and passes.heads_apart
    agree(GatelabLM(passes, Tokens(smollm2_with_head.tokenizer, passes.n_ids), batch_size=8), asked, expected)


def test_as_a_model_of_ours_it_scores_as_hflm_does(
    smollm2_with_head: External, smollm2_opened, asked: list[Instance], expected: list, tmp_path: Path
) -> None:
    import_model(smollm2_opened.source.title, tmp_path / "ours")
    passes = OwnPasses(load_model(tmp_path / "ours"))
    agree(GatelabLM(passes, Tokens(smollm2_with_head.tokenizer, passes.n_ids), batch_size=8), asked, expected)


def test_it_writes_what_hflm_has_it_write(smollm2_with_head: External) -> None:
    contexts = ["The capital of France is", "def shut(gate):\n", "One, two, three, four,"]
    given = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    requests = [Instance("generate_until", {}, (c, dict(given)), 0, ("t", i, 1)) for i, c in enumerate(contexts)]
    theirs = HFLM(pretrained=smollm2_with_head.model, tokenizer=smollm2_with_head.tokenizer, batch_size=2)
    passes = ExternalPasses(smollm2_with_head.model)
    lm = GatelabLM(passes, Tokens(smollm2_with_head.tokenizer, passes.n_ids), batch_size=2)
    written = lm.generate_until(requests)
    assert written == theirs.generate_until(requests, disable_tqdm=True) and all(written)


def test_it_writes_the_problems_of_gsm8k_as_hflm_does(
    smollm2_with_head: External, smollm2_opened, problems: list[Instance], tmp_path: Path
) -> None:
    assert [r.request_type for r in problems] == ["generate_until"] * 2
    assert all(r.args[0].count("Question:") == 3 and "Question:" in r.args[1]["until"] for r in problems)
    tokenizer = smollm2_with_head.tokenizer
    theirs = HFLM(pretrained=smollm2_with_head.model, tokenizer=tokenizer, batch_size=2)
    expected = theirs.generate_until(problems, disable_tqdm=True)
    import_model(smollm2_opened.source.title, tmp_path / "ours")
    for passes in (ExternalPasses(smollm2_with_head.model), OwnPasses(load_model(tmp_path / "ours"))):
        written = GatelabLM(passes, Tokens(tokenizer, passes.n_ids), batch_size=2).generate_until(problems)
        assert written == expected and all(written)
