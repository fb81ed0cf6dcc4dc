"""Two items, asked of a real checkpoint by HFLM and by us: what every test run has time for of test_harness_smollm2.py."""

import logging
import math

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gatelab.evals.harness.external import ExternalPasses
from gatelab.evals.harness.language_model import GatelabLM
from gatelab.evals.harness.tokens import Tokens
from gatelab.models.external import Loading, load_external

ITEMS = (
    ("The capital of France is", (" Paris", " a loaf of bread")),
    ("Question: What do bees make?\nAnswer:", (" Honey", " Concrete")),
)


def test_two_items_score_as_hflm_scores_them(smollm2_opened):
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = load_external(smollm2_opened.source.title, Loading(head=True))
    asked = [
        Instance("loglikelihood", {}, (context, answer), n, ("t", i, 1))
        for i, (context, answers) in enumerate(ITEMS)
        for n, answer in enumerate(answers)
    ]
    theirs = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    passes = ExternalPasses(loaded.model)
    scored = GatelabLM(passes, Tokens(loaded.tokenizer, passes.n_ids), batch_size=4).loglikelihood(asked)
    for (log_p, is_greedy), (log_p_theirs, is_greedy_theirs) in zip(scored, expected, strict=True):
        # Of a few tokens in float32.
        assert math.isclose(log_p, log_p_theirs, abs_tol=2e-3) and is_greedy == is_greedy_theirs
    assert scored[0] > scored[1] and scored[2] > scored[3]
