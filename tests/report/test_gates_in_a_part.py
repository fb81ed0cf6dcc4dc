"""Layers without a gate: the pages leave them empty, and no head of theirs counts as shut, dead or open."""

from looked import looked
from test_checkpoint_page import columns_of, data_of, page_of, spec_of

from gatelab.report.checkpoint import Thresholds, heads_of, off_switch

GATED = 2


def rows_of_one_gated_layer():
    rows = looked(4, 6, 2, is_gated=True)
    return [r for r in rows if not r.source.startswith("gate") or r.layer in (None, GATED)]


def test_their_heads_have_other_switches():
    heads = heads_of(rows_of_one_gated_layer())
    assert {h.layer for h in heads if h.openness is not None} == {GATED}
    assert {h.layer for h in heads if off_switch(h, Thresholds(openness=1)) == "gate"} == {GATED}


def test_their_places_on_the_maps_are_gaps(tmp_path):
    page = page_of(tmp_path, rows_of_one_gated_layer())
    columns = columns_of(spec_of(page, "Gate openness"))
    assert {layer for (layer, _), value in columns.items() if value is not None} == {GATED}
    scores = data_of(spec_of(page, "Gate scores by layer"))
    assert {record["l"] for _, record in scores if "l" in record} == {GATED}
    for words in ("Mean, shut and open", "Gates that do not move"):
        assert {x for _, record in data_of(spec_of(page, words)) for x in record["x"]} == {GATED}
