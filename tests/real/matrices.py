"""What a probe says of a real checkpoint, and what its eager attention matrices say, in float64."""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from gatelab.models.external import External
from gatelab.probes.external import observe
from gatelab.record import Row

THRESHOLDS = (0.1, 0.3, 0.5)
PROBES = ("sinks", "shape", "anywhere")
Numbers = dict[str, np.ndarray]


def package_folder(name: str) -> Path:
    """Where a package's files are. CI has it; elsewhere a test may do without."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        if os.environ.get("CI"):
            pytest.fail(f"the package {name} is not installed; `make test` installs it")
        pytest.skip(f"the package {name} is not installed; `make test` installs it")
    return Path(found.submodule_search_locations[0])


def prose() -> str:
    """English and code, from the standard library."""
    return Path(argparse.__file__).read_text(encoding="utf-8")


def ids_of(checkpoint: External, n_tokens: int, text: str | None = None) -> torch.Tensor:
    """[1, T], with the tokenizer's own first and last tokens."""
    return torch.tensor([checkpoint.tokenizer(text or prose(), truncation=True, max_length=n_tokens).input_ids])


@torch.no_grad()
def observed(checkpoint: External, ids_BT: torch.Tensor, *, probes: tuple[str, ...] = PROBES) -> list[Row]:
    with observe(checkpoint.model, probes) as recorder:
        checkpoint.model(input_ids=ids_BT, use_cache=False)
    assert recorder.unobserved == []
    return recorder.rows()


@torch.no_grad()
def eager(checkpoint: External, ids_BT: torch.Tensor, *, is_causal: bool) -> list[Numbers]:
    """By layer, numbers of each head, from its whole matrix; definitions: docs/metrics.md."""
    model = checkpoint.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        attentions = model(input_ids=ids_BT, use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    assert len(attentions) == model.config.num_hidden_layers
    return [_numbers(weights[0].double().numpy(), is_causal=is_causal) for weights in attentions]


def _numbers(p_HTS: np.ndarray, *, is_causal: bool) -> Numbers:
    T = p_HTS.shape[1]
    n_queries_S = np.arange(T, 0, -1) if is_causal else np.full(T, T)
    importance_HS = p_HTS.sum(axis=1) / n_queries_S
    counted = slice(1, None) if is_causal else slice(None)
    plogp_HTS = p_HTS * np.log(np.where(p_HTS > 0, p_HTS, 1.0))
    return {
        "first_token_mass": p_HTS[:, counted, 0].mean(axis=1),
        "importance": importance_HS[:, 0],
        "sink_importance": importance_HS[:, n_queries_S >= 16].max(axis=1),
        "attention_entropy": -plogp_HTS.sum(axis=2)[:, counted].mean(axis=1),
    }


def agree(rows: list[Row], layers: list[Numbers], *, stack: str | None) -> None:
    """The rows of every head and layer against the matrices', to 1e-4; a sink rate but where a threshold is that near."""

    def value(metric: str, layer: int, head: int | None, threshold: float | None = None) -> float:
        at = (metric, layer, head, threshold, stack, None)
        return next(r.value for r in rows if (r.metric, r.layer, r.head, r.threshold, r.stack, r.domain) == at)

    assert {r.layer for r in rows if r.layer is not None} == set(range(len(layers)))
    for layer, numbers in enumerate(layers):
        for metric in ("first_token_mass", "sink_importance", "attention_entropy"):
            for head, expected in enumerate(numbers[metric]):
                assert value(metric, layer, head) == pytest.approx(expected, abs=1e-4)
            assert value(metric, layer, None) == pytest.approx(numbers[metric].mean(), abs=1e-4)
        for threshold in THRESHOLDS:
            for head, importance in enumerate(numbers["importance"]):
                if abs(importance - threshold) > 1e-4:
                    assert value("sink_rate", layer, head, threshold) == float(importance > threshold)


def of_model(rows: list[Row], metric: str, threshold: float | None = None) -> float:
    """The model's row of a metric."""
    at = (metric, None, None, threshold, None)
    return next(r.value for r in rows if (r.metric, r.layer, r.head, r.threshold, r.domain) == at)
