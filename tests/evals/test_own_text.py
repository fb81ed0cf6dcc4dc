"""Our tasks put to a language model: who reads the text is right, who knows nothing scores chance, nothing is cut or hidden."""

import math
import re

import pytest
import torch
from fake_passes import Fake, V
from prompt_cases import TASKS_OF_PROMPTS, setting
from torch import Tensor

from gatelab.evals.harness.passes import Written
from gatelab.evals.own_rows import items_of_said, rows_of_said
from gatelab.evals.own_text import Said, ask_prompts
from gatelab.tasks import Knobs, TaskError, open_task
from gatelab.tasks.in_words import words_of
from gatelab.tasks.prompt import PromptTask

QUESTIONS = (
    (r"(?s).*The code of (\S+) is", r"The code of {} is (\d+)\.", " {}"),
    (r"(?s).*The special magic \w+ for (\S+) mentioned in the provided text is", r"for {} is: (\S+)\.", " {}"),
    (r'(?s).*Key: "(\S+)"\nCorresponding value:', r'"{}": "(\S+)"', ' "{}"'),
)


class Oracle(Fake):
    """Reads the question at the end of a text, and answers from the text before it."""

    def right(self, text: str) -> str:
        for question, fact, form in QUESTIONS:
            if match := re.match(question, text):
                return match[0] + form.format(re.search(fact.format(re.escape(match[1])), text)[1])
        raise AssertionError(text[-200:])

    def next(self, row):
        full = self.tokens.encode([self.right(self.tokens.tokenizer.decode(row))])[0]
        return torch.tensor([*full[1 : len(row) + 1], *[0] * (len(row) - len(full) + 1)])

    def write(self, prompts, n_tokens, sampling, stop_ids, is_done, beginning=None):
        out = []
        for prompt in prompts:
            self.longest = max(self.longest, len(prompt) + n_tokens)
            out.append(
                Written(self.tokens.encode([self.right(self.tokens.tokenizer.decode(prompt))])[0][len(prompt) :], True)
            )
        return out


class Uniform(Fake):
    """Finds everything equally likely, or, with another number, nothing at all."""

    value = 0.0

    def next(self, row):
        return torch.zeros(len(row))

    def logits(self, x_ND: Tensor) -> Tensor:
        return torch.full((len(x_ND), V), self.value)

    def write(self, prompts, n_tokens, sampling, stop_ids, is_done, beginning=None):
        return [Written([0] * n_tokens, math.isfinite(self.value)) for _ in prompts]


def task_of(name: str, length: int) -> PromptTask:
    return TASKS_OF_PROMPTS.get(name) or words_of(open_task(name), Knobs(), length=length, depth=None)


def asked(passes: Fake, name: str, n: int = 4, length: int = 1600, **given: int) -> tuple[list[Said], dict[str, float]]:
    task = task_of(name, length)
    setting_of = setting(name if name in TASKS_OF_PROMPTS else "middle/kv", length)
    said = ask_prompts(passes, passes.tokens, task, setting_of, n, batch_size=3, **given)
    rows = rows_of_said(said, task, setting_of, run="r")
    assert {(r.source, r.task, r.length, r.run) for r in rows} == {("tasks", name, length, "r")}
    return said, {r.metric: r.value for r in rows}


ANSWERABLE = ("needle", "multiquery", "ruler/niah_single_1", "ruler/niah_multikey_3", "middle/kv")


@pytest.mark.parametrize("name", ANSWERABLE)
def test_an_oracle_that_reads_the_text_is_always_right(name: str):
    passes = Oracle()
    said, of = asked(passes, name)
    score = task_of(name, 1600).metric
    assert of[score] == of["choice"] == 1 and of["items"] == 4 and of["items_refused"] == 0
    assert of["choice_margin"] > 30 and of["answer_ties"] == of["answer_nan"] == of["choice_nan"] == 0
    assert all(s.n_tokens <= 1600 for s in said) and passes.longest <= 1600


@pytest.mark.parametrize("name", ANSWERABLE)
def test_who_finds_everything_equally_likely_scores_chance_and_is_never_right(name: str):
    _, of = asked(Uniform(), name)
    # UUIDs, numbers and words of one kind have one length here, so all options tie.
    assert of["choice"] == of["choice_chance"] == 1 / 8 and of["choice_ties"] == of["answer_ties"] == 1
    assert of[task_of(name, 1600).metric] == 0 and of["choice_margin"] == pytest.approx(0)


def test_what_is_tied_is_wrong_even_where_it_was_written():
    class Lucky(Uniform):
        write = Oracle.write
        right = Oracle.right

    said, of = asked(Lucky(), "needle")
    assert all(s.written == [s.prompt.answers[0]] for s in said) and of["exact_match"] == 0 and of["answer_ties"] == 1


def test_no_number_is_never_right_and_is_counted():
    passes = Uniform()
    passes.value = math.nan
    said, of = asked(passes, "middle/kv")
    assert of["answer_nan"] == of["choice_nan"] == 1 and of["choice"] == of["best_subspan_em"] == 0
    assert "choice_margin" not in of and {s.written[0] for s in said} == {""}


def test_a_tokenizer_that_joins_the_answer_has_those_items_refused_and_counted():
    """Of two bytes a token, a question of an odd length ends in half of one."""
    passes = Oracle(n=2)
    said, of = asked(passes, "needle", n=12, length=700)
    refused = [s for s in said if s.prompt is None]
    assert 0 < len(refused) < 12 and of["items_refused"] == len(refused) and of["items"] == 12 - len(refused)
    assert all("the tokenizer joins ' " in s.problem for s in refused)
    assert of["exact_match"] == 1 and all(len(s.prompt.read()) % 2 == 0 for s in said if s.prompt is not None)
    items = items_of_said(said, task_of("needle", 700), setting("middle/kv", 700), run="r")
    assert [i.correct for i in items] == [None if s.prompt is None else True for s in said]
    assert items[refused[0].index].as_dict()["score"] == "nan" and "joins" in items[refused[0].index].factors["refused"]


def test_items_that_do_not_fit_are_refused_and_a_length_beyond_the_model_is_an_error():
    _, of = asked(Oracle(), "middle/kv", length=300)
    assert of == {"items": 0, "items_refused": 4}
    with pytest.raises(ValueError, match="--lengths 1600, and this model has positions for 900"):
        asked(Oracle(max_tokens=900), "needle")
    with pytest.raises(TaskError, match="its haystack is an essay"):
        task, given = TASKS_OF_PROMPTS["ruler/niah_single_2"], setting("ruler/niah_single_2", essay=())
        ask_prompts(Oracle(), Oracle().tokens, task, given, 1, batch_size=1)


def test_a_budget_of_ones_own_leaves_more_room_for_the_text():
    few, many = (asked(Oracle(), "middle/kv", new_tokens=n)[0][0].prompt for n in (40, 700))
    assert few.n_new == 40 and few.factors["n_pairs"] > many.factors["n_pairs"]


def test_rows_of_one_length_and_one_budget_share_a_pass_where_nothing_may_stand_before():
    batches = []

    class Strict(Oracle):
        pads = False

        def write(self, prompts, n_tokens, sampling, stop_ids, is_done, beginning=None):
            batches.append({len(p) for p in prompts})
            return super().write(prompts, n_tokens, sampling, stop_ids, is_done)

    _, of = asked(Strict(), "needle", n=8)
    assert of["exact_match"] == 1 and all(len(lengths) == 1 for lengths in batches) and len(batches) > 1


def test_an_item_says_where_its_evidence_is_and_what_guessing_scores():
    task, given = TASKS_OF_PROMPTS["ruler/niah_multikey_2"], setting("ruler/niah_multikey_2", 1600)
    said = ask_prompts(Oracle(), Oracle().tokens, task, given, 1, batch_size=1)
    (item,) = items_of_said(said, task, given, run="r")
    ((start, end),) = item.factors["evidence"]
    assert item.answer in said[0].prompt.whole[start:end] and item.correct and item.score == 1
    assert item.factors["n_distractors"] == item.factors["n_haystack"] == round(1 / item.factors["floor"]) - 1
