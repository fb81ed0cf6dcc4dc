"""Words and digits: a sentence says no more than the numbers do."""

from math import nan

import pytest

from gatelab.analysis import Share
from gatelab.analysis.verdicts import compact, number, places, sentence, verdict
from gatelab.record import Finding, Metric

ACCURACY = Metric("accuracy", "fraction", "higher-is-better", "accuracy", primary=True)


def finding(**changes):
    given = {
        "cell": "recall", "arm": "gated", "baseline": "none", "metric": "accuracy", "unit": "fraction",
        "primary": True, "direction": "higher-is-better", "n_pairs": 3, "baseline_mean": 0.5, "arm_mean": 0.6,
        "effect": 0.1, "low": 0.06, "high": 0.14, "confidence": 0.95, "p": 0.004, "q": 0.02, "equivalence": None,
        "p_equivalence": None, "detectable": 0.05, "verdict": "higher", "sentence": "",
    }  # fmt: skip
    return Finding(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "higher"),
        ({"effect": -0.1}, "lower"),
        ({"q": 0.2}, "unclear"),
        ({"q": 0.2, "equivalence": 0.3, "p_equivalence": 0.01}, "equivalent"),
        ({"q": 0.2, "equivalence": 0.3, "p_equivalence": 0.06}, "unclear"),
        ({"q": 0.02, "equivalence": 0.3, "p_equivalence": 0.01}, "higher"),
        ({"primary": False, "q": None, "p": 0.04}, "higher"),
        ({"primary": False, "q": None, "p": 0.06}, "unclear"),
        ({"p": nan, "q": nan}, "untestable"),
    ],
)
def test_the_verdict_follows_from_the_numbers(changes, word):
    assert verdict(finding(**changes), fdr=0.10) == word


@pytest.mark.parametrize(
    ("direction", "word", "effect", "judged"),
    [
        ("higher-is-better", "higher", 0.1, "(better; "),
        ("higher-is-better", "lower", -0.1, "(worse; "),
        ("lower-is-better", "lower", -0.1, "(better; "),
        ("lower-is-better", "higher", 0.1, "(worse; "),
        ("neutral", "higher", 0.1, "(95% interval"),
    ],
)
def test_better_and_worse_follow_the_declared_direction(direction, word, effect, judged):
    said = sentence(finding(direction=direction, verdict=word, effect=effect), ACCURACY)
    assert judged in said
    assert ("lowers" in said) == (word == "lower")


def test_the_interval_is_told_in_the_direction_of_the_statement():
    said = sentence(finding(effect=-0.1, low=-0.14, high=-0.06, verdict="lower"), ACCURACY)
    assert "lowers the accuracy by 0.10 (worse; 95% interval 0.06 to 0.14, 3 seeds, q = 0.02)" in said


def test_a_share_is_said_even_for_an_arm_that_never_finished():
    sink = Metric("first_token_mass", "fraction", "neutral", "first-token mass", bimodal=True, threshold=0.5)
    f = finding(n_pairs=0, p=nan, q=nan, effect=nan, verdict="untestable")
    said = sentence(f, sink, shares=(Share("recall", "none", sink.name, 2, 3, 0.094, 0.992), None))
    assert said.startswith("recall: the effect of gated on the mean first-token mass cannot be tested")
    assert said.endswith(
        "First-token mass is above 0.5 in 2 of 3 seeds of none (exact 95% interval 9% to 99.2%), in no finished run of gated."
    )


@pytest.mark.parametrize(("scale", "decimals"), [(0.009, 3), (0.013, 3), (0.00031, 4), (4.0, 0), (1.2, 1), (1463.0, 0)])
def test_digits_follow_the_width_of_the_interval(scale, decimals):
    assert places(scale) == decimals


@pytest.mark.parametrize(
    ("x", "decimals", "text"), [(-0.0004, 2, "0.00"), (-0.021, 3, "-0.021"), (3e-9, 10, "3.0e-09"), (1234.5, 0, "1234")]
)
def test_numbers_have_no_negative_zero_and_no_rows_of_zeros(x, decimals, text):
    assert number(x, decimals) == text


@pytest.mark.parametrize(
    ("x", "text"), [(0.0512, "0.051"), (1.94, "1.9"), (1923.4, "1923"), (0.0, "0"), (2e-8, "2.0e-08")]
)
def test_compact_numbers_have_two_significant_digits(x, text):
    assert compact(x) == text


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"direction": "up"}, "Metric.direction='up' of x"),
        ({"equivalence": 0.0}, "Metric.equivalence=0.0 of x"),
        ({"bimodal": True}, "bimodal but has no threshold"),
    ],
)
def test_a_metric_that_cannot_be_analysed_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Metric(**({"name": "x", "unit": "nats", "direction": "neutral", "label": "x"} | changes))
