"""Questions on papers: gold paragraphs are always read and in the paper's order, what has none is left out, mistakes are said."""

import pytest
from prompt_cases import ROWS, held

from gatelab.tasks import TaskError
from gatelab.tasks.cited import CITATIONS, judged
from gatelab.tasks.papers import questions_of_papers
from gatelab.tasks.prompt import Setting, fitted_prompt

TASK = CITATIONS["citations/qasper"]
SETTING = Setting(length=2000, held=held(TASK))


def test_questions_whose_evidence_is_no_paragraph_are_left_out_and_paragraphs_stand_once():
    assert len(SETTING.held) == 8 and [len(q.gold) for q in SETTING.held[:2]] == [2, 1]
    assert SETTING.held.n_left_out == 4
    assert SETTING.held[0].paragraphs == tuple(f"Part {i} of paper 0." for i in range(12))


def test_an_item_holds_its_gold_paragraphs_and_as_many_others_as_fit_in_the_papers_order():
    for index in range(8):
        for size in (3, 7, 12):
            prompt = TASK.make(SETTING, index, size)
            said = [prompt.whole[s:e] for s, e in sorted((*prompt.evidence, *prompt.distractors))]
            parts = [int(text.split("Part ")[1].split()[0]) for text in said]
            assert parts == sorted(parts) and len(parts) == size
            assert [text.split("]")[0] for text in said] == [f"Document [{n}" for n in range(1, size + 1)]
            gold = [
                SETTING.held[index].paragraphs.index(said[n - 1].partition(": ")[2]) for n in prompt.factors["gold"]
            ]
            assert tuple(gold) == SETTING.held[index].gold
    prompt = fitted_prompt(TASK, SETTING, 0, len)
    assert prompt.factors["n_documents"] == 12 and prompt.depth == pytest.approx((3 + 9 - 1) / (2 * 10))


def test_which_others_are_read_is_drawn_so_that_the_gold_ones_are_not_always_in_the_middle():
    places = {tuple(TASK.make(Setting(held=SETTING.held, seed=s), 0, 6).factors["gold"]) for s in range(20)}
    assert len(places) > 5


def test_a_choice_is_of_yes_and_no_with_the_gold_citations_and_other_answers_have_none():
    yes, no, half = (TASK.make(SETTING, i, 6) for i in (0, 2, 4))
    assert [o[0].split()[0] for o in yes.options] == ["Yes", "No"] and [o[0].split()[0] for o in no.options] == [
        "No",
        "Yes",
    ]
    assert yes.options[0][0].split()[1] == yes.options[1][0].split()[1] and "Answer Yes or No." in yes.parts[0]
    assert half.options == () and "Yes or No" not in half.parts[0] and half.references == ("Half of it",)


def test_answer_and_citations_are_judged_apart_and_the_answer_blind_to_case():
    prompt = TASK.make(SETTING, 0, 6)
    first, second = prompt.factors["gold"]
    other = next(n for n in range(1, 7) if n not in (first, second))
    found = judged(prompt, f" yes, it is [{first}][{other}]")
    assert found.is_answer_right and (found.share.precision, found.share.recall) == (0.5, 0.5)
    assert not judged(prompt, f" Yesterday [{first}][{second}]").is_answer_right
    assert TASK.judge(prompt, (f" No [{first}][{second}]",)) == 1 and TASK.judge(prompt, prompt.answers) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"title": "Another"}, "row 1: no paper of the title 'Another'"),
        ({"answer": ""}, "row 1: answer=''"),
        ({"evidence": "Part 3"}, "evidence='Part 3': expected a text, and a list of texts"),
        ({"evidence": [3]}, r"row 1: .*evidence=\[3\]: expected a text, and a list of texts"),
        (
            {"evidence": ["FLOAT SELECTED: Table 1."]},
            "no question can be asked: 1 of 1 have no evidence that is a paragraph",
        ),
    ],
)
def test_a_row_that_will_not_do_is_named(changes: dict, says: str):
    with pytest.raises(TaskError, match=says):
        questions_of_papers([ROWS["citations/qasper"][0] | changes], ROWS["citations/papers"])


def test_a_number_beyond_the_file_and_a_paper_of_gold_alone_are_refused():
    with pytest.raises(TaskError, match="the file has 8 questions"):
        TASK.sizes(SETTING, 8)
    paper = {"title": "P", "full_text": {"paragraphs": [["all of it"]]}}
    asked = {"title": "P", "question": "?", "evidence": ["all of it"], "answer": "Yes"}
    with pytest.raises(TaskError, match="every paragraph of its paper is gold"):
        TASK.sizes(Setting(held=questions_of_papers([asked], [paper])), 0)


def test_a_paper_is_read_in_either_form_and_one_that_is_neither_is_named():
    asked = {"title": "P", "question": "?", "evidence": ["b"], "answer": " yes. "}
    two = {"section_name": ["A", "B"], "paragraphs": [["a", "b"], ["c"]]}
    each = [{"section_name": n, "paragraphs": p} for n, p in zip(*two.values(), strict=True)]
    first, second = (questions_of_papers([asked], [{"title": "P", "full_text": full}]) for full in (two, each))
    assert first == second and first[0].paragraphs == ("a", "b", "c") and first[0].gold == (1,)
    # A choice, in whatever case the file has it.
    assert first[0].answer == "Yes" and len(TASK.make(Setting(held=first), 0, 2).options) == 2
    for full in ("a", ["a"], {"paragraphs": ["a"]}, [{"paragraphs": [1]}]):
        with pytest.raises(TaskError, match="paper 1, 'P': full_text: expected"):
            questions_of_papers([asked], [{"title": "P", "full_text": full}])
