"""What the atlas says of registered claims, its columns of sizes, and what it calls arms and settings in a sentence."""

import re

import pytest

from gatelab.analysis.atlas import Atlas, Place, Sheet
from gatelab.analysis.ledger_of_claims import Entry
from gatelab.analysis.planned import Open
from gatelab.analysis.registration import Claim, Verdict
from gatelab.report.atlas_guide import guide, registered
from gatelab.report.atlas_map import sizes
from gatelab.report.atlas_words import RULES, Words


def claims(rule, n):
    return [Claim(rule, "toy", "gate", f"reading {i}", 0, 0.01, 0.02) for i in range(n)]


def sheet(letter="A", *, n_claims=0, n_read=0, n_confirmed=0, n_parameters=10, rule="gate-collapse", effects=0, **more):
    """`effects` claims of effects are read beside the anomalies, all confirmed."""
    anomalies, others = claims(rule, n_claims), claims("effect", effects)
    words = ["confirmed"] * n_confirmed + ["not confirmed"] * (n_read - n_confirmed)
    read = [Verdict(c, 8, 0.01, 0.02, word) for c, word in zip(anomalies, words, strict=False)]
    given = {"arms": {}, "labels": {}, "places": {"toy": Place("decoder", "toy", n_parameters)}, **more}
    return Sheet(
        letter=letter, name=f"study {letter}", question="?", seeds=[0, 1, 2], n_runs=3, n_done=3, versions=set(), controls=set(),
        runs={}, advice="no gate", registered=[*anomalies, *others],
        verdicts=[*read, *(Verdict(c, 8, 0.01, 0.02, "confirmed") for c in others)], flags=[], **given,
    )  # fmt: skip


def text(html):
    return re.sub(r"<[^>]+>", "", html)


@pytest.mark.parametrize(
    ("sheets", "words"),
    [
        ([{"n_claims": 4, "n_read": 4, "n_confirmed": 3}], "3 of 4 registered anomalies were confirmed on fresh seeds"),
        (
            [
                {"n_claims": 4, "n_read": 4, "n_confirmed": 3},
                {"n_claims": 7},
            ],  # the fresh seeds of the second are not run
            "3 of 4 registered anomalies were confirmed on fresh seeds (7 more wait for their runs)",
        ),
        (
            [{"n_claims": 4, "n_read": 4, "n_confirmed": 3, "effects": 2}],
            "5 of 6 registered claims were confirmed on fresh seeds, 3 of 4 anomalies and 2 of 2 effects",
        ),
    ],
)
def test_registered_claims_are_counted_of_those_that_were_read(sheets, words):
    atlas = Atlas([sheet(letter, **of) for letter, of in zip("AB", sheets, strict=False)], [])
    assert registered(atlas) == words
    assert f"Gates misbehave: {words}. The anomalies: {RULES['gate-collapse']} (3)." in guide(atlas)


def test_a_test_that_two_claims_have_counts_once():
    both = [Claim(rule, "toy", "gate", "val_loss", 0, 0.01, 0.02) for rule in ("worse-than-none", "removed-but-worse")]
    of = sheet("A", n_claims=2, n_read=1, n_confirmed=1)
    of.registered.extend(both)
    of.verdicts.extend(Verdict(c, 8, 0.01, 0.02, "confirmed") for c in both)
    more = "1 more is the test of one of these, 1 more wait for their runs"
    words = f"2 of 2 registered anomalies were confirmed on fresh seeds ({more})"
    assert registered(Atlas([of], [])) == words
    said = f"The anomalies: {RULES['gate-collapse']} (1); {RULES['worse-than-none']} (1)."
    assert f"Gates misbehave: {words}. {said}" in guide(Atlas([of], []))


def test_every_rule_has_words():
    from gatelab.analysis.anomalies import RULES as rules

    assert {rule.name for rule in rules} == {*RULES}


def test_models_a_few_weights_apart_share_a_column():
    atlas = Atlas([sheet("A", n_parameters=1_330_000), sheet("B", n_parameters=1_331_000), sheet("C")], [])
    assert sizes(atlas) == ["10", "1.33 M"]
    assert "The map has 2 of 2 combinations of model, data and size" in guide(atlas)


def test_a_gate_and_a_sink_are_said_first_and_the_words_come_before_the_sentences():
    said = text(guide(Atlas([sheet("A")], [])))
    places = [
        said.index(x) for x in ("A gate multiplies", "A sink is a token", "How to read", "What was run", "What it says")
    ]
    assert places == sorted(places)


def test_an_arm_has_the_plainest_words_of_its_studies_and_two_arms_never_the_same():
    arms = {"a": "sdpa-headwise", "b": "value-headwise"}
    one = sheet("A", arms=arms, labels={"sdpa-headwise": "G1, headwise", "value-headwise": "a gate"})
    two = sheet("B", arms={"a": "sdpa-headwise"}, labels={"sdpa-headwise": "headwise gate"})
    three = sheet("C", arms={"c": "sdpa-shared"}, labels={"sdpa-shared": "a gate"})
    words = Words(Atlas([one, two, three], []))
    assert words.arm("sdpa-headwise") == "headwise gate"
    assert words.arm("value-headwise") == "a gate (value-headwise)" and words.arm("unknown") == "unknown"


def test_a_setting_is_named_by_model_and_data_with_its_letter_as_a_link():
    places = {
        "one": Place("decoder", "bigram-backcopy", 62_000), "two": Place("decoder", "bigram-backcopy", 111_000),
        "three": Place("decoder, experts", "task select", 5), "again": Place("encoder", "task cite", 5),
        "once more": Place("encoder", "task cite", 5),
    }  # fmt: skip
    words = Words(Atlas([sheet("A", places=places, pages={"page": "a/report.html"})], []))
    assert [words.where(f"A {name}") for name in places] == [
        "decoder of 62 k on the toy (A)", "decoder of 111 k on the toy (A)", "decoder with experts on select (A)",
        "encoder on cite, again (A)", "encoder on cite, once more (A)",
    ]  # fmt: skip
    linked = words.linked("A three")
    assert text(linked) == "decoder with experts on select [A]" and 'href="a/report.html"' in linked
    assert words.where("A elsewhere") == "elsewhere (A)"


def test_lines_that_were_not_run_and_studies_without_rows_are_told():
    entries = [
        Entry("it does", "a paper", "page", "above 0", "1", "", "supported"),
        Entry("it may", "a paper", "page", "above 0", "not run: `gatelab run x` would decide", "", "undecided", is_run=False),
    ]  # fmt: skip
    waiting = [Open("some-study", "Does it?", 3, 9, "gatelab run some-study 'cell=5m *'", "run cut short: 2")]
    said = text(guide(Atlas([sheet("A")], [], entries, waiting)))
    assert (
        "Of 2 lines on what has been said of gates, at this scale: 1 supported, 0 refuted, 1 undecided, 1 of these not run."
        in said
    )
    assert "Planned, not run" in said
    assert "some-study: 3 of 9 runs (run cut short: 2). Does it? gatelab run some-study 'cell=5m *'" in said
    assert "Planned, not run" not in text(guide(Atlas([sheet("A")], [], entries)))
