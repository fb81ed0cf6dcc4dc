"""Prompts: our own tasks in words, scores that compare a whole answer, and a haystack that grows until it fits."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from prompt_cases import TASKS_OF_PROMPTS, setting

from gatelab.data import LoadedTokenizer
from gatelab.data.prepare import train_bpe
from gatelab.tasks import TASKS, Knobs, TaskError, open_task
from gatelab.tasks.in_words import words_of
from gatelab.tasks.options import options_of
from gatelab.tasks.prompt import ROOM, Prompt, PromptTask, Setting, begins, fitted_prompt
from gatelab.tasks.text import as_text


def own(name: str, length: int = 600, depth: float | None = None, **knobs: int) -> PromptTask:
    return words_of(open_task(name), Knobs(**knobs), length=length, depth=depth)


@pytest.fixture(scope="module")
def in_bpe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], int]:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    texts = [t.make(setting(name, 2000), 0, 20).read().encode() for name, t in TASKS_OF_PROMPTS.items()]
    train_bpe(iter(texts), 600, path)
    tokenizer = LoadedTokenizer(path)
    return lambda text: len(tokenizer.encode([text.encode()])[0])


@pytest.mark.parametrize("name", TASKS)
def test_a_task_of_ours_says_as_a_prompt_what_it_says_as_text(name: str):
    prompt = own(name).make(Setting(), 3, 140)
    item = open_task(name).item(Knobs(length=140), 3)
    text = as_text(open_task(name), item)
    # Noise may stand behind the last answer.
    assert (
        prompt.whole == text.text[: text.answers[-1][1]]
        and prompt.evidence == text.evidence
        and prompt.depth == item.depth
    )
    assert prompt.options[0] == prompt.answers and len(prompt.options) == len(options_of(item))
    assert len(set(prompt.options)) == len(prompt.options)
    assert prompt.read(0) == text.text[: text.answers[0][0]]
    assert all(len(option) == len(prompt.answers) for option in prompt.options)


@pytest.mark.parametrize("name", TASKS)
def test_who_writes_the_answers_is_right_and_who_writes_an_option_is_wrong(name: str):
    prompt = fitted_prompt(own(name), Setting(length=600), 1, len)
    assert begins(prompt, prompt.answers) == 1
    assert begins(prompt, tuple(f"\n {a.strip()}. And so on" for a in prompt.answers)) == 1
    assert all(begins(prompt, option) == 0 for option in prompt.options[1:])


def test_a_word_that_goes_on_is_another_word():
    prompt = fitted_prompt(own("needle"), Setting(length=600), 0, len)
    assert begins(prompt, (prompt.answers[0] + "1",)) == 0 and begins(prompt, (prompt.answers[0] + ",",)) == 1


@pytest.mark.parametrize("name", [*TASKS, *TASKS_OF_PROMPTS])
def test_lengths_are_counted_in_the_tokens_of_a_tokenizer_and_the_answer_has_room(
    name: str, in_bpe: Callable[[str], int]
):
    for count, length in ((in_bpe, 1800), (lambda text: len(text.encode()), 12_000)):
        if name in TASKS:
            prompt = fitted_prompt(own(name, length), Setting(length=length), 1, count)
            n = count(prompt.whole) + ROOM
        else:
            prompt = fitted_prompt(TASKS_OF_PROMPTS[name], setting(name, length), 1, count)
            n = count(prompt.read()) + prompt.n_new
        longest = max((count(prompt.read(-1, o) + o[-1]) for o in prompt.options), default=0)
        # A few words of noise, or a document, less than there is room for. Files end before.
        assert longest <= length and (0.8 * length < n <= length or "qa" in name)


def test_budget_and_options_both_count():
    task = TASKS_OF_PROMPTS["middle/kv"]

    def briefly(given: Setting, index: int, size: int) -> Prompt:
        return replace(task.make(given, index, size), n_new=1)

    prompt = fitted_prompt(replace(task, make=briefly), Setting(length=1000), 0, len)
    assert len(prompt.read()) + len(prompt.options[0][0]) <= 1000


def test_the_greatest_haystack_is_found_in_few_steps():
    task, sizes = TASKS_OF_PROMPTS["middle/kv"], []

    def watched(given: Setting, index: int, size: int) -> Prompt:
        sizes.append(size)
        return task.make(given, index, size)

    for length in (800, 5_000, 60_000):
        sizes.clear()
        prompt = fitted_prompt(replace(task, make=watched), Setting(length=length), 0, len)
        assert len(task.make(Setting(), 0, prompt.factors["n_pairs"] + 1).read()) + 100 > length
        assert len(sizes) < 10


def test_a_depth_and_a_length_are_those_of_the_task():
    assert fitted_prompt(own("needle", depth=1.0), Setting(length=600), 0, len).depth == 1
    with pytest.raises(TaskError, match="has no one place"):
        own("aggregate", depth=0.5).check(Setting(depth=0.5))
    with pytest.raises(TaskError, match="its shortest item has"):
        fitted_prompt(own("cite"), Setting(length=100), 0, len)
