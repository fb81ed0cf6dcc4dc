"""What power has to say of several unclear effects is said once, and of a single one in its sentence."""

from dataclasses import replace
from math import nan

from gatelab.analysis.say_power import in_common
from gatelab.analysis.verdicts import sentence
from gatelab.record import Finding, Metric

LOSS = Metric("val_loss", "nats", "lower-is-better", "held-out loss", primary=True)
MASS = Metric("first_token_mass", "fraction", "neutral", "first-token mass", primary=True, bimodal=True, threshold=0.3)


def finding(arm, detectable, *, verdict="unclear", metric=LOSS, needed=None):
    f = Finding(
        cell="text", arm=arm, baseline="none", metric=metric.name, unit=metric.unit, effect=-0.02, low=-0.05, high=0.01,
        confidence=0.95, p=0.2, q=0.3, n_pairs=3, baseline_mean=2.0, arm_mean=1.98,
        verdict=verdict, primary=True, direction=metric.direction,
        detectable=detectable, equivalence=None, p_equivalence=None, sentence="",
    )  # fmt: skip
    return replace(f, sentence=sentence(f, metric, needed=needed, shares=(None, None)))


def test_two_unclear_effects_share_a_sentence_on_what_could_have_been_seen():
    found = [finding("a", 0.033), finding("b", 0.1, verdict="lower"), finding("c", nan)]
    said, after = in_common(found)
    assert after == ["The smallest effects that could have been seen with 80% power: a 0.033 nats, c none."]
    assert said[1] == found[1].sentence
    for i in (0, 2):
        assert "could have been seen" not in said[i] and said[i].endswith("3 seeds, q = 0.3).")
        assert found[i].sentence.startswith(said[i][:-1])


def test_a_single_unclear_effect_keeps_its_whole_sentence():
    found = [finding("a", 0.033), finding("b", 0.1, verdict="lower")]
    assert in_common(found) == ([f.sentence for f in found], [])


def test_seeds_that_would_decide_on_a_regime_are_said_once():
    found = [finding(arm, 0.1, metric=MASS, needed=6) for arm in "ab"]
    said, after = in_common(found)
    assert after == ["To decide on changes of regime, at least 6 seeds that all change the same way would be needed."]
    assert all("needed" not in s and s.endswith("(exact test, p = 0.2).") for s in said)
    assert in_common(found[:1]) == ([found[0].sentence], [])
