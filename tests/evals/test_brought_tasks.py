"""Tasks of a user's own YAML file: where its rows are looked for, and which row is said to be wrong."""

import json

import pytest

pytest.importorskip("lm_eval")

from gatelab.config import ConfigError
from gatelab.data import DataError
from gatelab.evals.harness.tasks import Asking, Loaded, find, load

CHOICES = ["red", "blue", "green", "grey"]


def rows(*labels):
    return "".join(json.dumps({"question": "Which?", "choices": CHOICES, "label": label}) + "\n" for label in labels)


def brought(folder, files, *, target="label", name="colours"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files: {json.dumps(files)}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: choices\n"
        f"doc_to_target: {target}\nmetric_list:\n  - metric: acc\n"
    )


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def go(*names) -> Loaded:
        asking, draft = Asking(names, tmp_path / "bench"), tmp_path / "draft"
        draft.mkdir(exist_ok=True)
        made = load(asking, find(asking, print, draft=draft, tokenizer=tmp_path))
        for task in made.tasks.values():
            task.build_all_requests(limit=None, rank=0, world_size=1)
        return made

    return go


@pytest.mark.parametrize("place", ["bench/deep", "bench", "."])
@pytest.mark.parametrize("files", [{"test": "items/rows.jsonl"}, {"test": ["items/*.jsonl"]}])
def test_relative_file_is_beside_the_yaml_or_in_the_folder_or_where_the_command_runs(
    ask, tmp_path, monkeypatch, place, files
):
    monkeypatch.chdir(tmp_path)
    brought(tmp_path / "bench" / "deep", files)
    (tmp_path / place / "items").mkdir(parents=True)
    (tmp_path / place / "items" / "rows.jsonl").write_text(rows(0, 3))
    (task,) = ask("colours").tasks.values()
    assert [row["label"] for row in task.eval_docs] == [0, 3]


def test_file_beside_the_yaml_goes_before_those_elsewhere(ask, tmp_path):
    brought(tmp_path / "bench" / "deep", {"test": "rows.jsonl"})
    (tmp_path / "bench" / "rows.jsonl").write_text(rows(1))
    (tmp_path / "bench" / "deep" / "rows.jsonl").write_text(rows(2))
    assert [row["label"] for task in ask("colours").tasks.values() for row in task.eval_docs] == [2]


def test_file_that_is_nowhere_is_refused_with_the_folders(ask, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    brought(tmp_path / "bench" / "deep", {"test": "rows.jsonl"})
    with pytest.raises(DataError) as error:
        ask("colours")
    said = str(error.value)
    assert "its data_files name 'rows.jsonl', which is not in" in said and "deep/colours.yaml" in said
    assert all(str(tmp_path / place) in said for place in ("bench/deep", "bench", "elsewhere"))


@pytest.mark.parametrize(
    ("labels", "number", "label"), [((4, 0), 1, 4), ((0, 1, 7), 3, 7), ((0, -1), 2, -1), (("red", "pink"), 2, "'pink'")]
)
def test_label_that_is_no_choice_is_named_with_file_and_row(ask, tmp_path, labels, number, label):
    brought(tmp_path / "bench", {"test": "rows.jsonl"})
    path = tmp_path / "bench" / "rows.jsonl"
    path.write_text(rows(*labels))
    with pytest.raises(DataError) as error:
        ask("colours")
    assert str(error.value).startswith(
        f"{path}, row {number} of colours: its label {label} is none of its 4 choices (numbered 0 to 3); correct"
    )


def test_row_on_which_a_template_fails_is_named(ask, tmp_path):
    brought(tmp_path / "bench", {"test": "rows.jsonl"}, target="'{{choices[label]}}'")
    (tmp_path / "bench" / "rows.jsonl").write_text(rows(0, 1, 9))
    with pytest.raises(DataError, match=r"rows\.jsonl, row 3 of colours: "):
        ask("colours")


@pytest.mark.parametrize("word", ["mine.jsonl", "deep/mine.csv", "mine.yaml"])
def test_file_for_a_task_is_answered_with_what_to_do(ask, tmp_path, word):
    (tmp_path / "bench").mkdir()
    with pytest.raises(ConfigError, match=rf"--tasks {word}: is a file.*--data-dir.*docs/eval\.md"):
        ask(word)
