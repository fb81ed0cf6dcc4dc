"""How many runs share a GPU's step, and which."""

from pathlib import Path

import pytest
import tiny
import torch

from gatelab.config import OptimConfig, Run, Tasks, TrainConfig, override
from gatelab.store import RunFolder
from gatelab.studies.quickstart import toy
from gatelab.study.grouping import environment_of, group_size, grouping, shape_of, stands_at
from gatelab.train.checkpoint import write_tensors
from gatelab.train.group import resolve


def test_small_runs_fill_a_step_and_large_ones_are_alone() -> None:
    small = resolve(toy)
    assert group_size(small, has_gpus=True) == 256  # 8 × 64 tokens a step: as many as are allowed
    assert group_size(small, has_gpus=False) == 1
    middle = resolve(override(toy, {"train.batch_size": 64, "train.tokens": 10**6}))
    assert group_size(middle, has_gpus=True) == 32
    large = {
        "model.d_model": 2048,
        "model.n_heads": 16,
        "model.n_layers": 24,
        "train.batch_size": 8,
        "train.tokens": 10**6,
    }
    assert group_size(resolve(override(toy, large)), has_gpus=True) < 3
    full = resolve(override(toy, {"train.batch_size": 4096, "train.tokens": 10**8}))
    assert group_size(full, has_gpus=True) == 1


def test_experts_that_no_grouped_product_takes_need_more_room() -> None:
    """All 64 of them read every token in the place of 4, so that fewer runs fit."""
    moe = {"n_experts": 64, "top_k": 4}
    fields = {"vocab_size": 64, "max_seq_len": 128, "d_model": 64, "n_layers": 12, "d_ff": None}
    even, odd = (
        group_size(
            tiny.run(
                model=tiny.model(**fields, moe=moe | {"d_expert": width}),
                train=TrainConfig(tokens=10**6, batch_size=64, seq_len=128),
            ),
            has_gpus=True,
        )
        for width in (64, 63)
    )
    assert even == 16 and 1 <= odd < 4


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": OptimConfig(qk_clip=100.0)},
        {"model": tiny.model(positions="relative")},
        {"model": tiny.model(softmax="differential")},
    ],
)
def test_what_is_not_stacked_is_alone(changes: dict[str, object]) -> None:
    assert group_size(tiny.run(**changes), has_gpus=True) == 1


def named(changes: dict[str, object], base: Run = toy) -> str:
    return shape_of(resolve(override(base, changes)).model_dump(mode="json"))


@pytest.mark.parametrize(
    "changes", [{"seed": 3}, {"optim.lr": 1e-4}, {"optim.weight_decay": 0.0}, {"data.process_seed": 1}]
)
def test_runs_that_differ_in_numbers_share_a_step(changes: dict[str, object]) -> None:
    assert named(changes) == named({})


@pytest.mark.parametrize(
    "changes", [{"model.gate": "sdpa-headwise"}, {"train.batch_size": 4}, {"probe.times": 3}, {"optim.qk_clip": 100.0}]
)
def test_runs_of_another_shape_do_not(changes: dict[str, object]) -> None:
    assert named(changes) != named({})


def test_runs_on_different_tasks_share_a_step_and_those_on_different_texts_do_not() -> None:
    on_tasks = toy.model_copy(update={"data": Tasks(names=("needle",))})
    assert named({"data.names": "cite"}, on_tasks) == named({}, on_tasks) != named({})
    shared = {"model": {}, "train": {}}
    texts = [shape_of({"data": {"kind": "text", "paths": [path]}, **shared}) for path in ("a", "b")]
    assert texts[0] != texts[1]


def test_where_a_run_stands_is_read_from_its_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "07aa614300b9")
    run.path.mkdir()
    assert stands_at(run) is None
    path = run.path / "checkpoint.safetensors"
    write_tensors(path, {"x": torch.zeros(3)}, {"step": 30, "offset": 0})
    assert stands_at(run) == 30
    for damaged in (path.read_bytes()[:20], b"", b"x" * 100):
        path.write_bytes(damaged)
        assert stands_at(run) is None


def test_how_runs_were_grouped_is_said_in_a_line() -> None:
    stacked = {"runs_in_group": 256, "stacked": True}
    alone = {"runs_in_group": 1, "stacked": False}
    assert grouping([stacked] * 768) == "768 runs in 3 stacks of 256"
    # A run that has not begun, and one whose record is of before groups were recorded.
    assert grouping([stacked] * 256 + [alone] * 2 + [None, {}]) == "258 runs in 1 stack of 256, 2 alone"
    assert grouping([{"runs_in_group": 3, "stacked": False}] * 6) == "6 runs in 2 groups of 3 that take turns"
    assert grouping([alone] * 4) == "4 runs, each alone"
    assert grouping([alone]) == "1 run, alone"
    assert grouping([None]) == ""


def test_a_record_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert environment_of(run) is None
    for text in ("[1]", "{", "\xff"):
        (tmp_path / "environment.json").write_text(text)
        assert environment_of(run) is None
    (tmp_path / "environment.json").write_text('{"runs_in_group": 2}')
    assert environment_of(run) == {"runs_in_group": 2}
