"""The step at which a sink emerges: known answers, flukes, and what has not emerged."""

import math
from statistics import median

import pytest

from gatelab.probes.training import emergence, emergence_rows
from gatelab.record import Row

A, B = 0.6, 0.1  # above and below the threshold 0.3


@pytest.mark.parametrize(
    "values, step",
    [
        ([B, B, A, A, A], 20),
        ([A, A, A, A], 0),
        ([B, B, B], None),
        ([], None),
        ([A], None),
        # One look above is a fluke, the last one too.
        ([B, A, B, B, A, A], 40),
        ([B, B, B, A], None),
        ([B, A, B, A, B, A], None),
        # One look below, in the midst of others, is a fluke.
        ([B, A, A, B, A, A], 10),
        ([B, A, A, B, A], 10),
        # Two are not, nor one that stands behind a single look above.
        ([B, A, A, B, B, A, A], 50),
        ([B, A, B, A, A], 30),
        # What is gone at the end has not emerged.
        ([B, A, A, A, B], None),
        ([B, A, A, A, B, B], None),
        # No number, and the threshold itself, are not above it.
        ([B, math.nan, A, A], 20),
        ([B, 0.3, A, A], 20),
    ],
)
def test_emergence_is_the_first_of_the_looks_that_stay_above(values: list[float], step: int | None) -> None:
    points = [(10 * i, value) for i, value in enumerate(values)]
    assert emergence(points, 0.3) == step
    assert emergence(reversed(points), 0.3) == step


@pytest.mark.parametrize(
    "values, lasting, step",
    [
        ([B, A, A, A, B, B], 3, 10),
        ([B, A, A, A, B, B], 4, None),
        ([B, A, A, B, B, A, A, A, B], 3, 50),
        ([B, A, A, B, A, B, B], 4, 10),
        ([B, A, B, A, A], 2, 30),
        ([B, B, B, A, A], 3, None),
    ],
)
def test_a_sink_that_lasts_so_many_looks_emerged_even_if_it_goes(
    values: list[float], lasting: int, step: int | None
) -> None:
    assert emergence([(10 * i, v) for i, v in enumerate(values)], 0.3, lasting=lasting) == step


@pytest.mark.parametrize(
    "points, threshold, lasting, message",
    [
        ([(0, B), (5, A), (5, B)], 0.3, None, "step 5 comes twice; give one value a step"),
        ([(0, B)], math.nan, None, "threshold=nan: expected a number"),
        ([(0, B)], 0.3, 1, "lasting=1: expected at least 2 looks"),
    ],
)
def test_what_has_no_answer_is_refused(points: list, threshold: float, lasting: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        emergence(points, threshold, lasting=lasting)


def looks(metric: str, values: list[float], **at: object) -> list[Row]:
    return [Row("a", 100 * i, "sinks", metric, v, "share", **at) for i, v in enumerate(values)]


def test_every_head_layer_and_model_has_its_own_step() -> None:
    rows = [
        *looks("first_token_mass", [B, A, A, A], layer=0, head=1, length=64),
        *looks("first_token_mass", [B, B, A, A], layer=0, length=64),
        *looks("first_token_mass", [B, B, B, A], length=64),
        *looks("first_token_mass", [A, A, A, A], length=64, domain="code"),
        *looks("gate_mean", [A, A, A, A], layer=0),
    ]
    found = emergence_rows(reversed(rows))
    assert {(r.layer, r.head, r.domain): r.value for r in found} == {
        (0, 1, None): 100, (0, None, None): 200, (None, None, None): math.inf, (None, None, "code"): 0,
    }  # fmt: skip
    assert {(r.run, r.step, r.source, r.metric, r.unit, r.length) for r in found} == {
        ("a", 300, "first_token_mass", "sink_emergence_step", "step", 64)
    }


def test_metrics_thresholds_and_runs_are_told_apart() -> None:
    rows = [
        # Of a share of sequences and heads, most; of an importance, 0.3.
        *looks("sink_rate", [0.1, 0.4, 0.6, 0.7], threshold=0.3),
        *looks("sink_rate", [0.1, 0.6, 0.6, 0.7], threshold=0.1),
        *looks("sink_importance", [0.1, 0.4, 0.6, 0.7]),
        *(Row("b", r.step, r.source, r.metric, 0.1, r.unit) for r in looks("sink_importance", [0.0] * 4)),
    ]
    found = {(r.run, r.source, r.threshold): r.value for r in emergence_rows(rows)}
    assert found == {
        ("a", "sink_rate", 0.3): 200, ("a", "sink_rate", 0.1): 100,
        ("a", "sink_importance", None): 100, ("b", "sink_importance", None): math.inf,
    }  # fmt: skip


def test_what_has_not_emerged_counts_in_a_median() -> None:
    heads = [[B, A, A, A], [B, B, B, B], [B, B, B, B]]
    rows = [row for h, values in enumerate(heads) for row in looks("first_token_mass", values, layer=0, head=h)]
    found = emergence_rows(rows)
    assert median(r.value for r in found) == math.inf
    assert [r.as_dict()["value"] for r in found] == [100.0, "inf", "inf"]


def test_two_looks_say_nothing() -> None:
    assert emergence_rows(looks("first_token_mass", [A, A])) == []


def test_a_head_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="step 100 comes twice"):
        emergence_rows([*looks("first_token_mass", [B, A, A]), *looks("first_token_mass", [B, A, A])[1:2]])
