"""The rules by which a head's off-switch is told: each at its threshold, and in their order."""

import random
from dataclasses import astuple, replace

import pytest
from looked import looked

from gatelab.record import Row
from gatelab.report.checkpoint import SWITCHES, HeadValues, Thresholds, census, heads_of, off_switch

SINK = HeadValues(3, 1, first_mass=0.6, first_drain=0.1, importance=0.7, drain=0.2, entropy=0.4)
NO_SINK = HeadValues(3, 1, first_mass=0.1, first_drain=0.1, importance=0.2, drain=0.1, entropy=0.5)


@pytest.mark.parametrize(
    ("head", "switch"),
    [
        (SINK, "drained"),
        (replace(SINK, drain=0.31), "writes"),
        (replace(SINK, drain=0.3), "writes"),
        (replace(SINK, drain=None), "unknown"),
        (replace(SINK, openness=0.05), "gate"),
        (replace(SINK, openness=0.1), "drained"),
        (replace(SINK, slot=0.31), "slot"),
        (replace(SINK, slot=0.31, openness=0.0), "gate"),
        (NO_SINK, "other"),
        (replace(NO_SINK, entropy=0.91), "diffuse"),
        (replace(NO_SINK, entropy=0.9), "other"),
        (replace(NO_SINK, importance=0.3), "other"),
        (replace(NO_SINK, importance=0.31), "drained"),
        (HeadValues(0, 0), "other"),
    ],
)
def test_the_first_rule_that_holds_decides(head, switch):
    assert off_switch(head) == switch


def test_the_value_is_that_of_the_key_that_gets_most():
    elsewhere = replace(SINK, first_mass=0.2, first_drain=0.05, importance=0.5, drain=1.1)
    assert off_switch(elsewhere) == "writes", "the first key's value is drained, and it is not the sink"
    first = replace(elsewhere, first_mass=0.55)
    assert off_switch(first) == "drained"
    assert off_switch(replace(first, importance=None, drain=None)) == "drained"


def test_every_threshold_moves_its_rule():
    head = replace(SINK, openness=0.5, slot=0.2)
    assert off_switch(head) == "drained"
    assert off_switch(head, Thresholds(openness=0.6)) == "gate"
    assert off_switch(head, Thresholds(slot=0.1)) == "slot"
    assert off_switch(head, Thresholds(mass=0.8)) == "other"
    assert off_switch(head, Thresholds(drain=0.1)) == "writes"
    assert off_switch(head, Thresholds(mass=0.8, entropy=0.3)) == "diffuse"


@pytest.mark.parametrize("wrong", [{"mass": 1.5}, {"drain": -0.1}, {"entropy": float("nan")}])
def test_a_threshold_outside_of_0_to_1_is_refused(wrong):
    with pytest.raises(ValueError, match=f"Thresholds.{next(iter(wrong))}=.*give 0 to 1"):
        Thresholds(**wrong)


def test_a_census_counts_every_head_once():
    heads = heads_of(looked(5, 6, 2, is_gated=True, has_slot=True))
    counts = census(heads)
    assert list(counts) == list(SWITCHES) and sum(counts.values()) == 30
    assert counts["gate"] and counts["drained"] and counts["slot"]
    assert census([], Thresholds()) == dict.fromkeys(SWITCHES, 0)


def test_heads_have_the_values_of_their_rows_and_of_their_key_value_head():
    rows = looked(3, 6, 2, is_gated=True)
    value = {(r.metric, r.layer, r.head): r.value for r in rows if r.head is not None and r.threshold is None}
    heads = heads_of(rows)
    assert [(h.layer, h.head) for h in heads] == [(la, h) for la in range(3) for h in range(6)]
    for h in heads:
        assert astuple(h) == (
            h.layer, h.head, value["gate_openness", h.layer, h.head], None, value["first_token_mass", h.layer, h.head],
            value["value_drain", h.layer, h.head // 3], value["sink_importance", h.layer, h.head],
            value["sink_value_drain", h.layer, h.head], value["attention_entropy_relative", h.layer, h.head],
        )  # fmt: skip


def test_rows_of_other_stacks_domains_and_sites_are_not_a_heads():
    rows = looked(2, 4, 2)
    other = [
        Row("made", 0, "sinks", "first_token_mass", 0.99, "share", layer=0, head=0, domain="code"),
        Row("made", 0, "sinks", "first_token_mass", 0.99, "share", layer=0, head=0, stack="encoder"),
        Row("made", 0, "gate_effect", "gate_openness", 0.01, "share", layer=0, head=0, site="value"),
        Row("made", 0, "sinks", "first_token_mass", float("nan"), "share", layer=1, head=9),
    ]
    random.Random(0).shuffle(rows)
    assert heads_of([*rows, *other]) == heads_of(rows)
    assert [(h.layer, h.head, h.first_mass) for h in heads_of(other, "encoder")] == [(0, 0, 0.99)]


def test_heads_that_are_no_multiple_of_key_value_heads_are_refused():
    rows = [
        *(Row("x", 0, "sinks", "first_token_mass", 0.1, "share", layer=0, head=h) for h in range(4)),
        *(Row("x", 0, "sinks", "value_drain", 0.1, "ratio", layer=0, head=h) for h in range(3)),
    ]
    with pytest.raises(ValueError, match="layer 0 has value_drain rows of 3 key/value heads and 4 heads"):
        heads_of(rows)
