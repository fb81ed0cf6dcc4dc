"""Lost in the Middle: the paper's prompts and scores, the gold one's place as a knob, and documents of other questions."""

import json
import re
import uuid
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


def pairs_of_a_file(*sizes: int) -> list[dict]:
    """Rows as the paper's files have them, of UUIDs made of their numbers; in row i the pair i + 1 is asked for."""
    made = []
    for row, size in enumerate(sizes):
        ids = [str(uuid.UUID(int=1000 * row + n + 1, version=4)) for n in range(2 * size)]
        records = [list(pair) for pair in zip(ids[::2], ids[1::2], strict=True)]
        made.append({"ordered_kv_records": records, "key": records[row + 1][0], "value": records[row + 1][1]})
    return made


def test_pairs_of_a_file_are_asked_as_it_has_them_and_all_of_them():
    rows, task = pairs_of_a_file(5, 12), MIDDLE["middle/kv"]
    held = task.read(rows)
    for index, row in enumerate(rows):
        n = len(row["ordered_kv_records"])
        assert task.sizes(Setting(held=held, length=9_000), index) == (n, n)
        prompt = task.make(Setting(held=held), index, n)
        said = ",\n ".join(f'"{key}": "{value}"' for key, value in row["ordered_kv_records"])
        # The paper's prompt, letter by letter.
        assert prompt.whole == (
            "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n"
            f'{{{said}}}\n\nKey: "{row["key"]}"\nCorresponding value: "{row["value"]}"'
        )
        assert prompt.depth == (index + 1) / (n - 1) and prompt.floor == 1 / n and prompt.references == (row["value"],)
        assert len(prompt.options) == min(n, 8) and len(prompt.distractors) == n - 1
    moved = task.make(Setting(held=held, depth=0.0), 1, 12)
    order = list(json.loads(re.search(r"\{.*\}", moved.read(), flags=re.DOTALL)[0]))
    keys = [key for key, _ in rows[1]["ordered_kv_records"]]
    assert order == [keys[2], *keys[:2], *keys[3:]]
    with pytest.raises(TaskError, match=r"middle/kv 1: its shortest item has \d+ tokens, answer included"):
        fitted_prompt(task, Setting(held=held, length=300), 1, len)
    with pytest.raises(TaskError, match="middle/kv 2: the file has 2 questions"):
        task.sizes(Setting(held=held), 2)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ordered_kv_records": [["a", "b"]]}, "row 1: its ordered_kv_records are no list of two pairs or more"),
        ({"ordered_kv_records": {"a": "b"}}, "row 1: its ordered_kv_records are no list of two pairs"),
        ({"ordered_kv_records": [["a", "b"], ["c", "d"]]}, "row 1: 'a' in its ordered_kv_records: expected UUIDs"),
        ({"key": "a"}, "row 1: its key and value are no pair of its ordered_kv_records"),
        ({"ordered_kv_records": pairs_of_a_file(3)[0]["ordered_kv_records"] * 2}, "or these name something twice"),
    ],
)
def test_pairs_that_cannot_be_asked_are_refused(wrong: dict, says: str):
    with pytest.raises(TaskError, match=says):
        MIDDLE["middle/kv"].read([pairs_of_a_file(3)[0] | wrong])


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
