"""Lost in the Middle: the paper's prompts and scores, the gold one's place as a knob, and documents of other questions."""

import json
import re
from dataclasses import replace

import pytest
from prompt_cases import ROWS, setting

from gatelab.tasks import TaskError
from gatelab.tasks.middle import MIDDLE, best_subspan, normalised, value_found
from gatelab.tasks.prompt import Setting, fitted_prompt


def test_pairs_are_one_json_object_of_different_keys_and_values():
    prompt = MIDDLE["middle/kv"].make(Setting(), 3, 75)
    held = json.loads(re.search(r"\{.*\}", prompt.read(), flags=re.DOTALL)[0])
    assert len(held) == len(set(held.values())) == 75
    key = re.search(r'\n\nKey: "(\S+)"\nCorresponding value:$', prompt.read())[1]
    assert held[key] == prompt.references[0] and prompt.n_new == 100 and prompt.floor == 1 / 75
    assert {o.strip(' "') for (o,) in prompt.options} <= set(held.values())


@pytest.mark.parametrize("name", [name for name, task in MIDDLE.items() if task.has_depth])
def test_the_gold_one_stands_where_it_is_asked_to(name: str):
    for depth, place in ((0.0, 0), (0.5, 5), (1.0, 9)):
        prompt = MIDDLE[name].make(setting(name, depth=depth), 2, 10)
        before = [a for a, _ in prompt.distractors if a < prompt.evidence[0][0]]
        assert len(before) == place and prompt.depth == place / 9


def test_documents_are_numbered_and_keep_their_order_around_the_gold_one():
    prompt = MIDDLE["middle/qa"].make(setting("middle/qa", depth=1.0), 4, 6)
    titles = re.findall(r"^Document \[(\d+)\]\(Title: (.*?)\)", prompt.read(), flags=re.MULTILINE)
    assert titles == [(str(i + 1), f"Gate 4 {j}") for i, j in enumerate([0, 1, 3, 4, 5, 2])]
    assert prompt.read().endswith("\n\nQuestion: who closed gate 4\nAnswer:")


@pytest.mark.parametrize("name", ["middle/kv", "middle/qa", "middle/qa_random"])
def test_what_is_asked_before_too_is_the_same_item_but_for_that(name: str):
    plain, aware = (MIDDLE[n].make(setting(n), 5, 8) for n in (name, f"{name}_aware"))
    question = re.search(r"(?:Key|Question): .*\n(?=\w+(?: value)?:$)", plain.read())[0]
    opening = "JSON data:\n" if name == "middle/kv" else "Document [1]"
    assert plain.read().replace(opening, f"{question}\n{opening}", 1) == aware.read()
    assert aware.read().count(question) == 2 and plain.read().count(question) == 1
    assert (plain.answers, plain.options, plain.references, plain.depth) == (
        aware.answers, aware.options, aware.references, aware.depth
    )  # fmt: skip
    moved = len(question) + 1
    assert [(a + moved, b + moved) for a, b in (*plain.evidence, *plain.distractors)] == [
        *aware.evidence, *aware.distractors
    ]  # fmt: skip


def test_the_baselines_ask_the_same_questions_without_documents_and_of_the_gold_one_alone():
    asked = setting("middle/qa")
    whole = MIDDLE["middle/qa"].make(asked, 5, 8)
    closed, oracle = (
        fitted_prompt(MIDDLE[f"middle/qa_{name}"], asked, 5, lambda text: len(text.split()))
        for name in ("closed_book", "oracle")
    )
    assert closed.read() == "Question: who closed gate 5\nAnswer:" and not closed.evidence and not closed.distractors
    (start, end), (a, b) = oracle.evidence[0], whole.evidence[0]
    said = [text[text.index("(Title") :] for text in (oracle.whole[start:end], whole.whole[a:b])]
    assert said[0] == said[1] and oracle.whole.startswith(whole.whole[: whole.whole.index("Document [1]")])
    assert oracle.whole[end:] == whole.whole[whole.whole.rindex("\n\nQuestion") :]
    assert closed.references == oracle.references == whole.references and closed.depth is oracle.depth is None
    with pytest.raises(TaskError, match="its evidence has no one place; leave depth out"):
        MIDDLE["middle/qa_oracle"].check(replace(asked, depth=0.5))
    with pytest.raises(TaskError, match="middle/qa_oracle 40: the file has 40 questions"):
        MIDDLE["middle/qa_oracle"].sizes(asked, 40)


def test_documents_of_other_questions_hold_no_answer():
    held = MIDDLE["middle/qa_random"].read([*ROWS["middle/qa_random"], {
        "question": "another", "answers": ["nobody else"],
        "ctxs": [{"title": "Other", "text": "It says the KEEPER7X, too.", "isgold": True}],
    }])  # fmt: skip
    task = MIDDLE["middle/qa_random"]
    least, most = task.sizes(Setting(held=held), 7)
    prompt = task.make(Setting(held=held), 7, most)
    # Forty others but the one that says the answer.
    assert (least, most) == (2, 40) and "Title: Other" not in prompt.read()
    assert "Title: Other" in task.make(Setting(held=held), 8, 41).read()


def test_scores_are_those_of_the_paper():
    prompt = MIDDLE["middle/qa"].make(setting("middle/qa"), 4, 6)
    assert prompt.references == ("The Keeper4x!",)
    for text, score in (
        (" I think a keeper4x, did", 1), ("keeper 4x", 0), ("nobody\nkeeper4x", 0), ("\nkeeper4x", 0), ("KEEPER4X.\nand", 1),
    ):  # fmt: skip
        assert best_subspan(prompt, (text,)) == score
    assert best_subspan(replace(prompt, references=("The", "a")), ("anything",)) == 0
    assert normalised("The  quick, brown; AN fox: a!") == "quick brown fox"
    kv = MIDDLE["middle/kv"].make(Setting(), 0, 5)
    assert value_found(kv, (f"\n\n{kv.references[0].upper()} and more",)) == 1 and value_found(kv, ("{",)) == 0


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("middle/qa", [{**ROWS["middle/qa"][0], "ctxs": []}], "row 1: none of its ctxs has isgold"),
        ("middle/qa", ROWS["middle/qa_random"], "has its gold document alone; give 10, 20 or 30 a question"),
    ],
)
def test_files_that_cannot_be_asked_are_refused(name: str, rows: list[dict], says: str):
    with pytest.raises(TaskError, match=says):
        MIDDLE[name].sizes(Setting(held=MIDDLE[name].read(rows)), 0)
