"""Prompts that ask for citations: the gold documents say it, the others do not, and blind citing scores what is said."""

from itertools import combinations
from statistics import fmean

import pytest
from prompt_cases import held

from gatelab.tasks.cited import CITATIONS, judged
from gatelab.tasks.prompt import Prompt, PromptTask, Setting, fitted_prompt
from gatelab.tasks.vocabulary import KEYS, word


def setting(name: str, **changes: object) -> Setting:
    task = CITATIONS[name]
    return Setting(**({"length": 900, "held": held(task)} | changes))


def made(name: str, size: int = 9, index: int = 0, **changes: object) -> tuple[PromptTask, Prompt]:
    return CITATIONS[name], CITATIONS[name].make(setting(name, **changes), index, size)


@pytest.mark.parametrize("name", CITATIONS)
def test_the_gold_documents_say_it_and_no_other_does(name: str):
    for index in range(5):
        task, prompt = made(name, index=index)
        gold = [prompt.whole[s:e] for s, e in prompt.evidence]
        others = [prompt.whole[s:e] for s, e in prompt.distractors]
        assert len(gold) == len(prompt.factors["gold"]) and len(gold) + len(others) == 9
        assert [int(text.split("]")[0].removeprefix("Document [")) for text in gold] == prompt.factors["gold"]
        said = prompt.references[0].strip("!").split()[-1].lower()
        if name == "citations/qasper":
            said = "part 3 of" if index % 2 == 0 else "part 0 of"
            gold = gold[:1]
        elif name != "citations/qa":
            # A value may be that of another key too.
            key = prompt.parts[0].splitlines()[-2].split()[-1]
            said = f"code of {key.strip('?')} is {said}"
        assert gold and all(said in text.lower() for text in gold) and not any(said in text.lower() for text in others)
        assert task.judge(prompt, prompt.answers) == 1 and judged(prompt, prompt.answers[0]).is_answer_right
        assert task.judge(prompt, ("nothing",)) == 0


@pytest.mark.parametrize("name", CITATIONS)
def test_citing_one_document_blindly_scores_chance_and_three_the_floor(name: str):
    task, prompt = made(name)
    for n, value in ((1, prompt.chance), (3, prompt.floor)):
        cited = ["".join(f"[{i}]" for i in of) for of in combinations(range(1, 10), n)]
        assert fmean(task.judge(prompt, (f" 1 {said}",)) for said in cited) == pytest.approx(value)
    assert prompt.floor > prompt.chance


def test_an_item_asks_the_same_at_every_size_and_stands_at_its_depth():
    for name in ("citations/one", "citations/three"):
        (_, small), (_, large) = made(name, 6, 2), made(name, 40, 2)
        assert small.references == large.references
        assert small.parts[0].splitlines()[-2] == large.parts[0].splitlines()[-2]
    for depth, place in ((0.0, 1), (0.5, 5), (1.0, 9)):
        assert made("citations/one", depth=depth)[1].factors["gold"] == [place]
    assert made("citations/three", depth=1.0)[1].factors["gold"] == [7, 8, 9]


def test_keys_of_the_worked_example_are_in_no_item():
    for index in range(30):
        _, prompt = made("citations/one", 60, index)
        of_items = " ".join(prompt.whole[s:e] for s, e in (*prompt.evidence, *prompt.distractors))
        assert not {word(KEYS + i) for i in range(4)} & set(of_items.replace(";", " ").split())


def test_three_citations_of_the_first_line_count():
    _, prompt = made("citations/one")
    (gold,) = prompt.factors["gold"]
    wrong = [n for n in range(1, 10) if n != gold][:3]
    value = prompt.references[0]
    late = judged(prompt, f" {value} " + "".join(f"[{n}]" for n in (*wrong, gold)))
    assert late.is_answer_right and late.share.recall == 0
    assert judged(prompt, f"\n {value} [{gold}]\n[{wrong[0]}]").is_citation_right
    assert not judged(prompt, f"{value}0 [{gold}]").is_answer_right and judged(prompt, f"{value} [77]").n_unknown == 1


def test_options_differ_in_their_citations_alone_and_items_fit():
    prompt = fitted_prompt(CITATIONS["citations/three"], setting("citations/three", length=1200), 1, len)
    assert prompt.options[0] == prompt.answers and len(set(prompt.options)) == len(prompt.options) > 2
    numbers = [[int(n) for n in o[0].split()[1].strip("[]").split("][")] for o in prompt.options]
    assert all(of == sorted(of) for of in numbers)
    assert {o[0].split()[0] for o in prompt.options} == {prompt.references[0]}
    assert prompt.choice_floor == pytest.approx(1 / len(prompt.options))
    assert 1000 < len(prompt.read()) + prompt.n_new <= 1200
