"""`gatelab eval`: scores of a checkpoint, a GGUF file, a converted model and a run, what is written, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

from checkpoints import save_model, save_tokenizer, write_gguf
from command import gatelab
from evals.benchmark_files import write_files

from gatelab import lab
from gatelab.config import ModelConfig, ProbeConfig, Run, Text, TrainConfig
from gatelab.models.interop import import_model
from gatelab.study.study import Arm, Study

TASKS = "hellaswag,blimp_adjunct_island,lambada_openai"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("eval")
    write_files(place / "files")
    for name in ("model", "encoder"):
        (place / name).mkdir()
        save_tokenizer(place / name)
    save_model(place / "model", "LlamaForCausalLM", max_position_embeddings=256)
    save_model(place / "encoder", "BertForMaskedLM")
    import_model(place / "model", place / "ours")
    write_gguf(place / "model.gguf", place / "model")
    yield place


@pytest.fixture(scope="module")
def run(place: Path) -> Iterator[Path]:
    """A finished run on the bytes of a text, with a gate."""
    (place / "text.txt").write_text("a gate may close and a sink may stay. " * 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATELAB_CACHE", str(place / "cache"))
        base = Run(
            model=ModelConfig(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, gate="sdpa-headwise", max_seq_len=128),
            data=Text(paths=(str(place / "text.txt"),), val_share=0.3, tokenizer="byte"),
            train=TrainConfig(tokens=128 * 4, batch_size=2, seq_len=128),
            probe=ProbeConfig(times=1, sequences=1, eval_sequences=1),
        )
        study = Study(name="one", question="?", cells={"text": base}, arms=(Arm("gated", {}),), seeds=(0,), match=None)
        folder, _ = lab.run(study, place / "study")
        ((_, found),) = folder.planned()
        yield found.path


def values(said: str) -> dict[tuple[str, str], float]:
    return {(r["task"], r["metric"]): r["value"] for r in map(json.loads, said.splitlines())}


def test_ours_and_theirs_and_both_kinds_of_file_score_alike(place: Path) -> None:
    found = {}
    for name in ("model", "ours"):
        status, out, err = gatelab("eval", place / name, "--tasks", TASKS, "--data-dir", place / "files", "--json")
        assert status == 0, err
        found[name] = values(out)
    assert found["model"] == pytest.approx(found["ours"], rel=1e-3)
    assert found["model"]["hellaswag", "items"] == 4 and found["model"]["hellaswag", "chance"] == 0.25
    status, out, _ = gatelab("eval", place / "model.gguf", "--tasks", TASKS, "--data-dir", place / "files", "--json")
    assert status == 0 and values(out).keys() == found["model"].keys()


def test_a_run_is_asked_in_its_own_bytes(run: Path, place: Path) -> None:
    status, out, err = gatelab("eval", run, "--tasks", "blimp_adjunct_island", "--data-dir", place / "files")
    assert status == 0, err
    assert "'<|bos|>'" in out and "acc" in out


def test_a_table_says_what_was_counted(place: Path) -> None:
    status, out, _ = gatelab("eval", place / "model", "--tasks", TASKS, "--data-dir", place / "files", "--limit", 2)
    assert status == 0
    assert "a text begins as its tokenizer has it, with '<s>'; an empty context is '<s>'; no chat template" in out
    assert all(
        word in out for word in ("chance", "tied", "not finite", "cut", "split otherwise", "version", "perplexity")
    )


def test_the_model_before_training_is_asked_the_same_where_it_is_asked_for(place: Path, tmp_path: Path) -> None:
    """Its scores are those of a model that was written with weights drawn from seed 0, worked examples and written answers too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place / "model")).save_pretrained(
            tmp_path / "fresh"
        )
    save_tokenizer(tmp_path / "fresh")
    words = ("--tasks", f"{TASKS},mmlu_anatomy,gsm8k", "--new-tokens", 4, "--data-dir", place / "files", "--limit", 3)
    found = []
    for given in ((place / "model",), (place / "model", "--untrained"), (tmp_path / "fresh",)):
        status, out, err = gatelab("eval", *given, *words, "--json")
        assert status == 0, err
        found.append(values(out))
    alone, both, fresh = found
    added = {(task, m): v for (task, m), v in both.items() if m.endswith("_untrained")}
    assert {key: v for key, v in both.items() if key not in added} == alone
    assert {task for task, _ in added} == {task for task, _ in alone}
    assert added == pytest.approx(
        {(t, f"{m}_untrained"): fresh[t, m] for t, m in fresh if (t, f"{m}_untrained") in added}
    )
    scores = {m for _, m in alone if m.startswith(("acc", "exact_match", "perplexity")) and not m.endswith("_stderr")}
    assert {m.removesuffix("_untrained") for _, m in added} == scores
    assert any(v != alone[t, m.removesuffix("_untrained")] for (t, m), v in added.items())
    status, out, _ = gatelab("eval", place / "model", *words, "--untrained")
    said = " ".join(out.split())
    assert status == 0 and "untrained: the same model before training, weights drawn from seed 0, of every item" in said
    assert said.count("untrained") > said.count("untrained: the same"), "a column of the table too"


def test_rows_items_and_what_was_asked_are_written(place: Path, tmp_path: Path) -> None:
    words = ("eval", place / "model", "--tasks", "gsm8k,piqa", "--data-dir", place / "files", "--new-tokens", 4)
    status, out, err = gatelab(*words, "--out", tmp_path / "out", "--json", "--shots", 1, "--limit", 2)
    assert status == 1 and "piqa/train.jsonl" in err and not (tmp_path / "out").exists()
    status, out, err = gatelab(*words, "--out", tmp_path / "out", "--json", "--limit", 2)
    assert status == 0, err
    rows, items = (
        [json.loads(line) for line in (tmp_path / "out" / f"{n}.jsonl").read_text().splitlines()]
        for n in ("rows", "items")
    )
    assert rows == [json.loads(line) for line in out.splitlines()]
    assert {r["stage"] for r in rows if r["metric"] == "exact_match"} == {"strict-match", "flexible-extract"}
    assert {(r["source"], r["step"], r["run"]) for r in rows} == {("harness", 0, "model")}
    assert [i["item"] for i in items if i["task"] == "piqa"] == [0, 1]
    assert {i["factors"]["filter"] for i in items if i["task"] == "gsm8k"} == {"strict-match", "flexible-extract"}
    # Five shots and a question are more than the model has positions for, and nothing of that is hidden.
    (cut,) = [r["value"] for r in rows if (r["task"], r["metric"]) == ("gsm8k", "items_cut")]
    assert cut == 1 and all(i["factors"]["n_cut"] > 0 for i in items if i["task"] == "gsm8k")
    about = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert about["versions"]["gsm8k"] == 3.0 and about["shots"]["gsm8k"] == 5 and about["new_tokens"] == 4
    assert about["packages"]["lm_eval"] and about["dtype"] == "float32"
    status, _, err = gatelab(*words, "--out", tmp_path / "out", "--limit", 2)
    assert status == 1 and "is there already" in err


def test_a_chat_template_is_applied_printed_and_kept(place: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    import_model(place / "model", tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    words = (
        "eval",
        tmp_path / "chat",
        "--tasks",
        "mmlu_anatomy",
        "--shots",
        1,
        "--data-dir",
        place / "files",
        "--json",
    )
    scores = {}
    for given in ((), ("--chat",)):
        status, out, err = gatelab(*words, *given, "--out", tmp_path / f"out{len(given)}")
        assert status == 0, err
        about = json.loads((tmp_path / f"out{len(given)}" / "eval.json").read_text())
        scores[given] = json.loads((tmp_path / f"out{len(given)}" / "items.jsonl").read_text().splitlines()[0])
        assert about["chat_template"] == (tokenizer.chat_template if given else None)
    assert scores[()] != scores[("--chat",)]
    status, out, _ = gatelab(*words[:-1], "--chat")
    assert status == 0 and "chat template " in " ".join(out.split()) and "{% for m in messages %}" in out
    status, _, err = gatelab("eval", place / "model", *words[2:], "--chat")
    assert status == 1 and "--chat: this model's tokenizer has no chat template; leave --chat out" in err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--tasks", "helaswag"), 2, "did you mean 'hellaswag'?"),
        (("--tasks", ","), 2, "--tasks names none"),
        (("--tasks", "piqa", "--limit", "0"), 2, "--limit 0: expected 1 or more"),
        (("--tasks", "piqa", "--batch-size", "0"), 2, "--batch-size 0"),
        (("--tasks", "niah_single_1", "--lengths", "512"), 2, "--lengths 512: expected numbers of tokens from 1024"),
        (
            ("--tasks", "piqa,ruler_vt", "--lengths", "512"),
            2,
            "the harness's generators of ruler_vt may not come to an end",
        ),
        (
            ("--tasks", "piqa,gsm8k", "--lengths", "512"),
            2,
            "--lengths 512: is for our tasks and the harness's RULER, and none",
        ),
        (("--tasks", "piqa", "--yarn", "1"), 2, "--yarn 1: expected a number above 1"),
        (("--tasks", "piqa", "--yarn", "nan"), 2, "--yarn nan: expected a number above 1"),
        (("--tasks", "humaneval"), 2, "--run-code"),
        (("--tasks", "gsm8k"), 1, "asks for 256 new tokens, and the model has positions for 256"),
    ],
)
def test_what_cannot_be_asked_is_refused(words: tuple[str, ...], status: int, said: str, place: Path) -> None:
    found, _, err = gatelab("eval", place / "model", *words, "--data-dir", place / "files")
    assert found == status and said in err and "Traceback" not in err


def test_wrong_values_of_files_are_told_before_a_model_is_opened(place: Path, tmp_path: Path) -> None:
    row = {"question": "a gate?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "E"}
    (tmp_path / "arc").mkdir()
    (tmp_path / "arc" / "arc_easy_test.jsonl").write_text(json.dumps(row) + "\n")
    status, _, err = gatelab("eval", place / "nowhere", "--tasks", "arc_easy", "--data-dir", tmp_path)
    assert status == 1 and "arc_easy_test.jsonl:1: answerKey='E': expected one of its labels, A, B" in err


def test_a_task_of_the_users_own_with_a_label_that_is_no_option(place: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "a sink", "label": 1}\n{"text": "a gate may close", "label": 7}\n')
    (tmp_path / "own.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'own.jsonl'}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{text}}'\ndoc_to_target: label\n"
        "doc_to_choice: ['stay', 'open']\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    words = ("eval", place / "model", "--tasks", "own", "--data-dir", tmp_path, "--out", tmp_path / "out")
    status, _, err = gatelab(*words)
    assert status == 1 and "own.jsonl, row 2 of own: its label 7 is none of its 2 choices" in err
    (tmp_path / "own.jsonl").write_text('{"text": "a sink", "label": 1}\n{"text": "a gate may close", "label": 0}\n')
    assert gatelab(*words)[0] == 0
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert [i["answer"] for i in items] == ["open", "stay"]


def test_tasks_are_known_before_a_model_is_opened(place: Path) -> None:
    _, _, err = gatelab("eval", place / "nowhere", "--tasks", "helaswag", "--data-dir", place / "files")
    assert "helaswag" in err and "nowhere" not in err
    _, _, err = gatelab("eval", place / "nowhere", "--tasks", "piqa", "--data-dir", place / "files")
    assert "nowhere: no such folder or file" in err


def test_models_that_cannot_be_asked(place: Path, run: Path) -> None:
    words = ("--tasks", "piqa", "--data-dir", place / "files")
    status, _, err = gatelab("eval", place / "encoder", *words)
    assert status == 1 and "predicts no next token" in err
    status, _, err = gatelab("eval", run, *words, "--allow-pickle")
    assert status == 2 and "--allow-pickle is for checkpoints of others" in err


def test_without_the_harness_it_is_said_how_to_get_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else plain(name))
    status, _, err = gatelab("eval", place / "model", "--tasks", "piqa")
    assert status == 1 and "gatelab eval needs lm_eval: pip install 'gatelab[eval]'" in err
