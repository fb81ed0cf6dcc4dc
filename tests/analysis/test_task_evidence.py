"""Right against wrong items by planted readings: means, differences within a seed, intervals over items, and documents."""

from dataclasses import replace

import numpy as np
import pytest

from gatelab.analysis.task_evidence import AGREEMENTS, agreements, contrast, contrasts, readings_of
from gatelab.analysis.task_items import Asked

GROUP = ("cell", "none", "cite", 1, "none")


def answered(seed: int, index: int, *, is_right: bool, paid: float, given: int = 7, attended: int = 7) -> Asked:
    inside = {
        "evidence": [paid, paid + 0.1], "distractors": [0.0, 0.0], "first": [0.5, 0.3], "even": 0.125,
        "gates": {"sdpa": {"evidence": [0.25, 0.75], "asked": [0.5, None], "all": [0.5, 0.5]}}, "attended": [attended],
    }  # fmt: skip
    return Asked(
        ("cell", "none", seed), "cite", index, 64, 1, "none", 0, is_right, 1.0, (1, 7), (1, given), (), inside=inside
    )


def test_readings_are_means_over_layers_and_what_is_no_number_is_left_out() -> None:
    found = readings_of(answered(0, 0, is_right=True, paid=0.2).inside)
    assert found == {"evidence": pytest.approx(0.25), "first": 0.4, "sdpa evidence": 0.5}


def test_right_and_wrong_items_are_compared_within_a_seed() -> None:
    """Seed 1 pays 0.5 more to everything and is right more often, which is no difference between its items."""
    items = [
        answered(seed, i, is_right=i % 4 < (1 if seed == 0 else 3), paid=0.5 * seed)
        for seed in (0, 1)
        for i in range(40)
    ]
    items += [answered(2, i, is_right=True, paid=0.9) for i in range(40)]
    found = contrasts(items)[GROUP]["evidence"]
    assert (found.n_right, found.n_wrong, found.n_seeds, found.even) == (10 + 30 + 40, 30 + 10, 2, 0.125)
    assert found.right == pytest.approx((10 * 0.05 + 30 * 0.55 + 40 * 0.95) / 80)
    assert found.wrong == pytest.approx((30 * 0.05 + 10 * 0.55) / 40)
    ends = (found.difference.value, found.difference.low, found.difference.high)
    assert ends == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_interval_is_that_of_drawing_items_with_all_their_answers() -> None:
    rng = np.random.default_rng(3)
    n, n_seeds = 60, 3
    right_SI = rng.random((n_seeds, n)) < 0.5
    value_SI = 0.3 * right_SI + rng.normal(0, 0.2, (n_seeds, n)) + rng.normal(0, 0.2, n)
    seeds, items = (x.ravel().tolist() for x in np.indices((n_seeds, n)))
    found = contrast(seeds, items, value_SI.ravel().tolist(), right_SI.ravel().tolist())

    def difference(drawn_I: np.ndarray) -> float:
        parts = [
            v[drawn_I][r[drawn_I]].mean() - v[drawn_I][~r[drawn_I]].mean()
            for v, r in zip(value_SI, right_SI, strict=True)
        ]
        return float(np.mean(parts))

    assert found.difference.value == pytest.approx(difference(np.arange(n)))
    samples = [difference(rng.integers(0, n, n)) for _ in range(4000)]
    assert (found.difference.low, found.difference.high) == pytest.approx(np.percentile(samples, (2.5, 97.5)), abs=0.02)


def test_a_seed_with_too_few_of_a_kind_says_nothing_of_a_difference() -> None:
    items = [answered(0, i, is_right=i > 1, paid=0.1) for i in range(20)]
    found = contrasts(items)[GROUP]["evidence"]
    assert found.difference is None and (found.n_right, found.n_wrong, found.n_seeds) == (18, 2, 0)
    found = contrasts([answered(0, i, is_right=True, paid=0.1) for i in range(20)])[GROUP]["evidence"]
    assert found.wrong is None and found.right == pytest.approx(0.15)


def test_gold_cited_and_most_attended_documents_agree_or_do_not() -> None:
    # Of ten items, six right and attended, one right and not, two wrong of which one cites what it attends, one attends gold.
    kinds = [(7, 7)] * 6 + [(7, 3), (4, 4), (4, 3), (4, 7)]
    items = [
        answered(seed, i, is_right=given == 7, paid=0.1, given=given, attended=attended)
        for seed in (0, 1)
        for i, (given, attended) in enumerate(kinds)
    ]
    found = agreements(items)[GROUP]
    assert [found[name].value for name in AGREEMENTS] == pytest.approx([0.7, 0.7, 0.7, 0.6, 1 / 3])
    assert all(x.low <= x.value <= x.high and x.low < x.high for x in found.values())
    all_right = agreements([answered(0, i, is_right=True, paid=0.1) for i in range(5)])[GROUP]
    assert AGREEMENTS[-1] not in all_right and all_right["cited gold"].value == 1


def test_keys_that_are_asked_one_by_one_are_right_or_wrong_by_themselves() -> None:
    items = []
    for i in range(6):
        one = answered(0, i, is_right=False, paid=0.1)
        items.append(
            replace(one, answer=(1, 2, 3), given=(1, 9, 3), inside=one.inside | {"of_each": [0.75, 0.25, 0.5]})
        )
    found = contrasts(items)[GROUP]
    assert (found["evidence"].n_right, found["evidence"].n_wrong) == (12, 6)
    assert (found["evidence"].right, found["evidence"].wrong) == (0.625, 0.25)
    assert found["evidence"].difference.value == 0.375 and found["first"].n_right == 0


def test_items_that_were_not_looked_into_are_left_out() -> None:
    plain = Asked(("cell", "none", 0), "cite", 0, 64, 1, "none", 0, True, 1.0, (1, 7), (1, 7), ())
    assert contrasts([plain]) == {} and agreements([plain]) == {}
