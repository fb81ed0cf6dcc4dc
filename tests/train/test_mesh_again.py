"""On meshes of processes too, blocks that are computed again and steps that are begun ahead change nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import paths

BOTH = [
    "encoder: tp=2",
    "experts: tp=2 micro",
    "shared-experts: ep=2",
    "sdpa-headwise: shard=zero3",
    "qk-clip: ep=2 shard=zero3",
]
AHEAD = ["wild: shard=zero3", "wild: tp=2", "wild: shard=none"]
SLOW = [
    "experts: shard=zero3 micro", "encoder-decoder: shard=zero2", "biased-experts: ep=2 shard=zero3", "relative: tp=2",
    "sdpa-headwise: tp=2 compiled", "sdpa-headwise: shard=zero3 compiled", "experts: shard=zero3 compiled",
]  # fmt: skip


def seen(folder: Path, cases: list[str], more: str) -> dict[str, Any]:
    """What the first of two processes saw of all cases, each also with a word more."""
    script, environ = Path(__file__).with_name("train_on_mesh.py"), os.environ | paths() | {"OMP_NUM_THREADS": "1"}
    words = [word for case in cases for word in (case, f"{case} {more}")]
    subprocess.run([sys.executable, script, folder, "2", *words], env=environ, check=True, timeout=500)
    both = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    for found in both:
        assert not (failed := [one["error"] for one in found.values() if "error" in one]), failed[0]
    assert all(repr(both[0][word]["steps"]) == repr(both[1][word]["steps"]) for word in words)
    return both[0]


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen(tmp_path_factory.mktemp("again"), BOTH, "again")


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen(tmp_path_factory.mktemp("ahead"), [*BOTH[-2:], *AHEAD], "ahead")


@pytest.fixture(scope="module")
def slowly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen(tmp_path_factory.mktemp("slowly"), SLOW, "again")


@pytest.mark.parametrize("case", BOTH)
def test_blocks_that_are_computed_again_train_as_before(case: str, again: dict[str, Any]) -> None:
    assert again[f"{case} again"] == again[case]


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_compiled_and_in_parts_too(case: str, slowly: dict[str, Any]) -> None:
    for found, step in zip(slowly[f"{case} again"]["steps"], slowly[case]["steps"], strict=True):
        assert found["loss"] == pytest.approx(step["loss"], abs=1e-5)
        assert found["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("case", [*BOTH[-2:], *AHEAD])
def test_steps_that_are_begun_ahead_change_nothing_and_one_that_diverges_stands_there(
    case: str, ahead: dict[str, Any]
) -> None:
    assert repr(ahead[f"{case} ahead"]) == repr(ahead[case])
    if case in AHEAD:
        diverged = [step["diverged"][0] for step in ahead[case]["steps"]]
        assert diverged[-1] and not any(diverged[:-1]) and len(diverged) < 9
