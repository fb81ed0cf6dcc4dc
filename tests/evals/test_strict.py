"""Ties and scores that are not finite never count as correct, and are counted."""

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

import torch
from asked import checkpoint
from benchmark_files import write_files

from gatelab.evals.harness.evaluate import evaluate
from gatelab.evals.harness.results import Found
from gatelab.evals.harness.strict import make_strict
from gatelab.evals.harness.tasks import Asking, find, load
from gatelab.models.external import External
from gatelab.record import Row

NAMES = ("blimp_adjunct_island", "arc_easy", "hellaswag", "piqa")


def loaded(folder: Path, *names: str) -> dict[str, Any]:
    (folder / "draft").mkdir()
    asking = Asking(names, write_files(folder / "files"))
    return load(asking, find(asking, print, draft=folder / "draft", tokenizer=folder)).tasks


def answers(*log_p: float) -> list[tuple[float, bool]]:
    return [(p, False) for p in log_p]


def test_the_first_of_equal_options_is_not_right(tmp_path: Path) -> None:
    task = loaded(tmp_path, "blimp_adjunct_island")["blimp_adjunct_island"]
    doc = task.validation_docs()[0]
    found = {p: task.process_results(doc, answers(*p)) for p in ((-1.0, -2.0), (-2.0, -1.0), (-1.0, -1.0))}
    assert [(f["acc"], f["acc_shared"]) for f in found.values()] == [(1, 1), (0, 0), (0, 0.5)]


@pytest.mark.parametrize("broken", [(math.nan, -1.0), (-1.0, math.nan), (math.nan, math.nan), (-1.0, math.inf)])
def test_what_is_not_finite_is_not_right(broken: tuple[float, float], tmp_path: Path) -> None:
    task = loaded(tmp_path, "blimp_adjunct_island")["blimp_adjunct_island"]
    found = task.process_results(task.validation_docs()[0], answers(*broken))
    assert (found["acc"], found["acc_shared"]) == (0, 0)


def test_each_accuracy_has_ties_of_its_own(tmp_path: Path) -> None:
    """Options of 6 and 6 and 7 letters, the second right."""
    task = loaded(tmp_path, "arc_easy")["arc_easy"]
    doc = task.test_docs()[0]
    assert task.doc_to_choice(doc) == ["A sink", "A gate", "A token"] and task.doc_to_target(doc) == 1
    found = task.process_results(doc, answers(-7.0, -6.0, -7.0))
    assert found == {"acc": 1, "acc_norm": 0, "acc_shared": 1, "acc_norm_shared": 0.5}
    assert task.process_results(doc, answers(-9.0, -6.0, -7.5)) == {
        "acc": 1, "acc_norm": 1, "acc_shared": 1, "acc_norm_shared": 1,
    }  # fmt: skip


def test_made_strict_twice_is_made_strict_once(tmp_path: Path) -> None:
    task = loaded(tmp_path, "arc_easy")["arc_easy"]
    before = task.process_results
    make_strict(task)
    assert task.process_results is before


def asked(found: External, folder: Path) -> Found:
    return evaluate(lambda: found, Asking(NAMES, write_files(folder / "files")), batch_size=4)


def value(rows: list[Row], task: str, metric: str) -> float:
    (one,) = [row.value for row in rows if (row.task, row.metric) == (task, metric)]
    return one


@pytest.fixture
def model(tmp_path: Path) -> External:
    (tmp_path / "model").mkdir()
    return checkpoint(tmp_path / "model", vocab_size=320)


def test_a_uniform_model_scores_nothing_and_by_shares_chance(model: External, tmp_path: Path) -> None:
    torch.nn.init.zeros_(model.model.lm_head.weight)
    made = asked(model, tmp_path)
    # Both sentences of a pair have as many tokens, so all are equal.
    assert value(made.rows, "blimp_adjunct_island", "acc") == 0
    assert value(made.rows, "blimp_adjunct_island", "acc_shared") == 0.5
    assert value(made.rows, "blimp_adjunct_island", "chance") == 0.5
    assert value(made.rows, "blimp_adjunct_island", "items_tied") == 1
    assert value(made.rows, "blimp_adjunct_island", "items_not_finite") == 0
    assert all(item.given.count(" | ") == 1 for item in made.items if item.task == "blimp_adjunct_island")
    (line,) = [r for r in made.records if (r["task"], r["metric"]) == ("blimp_adjunct_island", "acc_shared")]
    assert (line["value"], line["chance"], line["tied"]) == (0.5, 0.5, 1)


def test_a_model_of_not_a_number_scores_nothing_and_is_counted(model: External, tmp_path: Path) -> None:
    handle = model.model.lm_head.register_forward_hook(lambda module, given, out: out * math.nan)
    try:
        made = asked(model, tmp_path)
    finally:
        handle.remove()
    for task in NAMES:
        assert value(made.rows, task, "acc") == value(made.rows, task, "acc_shared") == 0
        assert value(made.rows, task, "items_not_finite") == 1 and value(made.rows, task, "items_tied") == 0
    assert all(item.correct is False and item.factors["is_not_finite"] for item in made.items)


def test_an_oracle_scores_all(model: External, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gatelab.evals.harness.language_model import GatelabLM

    def knowing(self: GatelabLM, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [
            (-1.0 if request.idx == right(request.doc, request.task_name) else -99.0, False) for request in requests
        ]

    def right(doc: dict, task: str) -> int:
        if task == "blimp_adjunct_island":
            return 0
        return int(doc["label"]) if "label" in doc else doc["choices"]["label"].index(doc["answerKey"])

    monkeypatch.setattr(GatelabLM, "loglikelihood", knowing)
    made = asked(model, tmp_path)
    assert [value(made.rows, task, "acc") for task in NAMES] == [1, 1, 1, 1]
    assert all(item.correct and item.answer == item.given for item in made.items)


def test_an_untrained_model_is_near_chance(tmp_path: Path) -> None:
    """Of many pairs whose order is drawn, with an interval of four standard errors."""
    (tmp_path / "model").mkdir()
    found = checkpoint(tmp_path / "model", vocab_size=320)
    files = write_files(tmp_path / "files")
    draw = torch.Generator().manual_seed(0)
    words = ["gate", "sink", "token", "first", "stay", "close", "stands", "may"]
    lines = []
    for _ in range(400):
        a, b = (" ".join(words[i] for i in torch.randint(len(words), (4,), generator=draw)) for _ in range(2))
        lines.append(f'{{"UID": "adjunct_island", "sentence_good": "{a}", "sentence_bad": "{b}"}}\n')
    (files / "blimp/blimp.jsonl").write_text("".join(lines))
    made = evaluate(lambda: found, Asking(("blimp_adjunct_island",), files), batch_size=64)
    acc = value(made.rows, "blimp_adjunct_island", "acc_shared")
    assert abs(acc - 0.5) < 4 * 0.5 / math.sqrt(400)
