"""gatelab bench train beside what else trains the same model: its loop uncaptured, and transformers' Llama."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gatelab.bench import timing, train, train_peers
from gatelab.bench.benchmark import benchmark
from gatelab.bench.goals import judged
from gatelab.bench.held_training import Unstacked
from gatelab.bench.plan import plan
from gatelab.bench.timing import Timing
from gatelab.config import ConfigError, Run, override
from gatelab.config.run import TrainConfig
from gatelab.models.ladder import SIZES

SMALL = {"sizes": "16x1x2x32", "context": 8, "tokens": 16, "steps": 1, "gates": "none", "seconds": 120.0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(timing, "_MOST", 3)


def rows_of(**given: Any) -> list[Timing]:
    return benchmark("train", plan("train", "cpu", SMALL | given), lambda _: None).rows


def loop(**changes: Any) -> train_peers.LlamaLoop:
    run = Run(
        model=override(plan_model(), changes),
        train=TrainConfig(tokens=1600, batch_size=2, seq_len=8),
        optim={"lr": 1e-2},
    )
    return train_peers.LlamaLoop(run, torch.device("cpu"), 0)


def plan_model() -> Any:
    return train.size("16x1x2x32")


def test_peers_train_the_ungated_model_in_turns_with_the_others() -> None:
    pytest.importorskip("transformers")
    rows = {row.candidate: row for row in rows_of(peers="loop,transformers", micro_batch=1)}
    assert list(rows) == ["alone", "alone, compiled loop", train_peers.LLAMA]
    contracts = [row.contract for row in rows.values()]
    assert contracts == ["holds", "holds", "holds (loss alone)"]
    assert all(
        row.against == "ungated" and row.ratio > 0 and row.tokens_per_s > 0 and row.mfu > 0 for row in rows.values()
    )
    assert [row.is_own for row in rows.values()] == [True, False, False]
    at_33m = [
        judged([timing.replace(row, at=row.at | {"n_parameters": 33e6})], "NVIDIA H100")[0] for row in rows.values()
    ]
    assert [row.goal for row in at_33m] == ["MFU at least 33%", None, None]


def test_the_loop_is_the_trainer_outside_of_any_stack() -> None:
    given = plan("train", "cpu", SMALL | {"peers": "loop"})
    arm = train._arm(given, "16x1x2x32", "none", 1)
    assert type(train._group(given, arm)) is not Unstacked
    group = train._group(given, train._peer(arm, "loop"))
    assert isinstance(group, Unstacked) and not group.is_stacked and group.execution.compile == "auto"


def test_a_llama_without_time_or_of_another_shape_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(train, "_BEGUN", 2.0)
    rows = rows_of(peers="transformers")
    assert rows[0].contract == "holds" and rows[1].contract.startswith("not run: the time was over")
    assert train_peers.unlike_llama(plan_model()) == ""
    other = override(plan_model(), {"window": 4, "qk_norm": "rms"})
    assert train_peers.unlike_llama(other) == "not run: Llama has no window, qk_norm of this model"
    assert all(train_peers.unlike_llama(SIZES[name].model) == "" for name in ("30m", "124m") if name in SIZES)


def test_a_llama_is_of_the_same_shape_and_its_loss_is_that_of_random_logits_and_falls() -> None:
    pytest.importorskip("transformers")
    for changes in ({}, {"tied_embeddings": True}, {"n_kv_heads": 1}):
        assert loop(**changes).contract() == "holds (loss alone)"


def test_a_llama_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    biased = loop()
    biased._model.lm_head.weight.data.mul_(300)
    assert biased.contract().startswith("FAIL first loss")
    still = loop()
    monkeypatch.setattr(still._optimizer, "step", lambda: None)
    assert still.contract().startswith("FAIL loss")
    monkeypatch.setattr(train_peers, "count_parameters", lambda _: 7)
    assert loop().contract().endswith("expected 7")


def test_parts_of_a_batch_are_the_batch() -> None:
    pytest.importorskip("transformers")
    whole, parts = loop(), loop()
    parts.micro_batch, parts._pool = 1, whole._pool
    first, second = (x._step(x._pool[0]) for x in (whole, parts))
    torch.testing.assert_close(first, second)
    for p, q in zip(whole._model.parameters(), parts._model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)


def test_peers_are_words_and_a_cpu_has_none_unless_stated() -> None:
    assert plan("train", "cpu", {}).peers == plan("train", "cuda", {"peers": "none"}).peers == ()
    assert plan("train", "cuda", {}).peers == ("loop", "transformers")
    with pytest.raises(ConfigError, match="peer 'lopp': expected none, loop or transformers; did you mean 'loop'"):
        plan("train", "cpu", {"peers": "lopp"})
