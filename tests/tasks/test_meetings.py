"""Summaries of meetings: the turns that an answer is made of are read and marked, others nearest first; a reference scores 1."""

import pytest
from prompt_cases import ROWS, held

from gatelab.tasks import TaskError
from gatelab.tasks.meetings import SUMMARIES, questions_of_meetings
from gatelab.tasks.prompt import Setting, fitted_prompt

TASK = SUMMARIES["summary/qmsum"]
SETTING = Setting(length=4000, held=held(TASK))


def turns(prompt) -> list[int]:
    said = [prompt.whole[s:e] for s, e in sorted((*prompt.evidence, *prompt.distractors))]
    return [int(text.split("Gate ")[1].split()[0]) for text in said]


def test_specific_questions_come_first_and_general_ones_are_of_all_turns():
    assert [q.is_whole for q in SETTING.held] == [False] * 6 + [True] * 3
    assert SETTING.held[1].gold == (11, 12) and SETTING.held[6].gold == tuple(range(20))


def test_the_gold_turns_are_read_and_the_nearest_others_first():
    prompt = TASK.make(SETTING, 1, 5)
    assert turns(prompt) == [9, 10, 11, 12, 13] and prompt.depth == pytest.approx(2 / 3)
    assert [prompt.whole[s:e] for s, e in prompt.evidence] == [
        "Keeper 2: Gate 11 of yard 0 stays shut .", "Keeper 0: Gate 12 of yard 0 stays shut ."
    ]  # fmt: skip
    assert prompt.parts[0].endswith("\n\nQuestion: What of gate 11?\nAnswer:")
    whole = fitted_prompt(TASK, SETTING, 1, len)
    assert turns(whole) == list(range(20)) and whole.factors == {"n_turns": 20, "of_turns": 20, "is_whole": False}
    assert len(whole.read()) + whole.n_new <= 4000


def test_a_question_on_all_of_a_meeting_is_asked_where_all_of_it_fits_and_has_no_place():
    prompt = fitted_prompt(TASK, SETTING, 6, len)
    assert turns(prompt) == list(range(20)) and prompt.evidence == () and prompt.depth is None
    with pytest.raises(TaskError, match=r"summary/qmsum 6: its shortest item has \d+ tokens"):
        fitted_prompt(TASK, Setting(length=600, held=SETTING.held), 6, len)


def test_the_score_is_rouge_l_and_guesses_are_another_answer_and_the_transcripts_beginning():
    pytest.importorskip("rouge_score")
    prompt = TASK.make(SETTING, 0, 4)
    assert TASK.judge(prompt, (" Gate 4 of yard 0 stays shut.",)) == 1 and TASK.judge(prompt, (" Nothing",)) == 0
    # "Gate 4 of yard 0 stays" is all of seven words but the last: 6 of 6 and 6 of 7.
    assert TASK.judge(prompt, (" gate 4 of yard 0 stays",)) == pytest.approx(2 * 6 / 13)
    chance, copying = TASK.guesses(SETTING, prompt)
    # Of another yard, and of gate 4 or 11: "gate (4) of yard stay shut"; or all gates of another yard.
    assert min(abs(chance - v) for v in (12 / 14, 10 / 14)) < 1e-9
    # "Keeper 0: Gate 3 of yard 0" of "Gate 4 of yard 0 stays shut": gate, of, yard, 0.
    assert copying == pytest.approx(8 / 14)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"relevant_text_span": [["4", "20"]]}, r"row 1: relevant_text_span=.*: expected pairs of turns"),
        ({"relevant_text_span": []}, "from 0 to 19"),
        ({"answer": " "}, "row 1: answer=' ': expected a text"),
    ],
)
def test_a_row_that_will_not_do_is_named(changes: dict, says: str):
    row = ROWS["summary/qmsum"][0]
    asked = row["specific_query_list"][0] | changes
    with pytest.raises(TaskError, match=says):
        questions_of_meetings([row | {"specific_query_list": [asked]}])


def test_a_number_beyond_the_file_is_refused():
    with pytest.raises(TaskError, match="the file has 9 questions"):
        TASK.sizes(SETTING, 9)


def test_a_file_without_questions_says_so():
    rows = [row | {"specific_query_list": [], "general_query_list": []} for row in ROWS["summary/qmsum"]]
    with pytest.raises(TaskError, match="no question can be asked: 3 of 3 meetings have none"):
        questions_of_meetings(rows)
