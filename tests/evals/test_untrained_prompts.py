"""A tiny model before training, asked every task that is text alone: what it scores is chance, up to what so few items can say."""

import re

import pytest
import tiny
import torch
from fake_passes import OfBytes
from prompt_cases import ESSAY, held
from scipy.stats import binomtest

from gatelab.evals.harness.own import OwnPasses
from gatelab.evals.harness.tokens import Tokens
from gatelab.evals.own_asking import PROMPTS
from gatelab.evals.own_rows import rows_of_said
from gatelab.evals.own_text import ask_prompts
from gatelab.models import build_model
from gatelab.tasks.prompt import Setting

V, N_ITEMS = 2**15, 24
CHOICES = (
    "ruler/niah_single_1", "ruler/niah_single_2", "ruler/niah_single_3", "ruler/niah_multikey_1", "ruler/niah_multikey_2",
    "ruler/niah_multikey_3", "middle/kv", "middle/kv_aware", "citations/one", "citations/three", "citations/qasper",
)  # fmt: skip


class OfWords(OfBytes):
    """A tokenizer of words with the blank before them, and of marks; ids are given in the order in which words come."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def _ids(self, text: str) -> list[int]:
        pieces = re.findall(r" ?[^\W_]+| ?[^\w\s]|\s|_", text)
        return [self.words.setdefault(piece, len(self.words)) for piece in pieces]

    def decode(self, ids: list[int], **_given: object) -> str:
        said = list(self.words)
        return "".join(said[i] if i < len(said) else "?" for i in ids)


@pytest.fixture(scope="module")
def passes() -> OwnPasses:
    model = build_model(tiny.model(vocab_size=V, max_seq_len=1100, d_model=16, n_layers=1, n_heads=1), seed=3)
    return OwnPasses(model.eval())


def is_compatible(total: float, n: int, share: float) -> bool:
    interval = binomtest(round(total), n).proportion_ci(0.999)
    return interval.low <= share <= interval.high


@pytest.mark.parametrize("name", PROMPTS)
def test_before_training_a_model_scores_chance(name: str, passes: OwnPasses):
    torch.manual_seed(0)
    task, tokens = PROMPTS[name], Tokens(OfWords(), V)
    if task.package:
        pytest.importorskip(task.package)
    setting = Setting(length=700, essay=ESSAY, held=held(task))
    n = min(N_ITEMS, len(setting.held)) if task.needs == "rows" else N_ITEMS
    said = ask_prompts(passes, tokens, task, setting, n, batch_size=16, new_tokens=12)
    of = {r.metric: r.value for r in rows_of_said(said, task, setting, run="r")}
    assert of["items"] == n and of["items_refused"] == 0 and of["answer_nan"] == 0 and len(tokens.tokenizer.words) < V
    assert ("choice" in of) == (name in CHOICES)
    if "choice" in of:
        chosen = [s for s in said if s.choice is not None]
        assert is_compatible(sum(s.choice.credit for s in chosen), len(chosen), of["choice_chance"])
    # What is written is no answer: chance is next to nothing where it is known, and an answer is hit by luck where it is not.
    if all(s.prompt.floor is not None for s in said):
        assert binomtest(round(sum(s.value for s in said)), n).proportion_ci(0.999).low <= of["answer_chance"]
    assert of[task.metric] < 0.1
