"""Runs on meshes of processes train, and are looked at, as on one process."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import meshes
import pytest
from ranks import paths

from gatelab.config import Execution
from gatelab.evals.heldout import look
from gatelab.train.group import Group
from gatelab.train.loop import train

TWO = [
    "plain: shard=zero2",
    "sdpa-headwise: shard=zero3",
    "experts: shard=zero3 micro",
    "qk-clip: ep=2 shard=zero3",
    "shared-experts: ep=2",
    "encoder-decoder: shard=zero3",
    "encoder: tp=2",
    "encoder-decoder: tp=2",
    "experts: tp=2 micro",
    "one-kv-head: tp=2",
    "sdpa-headwise: tp=2",
    "sdpa-elementwise: tp=2",
    "key-value: tp=2",
    "query-out: tp=2",
    "shared: tp=2",
    "from-value: tp=2",
    "all-heads-norm: tp=2",
    "odd-tokens: tp=2",
    "odd-tokens: tp=2 micro",
]
MORE_OF_TWO = [
    "sdpa-headwise: tp=2 compiled",
    "sdpa-headwise: shard=zero2 compiled",
    "odd-tokens: tp=2 micro compiled",
    "sink-logit: shard=zero3 micro",
    "shared-experts: ep=2 shard=zero2",
    "biased-experts: ep=2 micro",
    "shared-experts: ep=2 compiled",
    "experts: ep=2 shard=zero3 compiled",
    "experts: shard=zero3 compiled",
    "experts: tp=2 compiled",
    "encoder-decoder-experts: ep=2",
    "shared-experts: tp=2",
    "biased-experts: tp=2",
    "qk-clip: tp=2",
    *(f"{name}: tp=2" for name in meshes.MODELS if f"{name}: tp=2" not in TWO),
]
FOUR = [
    "experts: ep=2 shard=zero3",
    "experts: ep=4",
    "shared-experts: ep=4 shard=zero2",
    "encoder-decoder-experts: dp=2 tp=2 shard=zero3 micro",
    "biased-experts: dp=2 tp=2 shard=zero2",
    "qk-clip: dp=2 tp=2 shard=zero3",
    "odd-tokens: tp=4 micro",
    "encoder: tp=4",
    "encoder-decoder: tp=4",
    "sdpa-headwise: shard=zero3",
    *(f"{name}: tp=4" for name in meshes.MODELS),
    *(f"{name}: dp=2 tp=2 shard=zero3" for name in meshes.MODELS),
]
Found = dict[str, dict[str, Any]]


def on_mesh(folder: Path, processes: int, cases: list[str]) -> Found:
    """What the first of so many processes saw of all cases."""
    script, environ = Path(__file__).with_name("train_on_mesh.py"), os.environ | paths() | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, folder, str(processes), *cases], env=environ, check=True, timeout=500)
    seen = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    for case in cases:
        assert "error" not in seen[0][case], seen[0][case]["error"]
        assert all(one[case]["steps"] == seen[0][case]["steps"] for one in seen if not _watches_nothing(one[case]))
    return seen[0]


def _watches_nothing(of_case: dict[str, Any]) -> bool:
    """Not-a-number, which a layer without a first-token mass has, equals nothing."""
    return "NaN" in json.dumps(of_case["steps"])


@pytest.fixture(scope="module")
def alone() -> Iterator[dict[str, Any]]:
    """What one process saw, by the run's name."""
    yield {}


def _of_one(name: str, alone: dict[str, Any]) -> dict[str, Any]:
    if name not in alone:
        group = Group([meshes.run_of(name)])
        steps = [asdict(step) for step in train(group)]
        weights = {n: p.double().sum().item() for n, p in group.members[0].model.named_parameters()}
        alone[name] = {"steps": steps, "weights": weights, "rows": [asdict(r) for r in look(group, ["x"])[0]]}
    return alone[name]


def _check(case: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for seen, step in zip(found["steps"], expected["steps"], strict=True):
        assert seen["loss"] == pytest.approx(step["loss"], abs=1e-5), case
        assert seen["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-4), case
        mass, of_one = (s["first_mass"] for s in (seen, step))
        assert _flat(mass) == pytest.approx(_flat(of_one), abs=1e-5, nan_ok=True), case
    assert found["weights"] == pytest.approx(expected["weights"], abs=1e-3), case
    kinds = [[{**row, "value": 0} for row in rows["rows"]] for rows in (found, expected)]
    assert kinds[0] == kinds[1], case
    values = [[row["value"] for row in rows["rows"]] for rows in (found, expected)]
    assert values[0] == pytest.approx(values[1], abs=1e-4, rel=1e-4, nan_ok=True), case


def _flat(values: Any) -> list[float]:
    if not isinstance(values, list):
        return [math.nan if values is None else values]
    return [number for value in values for number in _flat(value)]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return on_mesh(tmp_path_factory.mktemp("two"), 2, TWO)


@pytest.mark.parametrize("case", TWO)
def test_two_processes_train_as_one(case: str, by_two: Found, alone: dict[str, Any]) -> None:
    _check(case, by_two[case], _of_one(case.partition(":")[0], alone))


@pytest.fixture(scope="module")
def more_by_two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return on_mesh(tmp_path_factory.mktemp("more"), 2, MORE_OF_TWO)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_OF_TWO)
def test_two_processes_train_every_kind_as_one(case: str, more_by_two: Found, alone: dict[str, Any]) -> None:
    _check(case, more_by_two[case], _of_one(case.partition(":")[0], alone))


@pytest.fixture(scope="module")
def by_four(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return on_mesh(tmp_path_factory.mktemp("four"), 4, FOUR)


@pytest.mark.slow
@pytest.mark.parametrize("case", FOUR)
def test_four_processes_train_as_one(case: str, by_four: Found, alone: dict[str, Any]) -> None:
    """With two kv heads and one, which are fewer than the ranks that share them."""
    _check(case, by_four[case], _of_one(case.partition(":")[0], alone))


def test_a_mesh_that_does_not_fit_is_refused_before_ranks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it not, this process would wait for a second one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = meshes.run_of("sdpa-headwise")
    for execution, words in (
        ({"parallel": {"tp": 2}, "packed": True}, r"execution.packed=true joins projections"),
        ({"processes": 4, "parallel": {"dp": 4}}, r"dp=4 tp=1 does not make 2 processes"),
    ):
        with pytest.raises(ValueError, match=words):
            Group([run], Execution(**execution))
    small = run.model_copy(update={"train": run.train.model_copy(update={"batch_size": 1})})
    with pytest.raises(ValueError, match=r"batch_size=1 has fewer sequences than 2 data ranks; take fewer processes"):
        Group([small], Execution(processes=2))
