"""gatelab tasks: every task with what guessing scores and an example, items of one, and mistakes said in a sentence."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from gatelab import catalogue
from gatelab.cli import _status
from gatelab.evals.own_asking import PROMPTS, OwnAsking, prepare
from gatelab.tasks import TASKS, Knobs, open_task
from gatelab.tasks.made_up import RECORDS, filled
from gatelab.tasks.prompt import Setting

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
    prompts = catalogue.prompt_records()
    for record in (*prompts, *catalogue.measure_records()):
        assert f"{record['name']} {record['what']} {record['mirrors']} {record['needs']}" in shown
        assert record["needs"] != f"--data-dir, with {record['name']}.jsonl" or f"| `{record['name']}.jsonl` |" in said
    for record in prompts:
        example, levels = (" ".join(record[k].split()) for k in ("example", "no_chance"))
        assert shown.count(f"{record['name']} ") >= 3 and example.split(" → ")[1] in shown and levels in shown
    assert [r["name"] for r in prompts] == list(PROMPTS) and len(PROMPTS) == 26


def test_records_are_json_and_have_every_number(capsys: pytest.CaptureFixture[str]):
    assert _status(["tasks", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["name"] for r in records] == [*TASKS, *PROMPTS]
    for r in records[: len(TASKS)]:
        assert r["choice"] == 1 / 8 and 0 < r["exact"] < 0.01 and 0 <= r["copying"] <= 1
        assert r["mirrors"] and r["signal"] and " → " in r["example"]
    for r in records[len(TASKS) :]:
        assert (
            r["mirrors"]
            and r["metric"]
            and " → " in r["example"]
            and r["is_made_up"] != r["needs"].startswith("nothing")
        )
        assert (r["no_chance"] == "") == (r["exact"] is not None) == (r["copying"] is not None)
        assert all(level is None or 0 <= level <= 1 for level in (r["choice"], r["exact"], r["copying"]))
    assert {r["name"]: r["no_chance"] for r in records if r.get("no_chance")}.keys() == {
        "ruler/qa_1", "ruler/qa_2", "summary/qmsum",
        *(f"middle/qa{word}" for word in ("", "_aware", "_random", "_random_aware", "_closed_book", "_oracle")),
    }  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_items_of_text_alone_are_shown_with_their_files(name: str, capsys: pytest.CaptureFixture[str]):
    assert _status(["tasks", f"gatelab/{name}", "length=700", "--items", "2", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    task = PROMPTS[name]
    assert [r["item"] for r in records] == [0, 1] and records[0]["text"] != records[1]["text"]
    for r in records:
        assert (
            r["n_words"] <= 700
            and r["task"] == name
            and all(part in r["text"] for part in r["answers"] + r["evidence"])
        )
        assert r["is_made_up"] == bool(task.needs) and len(r["files"]) == len(task.sources)
    for (file, line), source in zip(records[0]["files"].items(), task.sources, strict=True):
        assert file == f"{source.names[0]}.jsonl" and set(source.fields) <= json.loads(line).keys()
    assert _status(["tasks", name, "length=700", "--items", "1"]) == 0
    shown = capsys.readouterr().out
    assert all(
        line in shown and f"{file} in --data-dir has lines like this one, which is made up" in shown
        for file, line in records[0]["files"].items()
    )
    assert ("of a made-up record or essay" in shown) == bool(task.needs) and records[0]["text"] in shown


def test_the_lines_that_are_shown_are_lines_that_are_read(tmp_path: Path):
    """As `gatelab eval --data-dir` reads them."""
    names = [name for name, task in PROMPTS.items() if task.sources]
    for name, rows in RECORDS.items():
        (tmp_path / f"{name}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    prepared = prepare(OwnAsking(tuple(names), data_dir=tmp_path))
    read = {name: PROMPTS[name].read(*(RECORDS[s.names[0]] for s in PROMPTS[name].sources)) for name in names}
    assert len(names) == 13 and all(prepared[name].held == held for name, held in read.items())
    assert all(filled(PROMPTS[name], Setting()).held == read[name] for name in names if PROMPTS[name].needs)


def test_what_copying_scores_is_a_mean_over_items_and_not_that_of_the_first(monkeypatch: pytest.MonkeyPatch):
    found = {record["name"]: record["copying"] for record in catalogue.task_records()}
    assert (found["conflict"], found["absent"], found["needle"]) == (1 / 2, 1 / 2, 1)
    task = open_task("needle")
    uneven = replace(task, define=lambda knobs, index: replace(task.define(knobs, index), floor=float(index % 4 == 0)))
    monkeypatch.setattr("gatelab.tasks.TASKS", ("needle",))
    monkeypatch.setattr("gatelab.tasks.open_task", lambda name: uneven)
    (record,) = catalogue.task_records()
    assert record["copying"] == 1 / 4


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
        (["needle", "--items", "0"], "--items=0: expected 1 to 10,000"),
        (["needle", "--items", "99999999999"], "--items=99999999999: expected 1 to 10,000"),
        (["ruler/vvt"], "did you mean 'ruler/vt'?"),
        (["ruler"], "ruler is 13 tasks: ruler/niah_single_1, "),
        (
            ["found/kv"],
            "found/kv is a measure, taken on items of middle/kv: gatelab eval MODEL --tasks gatelab/found/kv",
        ),
        (["hellaswag"], "hellaswag is the harness's: gatelab eval MODEL --tasks hellaswag\n"),
        (["helaswag"], "did you mean 'hellaswag'?"),
        (["mmlu_anatomy"], "mmlu_anatomy is the harness's: gatelab eval MODEL --tasks mmlu_anatomy"),
        (["ruler_vt"], "gatelab eval MODEL --tasks ruler_vt; the nearest of ours is 'ruler/vt'"),
        (["long_ppl"], "long_ppl is a measure, taken on a text: gatelab eval"),
        (
            ["ruler/vt", "hardness=2"],
            "hardness: no such knob of a task of text alone; allowed here: length, seed, depth, layout",
        ),
        (["ruler/vt", "layout=old"], "layout='old': expected spread or original"),
        (["ruler/vt", "depth=0.5"], "ruler/vt: depth=0.5, and its evidence has no one place"),
        (["ruler/cwe", "length=100"], "ruler/cwe 0: its shortest item has"),
        (
            ["middle/qa", "--items", "9"],
            "--items=9: middle/qa is shown on 8 made-up questions; ask for at most as many",
        ),
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
