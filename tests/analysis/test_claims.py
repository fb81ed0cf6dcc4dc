"""The ledger of claims: planted files give the verdict, every claim's rows are there, and the page is what they say."""

from pathlib import Path

import pytest

from gatelab.analysis.claim_tests import (
    Measured,
    Region,
    difference,
    effect,
    excess,
    quotient,
    share_with_sink,
    stated,
)
from gatelab.analysis.ledger_of_claims import CLAIMS, judged, page
from gatelab.cli import _status
from gatelab.store import StoreError

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SEEDS = "arm,seed,first_token_mass,val_loss\n" + "".join(
    f"{arm},{seed},{mass},{loss}\n"
    for arm, masses, losses in (
        ("none", (0.6, 0.6, 0.1, 0.7), (1.0, 2.0, 3.0, 4.0)),
        ("gated", (0.1, 0.6, 0.1, 0.0), (1.2, 2.2, 3.3, 4.3)),
    )
    for seed, (mass, loss) in enumerate(zip(masses, losses, strict=True))
)
EFFECTS = """cell,arm,metric,baseline_mean,arm_mean,seeds,differences
a,gated,val_loss,1,2,0;1;2,0.9;1.0;1.1
b,gated,val_loss,1,2,0;1;2,2.0;2.1;1.9
a,gated,task_accuracy@1x,0.95,0.99,0;1;2,0;0;0.1
b,gated,task_accuracy@1x,0.95,0.1,0;1;2,-1;-1;-0.5
a,once,val_loss,2,0.5,0,-1.5
"""
STATED = "what,arm,mean,low,high,value\nedit,x,0.5,0.4,0.6,3\ncontrol,x,0.1,0.0,0.3,6\n"


@pytest.fixture
def folder(tmp_path):
    for name, text in (("seeds.csv", SEEDS), ("effects.csv", EFFECTS), ("stated.csv", STATED)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_sinks_are_counted_by_seed(folder):
    found = share_with_sink("gated", among="none", lost=True)(folder)
    assert (found.value, found.over) == (pytest.approx(2 / 3), "2 of 3 seeds") and 0 < found.low < found.high < 1
    assert share_with_sink("none")(folder).value == 0.75


def test_a_seed_without_the_arm_or_in_two_cells_is_never_counted(folder):
    rows = folder / "seeds.csv"
    rows.write_text(SEEDS.replace("gated,0,0.1,1.2\n", ""), encoding="utf-8")
    assert share_with_sink("gated", among="none", lost=True)(folder).over == "1 of 2 seeds"
    none = share_with_sink("none", among="gated", lost=True)(folder)
    assert none.over == "0 of 1 seeds"
    rows.write_text(SEEDS.replace("gated,1,0.6", "gated,1,0.2"), encoding="utf-8")
    assert str(share_with_sink("none", among="gated")(folder)) == "no seed in which gated has a sink"
    with pytest.raises(StoreError, match="no row of arm=other"):
        share_with_sink("other", among="none")(folder)
    rows.write_text(SEEDS + "none,0,0.2,1.0\n", encoding="utf-8")
    with pytest.raises(StoreError, match="none, seed 0 twice; name one of its cells"):
        difference("val_loss", "gated", "none")(folder)


def test_a_difference_is_paired_by_seed(folder):
    found = difference("val_loss", "gated", "none", "nats")(folder)
    assert found.value == pytest.approx(0.25) and found.low == pytest.approx(0.25 - 3.18245 * 0.057735 / 2, abs=1e-5)
    assert str(found) == "0.25 [0.16, 0.34] nats, 4 seeds"


def test_an_effect_is_over_cells_and_seeds_or_has_no_interval(folder):
    both = effect("val_loss", "gated")(folder)
    assert both.value == pytest.approx(1.5) and both.low < -4  # two cells, one degree of freedom
    assert effect("val_loss", "gated", where_solved=True)(folder).value == pytest.approx(1.0)
    once = effect("val_loss", "once", as_ratio=True)(folder)
    assert str(once) == "0.250, one seed" and Region(high=0.5).verdict(once) == "undecided"


def test_stated_numbers_and_their_excess(folder):
    one = stated("stated.csv", {"what": "edit"}, "documents")(folder)
    assert str(one) == "0.50 [0.40, 0.60] nats, documents"
    more = excess("stated.csv", {"what": "edit"}, {"what": "control"}, "documents")(folder)
    assert (more.value, more.low, more.high) == pytest.approx((0.4, 0.1, 0.6))
    assert quotient("stated.csv", {"what": "edit"}, {"what": "control"})(folder).value == 0.5


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.6, 0.9, "supported"),
        (0.1, 0.4, "refuted"),
        (0.4, 0.6, "undecided"),
        (float("nan"), float("nan"), "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low, high, verdict):
    assert Region(low=0.5).verdict(Measured(0.5, low, high, "")) == verdict


def test_what_is_missing_is_named(folder):
    for test, says in (
        (share_with_sink("none"), "seeds.csv: is missing"),
        (effect("nothing", "gated"), "no row of metric=nothing, arm=gated"),
    ):
        where = folder / "empty" if "missing" in says else folder
        with pytest.raises(StoreError, match=says):
            test(where)
    with pytest.raises(StoreError, match="has no column massive_max"):
        difference("massive_max", "gated", "none")(folder)


def test_every_claim_can_be_judged_and_the_page_is_what_the_files_say():
    entries = judged(RESULTS)
    assert len(entries) == len(CLAIMS) and {e.verdict for e in entries} == {"supported", "refuted", "undecided"}
    assert (RESULTS / "claims.md").read_text(encoding="utf-8") == "\n".join(page(entries)) + "\n"
    assert all((RESULTS / f"{c.page}.md").is_file() for c in CLAIMS)


def test_find_says_the_claims_and_what_a_folder_lacks(capsys, tmp_path):
    assert _status(["find", str(RESULTS), "--claims"]) == 0
    assert capsys.readouterr().out == (RESULTS / "claims.md").read_text(encoding="utf-8")
    for words, status in (([str(tmp_path), "--claims"], 1), ([str(RESULTS), "--claims", "--confirm"], 2)):
        assert _status(["find", *words]) == status
        assert len(capsys.readouterr().err.splitlines()) == 1
