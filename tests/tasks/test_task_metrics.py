"""What answers are worth, by known answers."""

import math
import sys

import numpy as np
import pytest

from gatelab.tasks import metrics
from gatelab.tasks.metrics import (  # fmt: skip
    Verdict,
    answer_by_citation,
    bin_of,
    choice,
    cited,
    copied_from_start,
    edit_similarity,
    effective_length,
    overlap,
    position_curve,
    rouge_l,
)


def test_a_choice_is_right_when_one_option_alone_is_best():
    assert choice([-1.0, -2.0, -math.inf], 0) == Verdict(True, 1.0)
    assert choice([-1.0, -2.0], 1) == Verdict(False, 0.0)


def test_a_tie_is_never_right_and_gives_its_share():
    assert choice([-1.0, -1.0, -3.0], 0) == Verdict(False, 0.5, is_tied=True)
    assert choice([-1.0, -1.0, -3.0], 2) == Verdict(False, 0.0, is_tied=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_spoils_the_choice(bad: float):
    assert choice([bad, -1.0], 1) == choice([bad, -1.0], 0) == Verdict(False, 0.0, is_nan=True)


def test_a_model_that_finds_everything_equally_likely_scores_chance_wherever_the_answer_stands():
    verdicts = [choice([-2.0] * 8, 0) for _ in range(100)]
    assert np.mean([v.credit for v in verdicts]) == 1 / 8
    assert not any(v.is_right for v in verdicts) and all(v.is_tied for v in verdicts)


def test_precision_recall_and_f1_of_sets():
    share = overlap([1, 2, 3, 4], [2, 3, 9])
    assert (share.precision, share.recall) == (1 / 2, 2 / 3)
    assert share.f1 == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert overlap([3, 2, 1], [1, 2, 3]).f1 == 1 and overlap([5], [6]).f1 == 0
    assert overlap([1, 1, 1], [1, 2, 3]).precision == 1 / 3  # saying one thing often is no way to a high score
    assert (overlap([], []).f1, overlap([], [1]).f1, overlap([1], []).f1) == (1, 0, 0)


def test_an_answer_and_its_citations_are_scored_apart():
    is_right, share = cited([10, 3, 4], [10, 4, 5])
    assert is_right and (share.precision, share.recall, share.f1) == (0.5, 0.5, 0.5)
    assert cited([11, 4, 5], [10, 4, 5])[0] is False and cited([], [10, 4])[0] is False


def test_the_table_of_answer_and_citation_has_four_cells_that_sum_to_one():
    table = answer_by_citation([(True, True), (True, False), (True, True), (False, False)])
    assert table == {(True, True): 0.5, (True, False): 0.25, (False, True): 0.0, (False, False): 0.25}
    with pytest.raises(ValueError, match="no items"):
        answer_by_citation([])


@pytest.mark.parametrize(
    ("given", "right", "distance"), [("kitten", "sitting", 3), ("abc", "abc", 0), ("", "ab", 2), ("flaw", "lawn", 2)]
)
def test_edit_similarity_is_one_less_the_share_of_edits(given: str, right: str, distance: int):
    assert edit_similarity(given, right) == 1 - distance / max(len(given), len(right))
    assert edit_similarity(right, given) == edit_similarity(given, right)
    assert edit_similarity("", "") == 1


def test_rouge_l_is_that_of_its_package():
    pytest.importorskip("rouge_score")
    # Longest common subsequence "the cat": 2 of 3 and 2 of 4 words.
    assert rouge_l("the cat slept", "the black cat ran") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert rouge_l("running dogs", "run dog") == 1  # the stemmer


def test_rouge_l_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'gatelab\[eval\]'"):
        rouge_l("a", "a")


def test_copying_from_the_start_is_seen_behind_bos():
    tokens = [0, 11, 12, 13, 14]
    assert copied_from_start([11, 12, 13, 99], tokens) and copied_from_start([11], tokens)
    assert not copied_from_start([12, 13, 14], tokens) and not copied_from_start([11, 12, 99], tokens)
    assert not copied_from_start([], tokens)


def test_depths_fall_into_eleven_equal_bins():
    assert [bin_of(b / 10) for b in range(11)] == list(range(11))
    assert (bin_of(0.0), bin_of(1.0), bin_of(1 / 11 - 1e-9), bin_of(1 / 11 + 1e-9)) == (0, 10, 0, 1)


def planted(accuracy: list[float], n: int) -> tuple[list[float], list[float]]:
    """Exactly the planted share of right answers in each of eleven bins."""
    depths, scores = [], []
    for b, share in enumerate(accuracy):
        depths += [(b + 0.5) / 11] * n
        scores += [1.0] * round(share * n) + [0.0] * (n - round(share * n))
    return depths, scores


U = [0.9, 0.8, 0.6, 0.5, 0.4, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8]


def test_a_planted_u_is_found():
    curve = position_curve(*planted(U, 100))
    assert curve.bins == pytest.approx(U)
    assert curve.primacy.value == pytest.approx(0.5) and curve.recency.value == pytest.approx(0.4)
    assert curve.u_index.value == pytest.approx(0.45) and curve.worst.value == pytest.approx(0.4)
    for found in (curve.primacy, curve.recency, curve.u_index):
        assert found.low < found.value < found.high and found.low > 0.2


def test_the_interval_of_the_u_index_is_as_wide_as_arithmetic_says():
    curve = position_curve(*planted(U, 100), n_samples=4000)
    variance = [p * (1 - p) / 100 for p in U]
    sd = math.sqrt((variance[0] + variance[10]) / 4 + sum(variance[4:7]) / 9)
    assert (curve.u_index.high - curve.u_index.low) / 2 == pytest.approx(1.96 * sd, rel=0.06)


def test_a_flat_curve_has_no_u():
    curve = position_curve(*planted([0.7] * 11, 100))
    assert curve.u_index.value == pytest.approx(0) and curve.u_index.low < 0 < curve.u_index.high


def test_of_items_that_stand_everywhere_items_are_drawn_and_not_their_places():
    # Half of the items are right wherever the evidence stands: nothing depends on the place, whichever items are drawn.
    depths = [b / 10 for b in range(11) for _ in range(20)]
    scores = [float(i % 2) for _ in range(11) for i in range(20)]
    paired, apart = position_curve(depths, scores, is_paired=True), position_curve(depths, scores)
    for of in (paired.u_index, paired.primacy, paired.recency):
        assert (of.value, of.low, of.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert apart.u_index.low < 0 < apart.u_index.high
    # Of one bin the interval is the binomial's.
    assert (paired.worst.high - paired.worst.low) / 2 == pytest.approx(1.96 * math.sqrt(0.25 / 20), rel=0.15)
    with pytest.raises(ValueError, match="bins of unequal numbers"):
        position_curve(depths[:-1], scores[:-1], is_paired=True)


def test_bins_that_a_curve_needs_are_named_when_they_are_empty_and_no_number_is_refused():
    depths, scores = planted(U, 2)
    some = [(d, s) for d, s in zip(depths, scores, strict=True) if bin_of(d) != 5]
    with pytest.raises(ValueError, match=r"no items in depth bins \[5\]"):
        position_curve([d for d, _ in some], [s for _, s in some])
    with pytest.raises(ValueError, match="not finite"):
        position_curve(depths, [math.nan, *scores[1:]])
    ends = [(d, s) for d, s in zip(depths, scores, strict=True) if bin_of(d) not in (2, 8)]
    curve = position_curve([d for d, _ in ends], [s for _, s in ends])
    assert math.isnan(curve.bins[2]) and math.isfinite(curve.worst.value)


@pytest.mark.parametrize(
    ("scores", "longest"),
    [
        ({128: 1.0, 256: 0.95, 512: 0.9, 1024: 0.85, 2048: 0.84}, 1024),
        ({128: 0.4, 256: 0.5, 512: 0.45, 1024: 0.43, 2048: 0.1}, 1024),  # of its own best, not of one
        ({128: 0.0, 256: 0.0, 512: 0.0}, None),
        ({128: math.nan, 256: 0.5, 512: math.nan, 1024: 0.5}, 1024),
        ({128: math.nan}, None),
        ({}, None),
    ],
)
def test_effective_length_is_the_longest_that_keeps_85_percent(scores: dict[int, float], longest: int | None):
    assert effective_length(scores) == longest


def test_an_effective_length_is_of_what_is_above_chance():
    scores, chance = (
        {128: 0.5, 256: 0.4, 512: 0.3, 1024: 0.47, 2048: 0.45},
        dict.fromkeys((128, 256, 512, 1024, 2048), 0.25),
    )
    assert effective_length(scores) == 2048 and effective_length(scores, chance) == 1024
    assert (
        effective_length(scores, chance, {128: 0.26}) == 1024 and effective_length(scores, chance, {128: 0.25}) is None
    )
    assert effective_length(dict.fromkeys((128, 256, 512, 1024), 0.25), chance) is None


def test_metrics_need_no_torch():
    import subprocess

    code = "import sys, gatelab.tasks.metrics, gatelab.tasks.text; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert metrics.N_BINS == 11
