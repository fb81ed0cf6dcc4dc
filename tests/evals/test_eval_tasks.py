"""Tasks from a folder: which are known, what they read, and what is said of names, files, lines and code that will not do."""

import gzip
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from benchmark_files import FILES, write_files

from gatelab.config import ConfigError
from gatelab.data import DataError
from gatelab.evals.harness import definitions
from gatelab.evals.harness.benchmarks import BENCHMARKS
from gatelab.evals.harness.tasks import Asking, Loaded, find, load


def loaded(folder: Path, asking: Asking) -> Loaded:
    draft = folder / "draft"
    draft.mkdir(exist_ok=True)
    return load(asking, find(asking, print, draft=draft, tokenizer=folder))


def refused(folder: Path, asking: Asking) -> str:
    with pytest.raises((ConfigError, DataError)) as error:
        loaded(folder, asking)
    return str(error.value)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path / "files")


def test_every_benchmark_that_is_listed_is_one_of_the_harness() -> None:
    known = definitions.known({}).task_index
    assert set(BENCHMARKS) <= set(known)


@pytest.mark.parametrize(
    "name", ["hellaswag", "arc_easy", "piqa", "lambada_openai", "gsm8k", "mmlu_anatomy", "mmlu_virology"]
)
def test_items_come_from_the_folder_and_prompts_from_the_harness(name: str, files: Path, tmp_path: Path) -> None:
    (task,) = loaded(tmp_path, Asking((name,), files)).tasks.values()
    docs = list(task.eval_docs)
    column = "subject" if name.startswith("mmlu") else None
    path = next(BENCHMARKS[b].file("test") for b in BENCHMARKS if name.startswith(b))
    rows = FILES.get(path) or FILES[path.replace("test", "validation")]
    assert len(docs) == len([r for r in rows if column is None or r[column] == name.removeprefix("mmlu_")])
    if name == "hellaswag":
        assert task.doc_to_text(docs[0]) == "Closing a gate: A gate stands open. It may close 0 times"
    if name == "mmlu_anatomy":
        assert task.doc_to_text(docs[0]).endswith("C. three\nD. four\nAnswer:")


def test_gzipped_files_do_as_well(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", gzipped=("blimp/blimp.jsonl", "mmlu/test.jsonl"))
    assert not (files / "blimp/blimp.jsonl").exists()
    assert len(loaded(tmp_path, Asking(("blimp_adjunct_island", "mmlu_anatomy"), files)).tasks) == 2


def test_a_group_holds_its_tasks(files: Path, tmp_path: Path) -> None:
    with (files / "mmlu/test.jsonl").open("a") as file:
        names = [n for n, _ in definitions.leaves(definitions.known({}), "mmlu")]
        for name in names:
            file.write(json.dumps(FILES["mmlu/test.jsonl"][0] | {"subject": name.removeprefix("mmlu_")}) + "\n")
    made = loaded(tmp_path, Asking(("mmlu",), files))
    assert len(made.tasks) == len(names) == 57
    assert {"mmlu", "mmlu_stem", "mmlu_humanities"} <= set(made.groups)


def test_a_folder_may_bring_tasks_of_its_own(files: Path, tmp_path: Path) -> None:
    (files / "own.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {files / 'lambada_openai/test.jsonl'}\n"
        "output_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list:\n  - metric: bits_per_byte\n    aggregation: bits_per_byte\n    higher_is_better: false\n"
    )
    assert "own" in definitions.offline(files, _made(tmp_path / "draft"), None, {})[0].task_index


def _made(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("word", "meant"), [("helaswag", "hellaswag"), ("arc-easy", "arc_easy"), ("mmlu_anatomi", "mmlu_anatomy")]
)
def test_an_unknown_task_is_answered_with_the_nearest(word: str, meant: str, files: Path, tmp_path: Path) -> None:
    assert f"did you mean '{meant}'?" in refused(tmp_path, Asking((word,), files))


def test_a_task_like_no_other_is_answered_with_what_there_is(files: Path, tmp_path: Path) -> None:
    said = refused(tmp_path, Asking(("xyzzy",), files))
    assert "xyzzy" in said and all(name in said for name in BENCHMARKS)


def test_a_missing_file_is_named_with_what_it_should_hold(files: Path, tmp_path: Path) -> None:
    (files / "piqa/validation.jsonl").unlink()
    said = refused(tmp_path, Asking(("piqa", "hellaswag"), files))
    assert f"{files / 'piqa/validation.jsonl'}: no such file" in said
    assert "goal, sol1, sol2, label" in said and "hellaswag" not in said
    assert "no such folder" in refused(tmp_path, Asking(("piqa",), tmp_path / "nowhere"))


def test_shots_never_come_from_what_is_evaluated(files: Path, tmp_path: Path) -> None:
    said = refused(tmp_path, Asking(("hellaswag",), files, shots=2))
    assert f"{files / 'hellaswag/train.jsonl'}: no such file, which would hold its 2 shots" in said
    (files / "hellaswag/train.jsonl").write_text(
        (files / "hellaswag/validation.jsonl").read_text().replace("gate", "door")
    )
    (task,) = loaded(tmp_path, Asking(("hellaswag",), files, shots=2)).tasks.values()
    doc = task.eval_docs[0]
    assert task.fewshot_context(doc, 2).count("Closing a door") == 2
    said = refused(tmp_path, Asking(("lambada_openai",), files, shots=2))
    assert "lambada_openai: has no split but the one that is evaluated" in said


def test_shots_are_as_a_task_has_them_unless_stated(files: Path, tmp_path: Path) -> None:
    names = ("gsm8k", "mmlu_anatomy", "blimp_adjunct_island")
    shots = {n: {k: t.get_config("num_fewshot") for k, t in loaded(tmp_path, Asking(names, files, shots=n)).tasks.items()}
             for n in (None, 3)}  # fmt: skip
    assert shots[None] == {"gsm8k": 5, "mmlu_anatomy": 0, "blimp_adjunct_island": 0}
    assert shots[3] == {"gsm8k": 3, "mmlu_anatomy": 3, "blimp_adjunct_island": 0}
    (note,) = loaded(tmp_path, Asking(names, files, shots=3)).notes
    assert "blimp_adjunct_island: defined with 0 shots" in note


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"goal": "a", "sol1": "b", "label": 0}', "has no field 'sol2' (it has goal, sol1, label)"),
        ("[1]", "has no field 'goal' (it has list)"),
        ('{"goal": ', "is no JSON"),
        ('{"goal": "a", "sol1": "b", "sol2": "c", "label": {"x": 1}}', "label={'x': 1}: expected the number"),
    ],
)
def test_a_line_that_will_not_do_is_named(line: str, said: str, files: Path, tmp_path: Path) -> None:
    path = files / "piqa/validation.jsonl"
    path.write_text(path.read_text() + line + "\n")
    found = refused(tmp_path, Asking(("piqa",), files))
    assert said in found and re.search(rf"{re.escape(str(path))}(:4)?: ", found)


@pytest.mark.parametrize(
    ("name", "file", "wrong", "said"),
    [
        ("hellaswag", "hellaswag/validation", {"label": "7"}, "label='7': expected the number of the right ending, 0 to 3"),
        ("hellaswag", "hellaswag/validation", {"label": ""}, "label='': expected the number"),
        ("hellaswag", "hellaswag/validation", {"ctx_a": None}, "ctx_a=None: expected a text, empty where there is none"),
        ("hellaswag", "hellaswag/validation", {"endings": []}, "endings=[]: expected a list of two texts or more"),
        ("arc_easy", "arc/arc_easy_test", {"answerKey": "E"}, "answerKey='E': expected one of its labels, A, B, C"),
        ("arc_easy", "arc/arc_easy_test", {"choices": ["A", "B"]}, "choices=['A', 'B']: expected {text: ["),
        ("arc_easy", "arc/arc_easy_test", {"choices": {"text": ["a", "b"], "label": ["A"]}}, "[as many labels]"),
        ("arc_easy", "arc/arc_easy_test", {"question": " "}, "question=' ': expected a text that is not blank"),
        ("mmlu_anatomy", "mmlu/test", {"choices": ["one", "two"]}, "choices=['one', 'two']: expected a list of four"),
        ("mmlu_anatomy", "mmlu/test", {"answer": 4}, "answer=4: expected the number of the right choice, 0 to 3, or"),
        ("mmlu_anatomy", "mmlu/test", {"answer": "2"}, "answer='2': expected the number"),
        ("lambada_openai", "lambada_openai/test", {"text": ""}, "text='': expected two words or more"),
        ("lambada_openai", "lambada_openai/test", {"text": "gate"}, "text='gate': expected two words or more"),
        ("lambada_openai", "lambada_openai/test", {"text": "a gate "}, "text='a gate ': expected two words or more"),
        ("piqa", "piqa/validation", {"label": "1"}, "label='1': expected the number of the right solution, 0 or 1"),
        ("piqa", "piqa/validation", {"label": True}, "label=True: expected the number"),
        ("piqa", "piqa/validation", {"sol2": "x" * 200 + "\t" * 9, "goal": 3}, "goal=3: expected a text"),
        ("gsm8k", "gsm8k/train", {"answer": None}, "answer=None: expected a text that is not blank"),
        ("blimp_adjunct_island", "blimp/blimp", {"sentence_bad": ""}, "sentence_bad='': expected a text"),
        ("mbpp", "mbpp/test", {"test_list": ["assert True"]}, "expected a list of three texts or more"),
        ("humaneval", "humaneval/HumanEval", {"entry_point": ""}, "entry_point='': expected a text"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_line_before_items_are_made(
    name: str, file: str, wrong: dict, said: str, files: Path, tmp_path: Path
) -> None:
    path = files / f"{file}.jsonl"
    rows = FILES[f"{file}.jsonl"]
    path.write_text("".join(f"{json.dumps(row)}\n\n" for row in [*rows, rows[0] | wrong]))
    with pytest.raises(DataError) as error:
        find(Asking((name,), files, runs_code=True), print, draft=_made(tmp_path / "draft"), tokenizer=tmp_path)
    assert str(error.value).startswith(f"{path}:{2 * len(rows) + 1}: ") and said in str(error.value)


def test_values_of_two_types_in_one_field_are_named(files: Path, tmp_path: Path) -> None:
    path = files / "hellaswag/validation.jsonl"
    path.write_text(path.read_text() + json.dumps(FILES["hellaswag/validation.jsonl"][0] | {"label": 1}) + "\n")
    said = refused(tmp_path, Asking(("hellaswag",), files))
    assert said.startswith(f"{path}: its rows do not have one type a field")


def test_values_that_the_public_files_have_will_do(files: Path, tmp_path: Path) -> None:
    held = {
        "hellaswag/validation": [{"ctx_b": "", "activity_label": ""}, {"label": "0"}],
        "arc/arc_easy_test": [{"choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}],
        "mmlu/test": [{"subject": "anatomy"}],
    }
    for file, changes in held.items():
        rows = FILES[f"{file}.jsonl"]
        (files / f"{file}.jsonl").write_text("".join(f"{json.dumps(rows[0] | change)}\n" for change in changes))
    made = loaded(tmp_path, Asking(("hellaswag", "arc_easy", "mmlu_anatomy"), files)).tasks
    assert {name: len(task.eval_docs) for name, task in made.items()} == {
        "hellaswag": 2, "arc_easy": 1, "mmlu_anatomy": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("text", "choice"), [("{{text[9].x}}", "['a', 'b']"), ("{{text}}", "{{[text, text.y.z]}}")])
def test_requests_that_cannot_be_built_name_their_file_and_row(
    text: str, choice: str, files: Path, tmp_path: Path
) -> None:
    rows = files / "own.jsonl"
    rows.write_text('{"text": "a gate may close"}\n{"text": "a"}\n')
    (files / "own.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {rows}\n"
        f"output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{text}'\ndoc_to_target: 0\n"
        f'doc_to_choice: "{choice}"\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n'
    )
    asking = Asking(("piqa", "own"), files)
    with pytest.raises(DataError, match=r"own\.jsonl, row 1 of own: UndefinedError: .*; correct the row, or"):
        for task in loaded(tmp_path, asking).tasks.values():
            task.build_all_requests(limit=2)


def test_a_cut_gzip_and_a_file_without_the_tasks_rows(files: Path, tmp_path: Path) -> None:
    (files / "blimp/blimp.jsonl").unlink()
    whole = gzip.compress(json.dumps(FILES["blimp/blimp.jsonl"][0]).encode() * 99)
    (files / "blimp/blimp.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refused(tmp_path, Asking(("blimp_adjunct_island",), files))
    assert "holds nothing of subject='astronomy'" in refused(tmp_path, Asking(("mmlu_astronomy",), files))


def test_code_is_run_only_when_asked_for(files: Path, tmp_path: Path) -> None:
    said = refused(tmp_path, Asking(("humaneval", "mbpp", "piqa"), files))
    assert said.startswith("humaneval, mbpp: runs the code") and "--run-code" in said


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_code_is_judged_in_the_sandbox(name: str, files: Path, tmp_path: Path) -> None:
    made = loaded(tmp_path, Asking((name,), files, runs_code=True))
    (task,) = made.tasks.values()
    assert not made.code.outcomes
    doc = task.eval_docs[0]
    bodies = {
        "humaneval": ("    return 0\n", "    return x + 1\n"),
        "mbpp": ("def shut(x): return 0", "def shut(x): return 1"),
    }
    metric = {"humaneval": "pass@1", "mbpp": "pass_at_1"}[name]
    task._instances = []
    task.build_all_requests(limit=1)
    for body, expected in zip(bodies[name], (1.0, 0.0), strict=True):
        for instance in task.instances:
            instance.resps, instance.filtered_resps = [body], {}
        task.apply_filters()
        (filtered,) = task.instances[0].filtered_resps.values()
        assert task.process_results(doc, [filtered])[metric] == expected
    assert made.code.outcomes == {"passed": 1, "failed": 1}
