"""gatelab tasks: every task with what guessing scores and an example, items of one, and mistakes said in a sentence."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from gatelab import catalogue
from gatelab.cli import _status
from gatelab.tasks import TASKS, Knobs, open_task

DOCS = Path(__file__).parent.parent / "docs"
PAGE, PAGE_OF_EVAL = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("tasks", "eval"))


def test_the_list_shows_every_task_with_what_it_mirrors_and_an_example(capsys: pytest.CaptureFixture[str]):
    assert _status(["tasks"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for record in catalogue.task_records():
        assert shown.count(f"{record['name']} ") >= 3
        assert record["what"].split()[0] in shown and record["example"].split(" → ")[1] in shown


def test_tasks_of_text_alone_are_listed_with_what_they_need(capsys: pytest.CaptureFixture[str]):
    assert _status(["tasks"]) == 0
    shown = " ".join(capsys.readouterr().out.partition("in text alone")[2].split())
    said = (PAGE_OF_EVAL.partition("## Our own tasks")[2]).partition("\n## ")[0]
    for record in catalogue.prompt_records():
        assert f"{record['name']} {record['what']} {record['mirrors']} {record['needs']}" in shown
        assert record["needs"] != f"--data-dir, with {record['name']}.jsonl" or f"| `{record['name']}.jsonl` |" in said
    assert len(catalogue.prompt_records()) == 29


def test_records_are_json_and_have_every_number(capsys: pytest.CaptureFixture[str]):
    assert _status(["tasks", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["name"] for r in records] == list(TASKS)
    for r in records:
        assert r["choice"] == 1 / 8 and 0 < r["exact"] < 0.01 and 0 <= r["copying"] <= 1
        assert r["mirrors"] and r["signal"] and " → " in r["example"]


def test_items_of_one_are_those_of_its_number(capsys: pytest.CaptureFixture[str]):
    assert _status(["tasks", "cite", "length=100", "depth=0.5", "seed=3", "hardness=2", "--items", "2", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for index, record in enumerate(records):
        item = open_task("cite").item(Knobs(length=100, depth=0.5, seed=3, hardness=2), index)
        assert (record["item"], tuple(record["tokens"])) == (index, item.tokens)
        assert tuple(record["answer_tokens"]) == item.answer and record["depth"] == item.depth
        assert record["text"].endswith(record["answers"][0]) and len(record["evidence"]) == 2
    assert len(records) == 2


def test_items_are_shown_with_answer_depth_and_floor(capsys: pytest.CaptureFixture[str]):
    assert _status(["tasks", "needle", "length=40", "distractors=1", "depth=1", "--items", "1"]) == 0
    shown = capsys.readouterr().out
    assert "needle 0: answer " in shown and "evidence at depth 1.00; 40 tokens, 1 distractors" in shown
    assert "copying blindly is right in 50.0%" in shown and "The code of" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nedle"], "no task 'nedle'"),
        (["nedle"], "did you mean 'needle'?"),
        (
            ["needle", "lenght=4"],
            "lenght: no such knob; allowed here: length, distractors, hardness, seed, depth; did you",
        ),
        (["needle", "depth=deep"], "depth='deep': expected a number from 0 to 1"),
        (["needle", "length=1.5"], "length=1.5: expected a whole number"),
        (["needle", "length=-3"], "length=-3: expected a whole number"),
        (["needle", "depth=2"], "needle: depth=2: expected 0 (the beginning) to 1 (the end)"),
        (["needle", "length=[8,16]"], "length: an item takes one value; ask once for each"),
        (["cite", "length=20"], "take a length of at least 68, or lower distractors"),
        (["needle", "--items", "0"], "--items=0: expected 1 or more"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(words: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert _status(["tasks", *words]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.out == ""


def test_tasks_are_listed_without_torch():
    code = (
        "import sys; from gatelab.cli import _status; assert _status(['tasks']) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("name", TASKS)
def test_the_page_says_of_each_task_what_the_task_says(name: str):
    (record,) = [r for r in catalogue.task_records() if r["name"] == name]
    cells = [f"`{name}`", *(record[k] for k in ("what", "hardness", "distractors", "mirrors", "signal"))]
    row = f"| {' | '.join(map(str, cells))} |"
    assert row in PAGE, f"docs/tasks.md lacks this row:\n{row}"


@pytest.mark.parametrize("name", TASKS)
def test_the_page_shows_the_tokens_that_the_file_of_a_task_opens_with(name: str):
    tokens = (import_module(f"gatelab.tasks.{name}").__doc__ or "").split("`")[1]
    assert f"| `{name}` | `{tokens}` |" in PAGE, f"docs/tasks.md lacks: | `{name}` | `{tokens}` |"


@pytest.mark.parametrize("number", range(4))
def test_the_examples_of_the_page_run(number: int):
    exec(compile(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[number], "docs/tasks.md", "exec"), {})
