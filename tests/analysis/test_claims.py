"""The ledger of claims: planted files give the verdict, every claim's rows are there, and the page is what they say."""

from pathlib import Path

import pytest

from gatelab.analysis.claim_tests import (
    ALIKE,
    Claim,
    Measured,
    Region,
    difference,
    effect,
    effect_gap,
    elsewhere,
    over_share,
    share_with_sink,
)
from gatelab.analysis.ledger_of_claims import CLAIMS, Entry, judged, page
from gatelab.analysis.room import LOSS, MOVED, Room, accurate, has_room, solved
from gatelab.analysis.stated_tests import cost, excess, quotient, stated, unread
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
RUNS = "cell,arm,tokens,flops\na,none,10,1000\na,gated,20,2020\nb,none,10,1000\nb,gated,10,1030\nc,gated,1,9\n"
STATED = "what,arm,mean,low,high,value\nedit,x,0.5,0.4,0.6,3\ncontrol,x,0.1,0.0,0.3,6\n"


@pytest.fixture
def folder(tmp_path):
    for name, text in (("seeds.csv", SEEDS), ("effects.csv", EFFECTS), ("stated.csv", STATED), ("runs.csv", RUNS)):
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
    (folder / "other.csv").write_text(SEEDS, encoding="utf-8")
    assert difference("val_loss", "gated", "none", "nats", file="other.csv")(folder) == found
    assert found.value == pytest.approx(0.25) and found.low == pytest.approx(0.25 - 3.18245 * 0.057735 / 2, abs=1e-5)
    assert str(found) == "0.25 [0.16, 0.34] nats, 4 seeds"


def test_a_share_of_the_others_is_taken_seed_by_seed(folder):
    found = over_share("val_loss", "gated", "none", 0.5, "nats")(folder)
    # 1.2 − 0.5, 2.2 − 1, 3.3 − 1.5 and 4.3 − 2: mean 1.5.
    assert found.value == pytest.approx(1.5) and found.low < 1.5 < found.high
    assert found.over == "4 seeds; means 2.75 and 2.50" and Region(high=0.0).verdict(found) != "supported"
    assert Region(high=0.0).verdict(over_share("val_loss", "gated", "none", 4.0)(folder)) == "supported"


def test_an_effect_is_over_cells_and_seeds_or_has_no_interval(folder):
    both = effect("val_loss", "gated")(folder)
    assert both.value == pytest.approx(1.5) and both.low < -4  # two cells, one degree of freedom
    solvers = effect("val_loss", "gated", where=[solved("task_accuracy@1x")])(folder)
    assert solvers.value == pytest.approx(1.0) and solvers.over == "1 of 2 cells that both solve, 3 seeds"
    once = effect("val_loss", "once", as_ratio=True)(folder)
    assert str(once) == "0.250, one seed" and Region(high=0.5).verdict(once) == "undecided"


def test_cells_at_a_floor_or_a_ceiling_refute_nothing(folder):
    # In cell b both arms are at the floor of eight times the length, in d at the ceiling: their zeros say nothing of a gate.
    more = "".join(
        f"{cell},gated,task_accuracy@{times}x,{base},{base + gain},0;1;2,{gain};{gain};{gain + slip}\n"
        for cell, of in {
            "a": ((1, 0.95, 0, 0.0), (8, 0.4, 0.2, 0.03)),
            "b": ((1, 0.95, 0, 0.0), (8, 0.01, 0.0, 0.01)),
            "d": ((1, 1.0, 0, 0.0), (8, 1.0, 0.0, -0.01)),
            "e": ((1, 0.3, 0, 0.0), (8, 0.5, 0.3, 0.02)),
        }.items()
        for times, base, gain, slip in of
    )
    (folder / "effects.csv").write_text(EFFECTS.partition("\n")[0] + "\n" + more, encoding="utf-8")
    far, where = "task_accuracy@8x", (solved("task_accuracy@1x"), accurate("task_accuracy@8x"))
    found = effect(far, "gated", where=where)(folder)
    assert found.value == pytest.approx(0.21) and found.over == "1 of 4 cells that both solve and with room, 3 seeds"
    none = effect(far, "gated", cells=["b", "d"], where=where)(folder)
    assert str(none) == "no room: 0 of 2 cells with room (task_accuracy@8x)"
    blind = effect(far, "gated", cells=["b"])(folder)
    assert Region(low=0.05).verdict(blind) == "refuted" and Region(low=0.05).verdict(none) == "undecided"


def test_room_is_asked_of_all_arms_alike():
    far = accurate("x")
    assert has_room([0.0, 0.3], far) and has_room([0.3, 0.0], far) and not has_room([0.04, 0.0], far)
    assert not has_room([0.96, 1.0], far) and has_room([0.9, 1.0], far)
    assert has_room([0.9, 0.95], solved("x")) and not has_room([0.89, 1.0], solved("x"))
    assert has_room([0.0, 0.02], LOSS) and not has_room([0.01, 0.002], LOSS)


def test_two_idle_gates_are_not_shown_to_be_alike(folder):
    alike = difference("val_loss", "gated", "none", confidence=ALIKE, beside="none", room=Room("x", 0.5))
    assert str(alike(folder)) == "no room: they differ from none by 0.250 and 0.000"
    more = "".join(f"{c},{a},val_loss,2,{2 + e},0;1,{e};{e + 0.001}\n" for c, a, e in
                   (("a", "x", 0.004), ("a", "y", 0.005), ("b", "x", 0.3), ("b", "y", 0.302)))  # fmt: skip
    (folder / "effects.csv").write_text(EFFECTS + more, encoding="utf-8")
    found = effect_gap("val_loss", "x", "y", confidence=ALIKE, moved=MOVED)(folder)
    assert found.value == pytest.approx(-0.002) and found.over.startswith(
        "the same in each of 1 of 2 cells with room, 2 seeds"
    )
    idle = effect_gap("val_loss", "x", "y", cells=["a"], room=LOSS, moved=MOVED)(folder)
    assert str(idle) == "no room: 0 of 1 cell with room (the effect)"


def test_cells_are_chosen_and_arms_compared_by_their_seeds(folder):
    assert effect("val_loss", "gated", cells=["b"])(folder).value == pytest.approx(2.0)
    with pytest.raises(StoreError, match="has no cell c or d"):
        effect("val_loss", "gated", cells=["c", "d"])(folder)
    more = EFFECTS + "a,other,val_loss,1,2,0;2;9,0.4;0.5;7\n"
    (folder / "effects.csv").write_text(more, encoding="utf-8")
    found = effect_gap("val_loss", "gated", "other")(folder)
    assert found.value == pytest.approx(0.55) and found.over == "1 cell of 2 seeds"
    assert effect_gap("val_loss", "once", "other")(folder).over == "one seed"


def test_alike_is_asked_with_two_one_sided_tests(folder):
    wide, narrow = (
        difference("val_loss", "gated", "none")(folder),
        difference("val_loss", "gated", "none", confidence=ALIKE)(folder),
    )
    assert narrow.low == pytest.approx(0.25 - 2.35336 * 0.057735 / 2, abs=1e-5) and wide.low < narrow.low
    assert narrow.over == "4 seeds, interval of 90%"
    bounds = Region(0.17, 0.33)
    assert bounds.verdict(narrow) == "supported" and bounds.verdict(wide) == "undecided"


def test_seeds_that_keep_their_sink_are_a_control(folder):
    kept = difference("val_loss", "none", "gated", keeping=True)(folder)
    assert kept.over == "3 seeds" and kept.value == pytest.approx(-0.7 / 3)
    assert difference("val_loss", "gated", "none", keeping=True)(folder).over == "one seed"


def test_a_cost_is_counted_and_has_no_interval(folder):
    found = cost("gated", "none")(folder)
    assert found.value == found.low == found.high == pytest.approx(1.02)
    assert str(found) == "1.0200, counted, not sampled" and Region(high=1.0).verdict(found) == "refuted"


def test_a_control_of_another_page_is_measured_where_that_page_is(folder):
    test = elsewhere(folder.name, difference("val_loss", "gated", "none", "nats"))
    assert str(test(folder.parent / "other")) == "0.25 [0.16, 0.34] nats, 4 seeds"
    assert str(elsewhere("gone", test)(folder)) == "is of gone, which is not here"


def test_a_claim_without_rows_says_what_would_make_them(tmp_path):
    test = effect("val_loss", "gated", "nats")
    claims = [Claim("c", "s", "later", "a", test, Region(), planned="`gatelab run later` would decide")]
    (entry,) = judged(tmp_path, claims)
    assert (entry.measured, entry.verdict, entry.is_run) == (
        "not run: `gatelab run later` would decide",
        "undecided",
        False,
    )
    text = "\n".join(page([entry]))
    assert "1 undecided, 1 of these not run." in text and "a (later)" in text
    (tmp_path / "later").mkdir()
    with pytest.raises(StoreError, match=r"effects\.csv: is missing"):
        judged(tmp_path, claims)
    (tmp_path / "later" / "effects.csv").write_text(EFFECTS, encoding="utf-8")
    assert judged(tmp_path, claims)[0].is_run


def test_a_claim_has_one_row_of_counts_without_its_arm_setting_and_bound():
    said = (
        ("gates help citation, by more than 0.01 nats (headwise)", "undecided"),
        ("gates help citation by more than 0.01 nats where each arm has its own rate (encoder, headwise)", "refuted"),
        ("gates help most after attention (G1): by more than 0.01 nats more than before", "undecided"),
        ("a sink can be cut out, for at most 0.02 nats", "supported"),
        ("… and for at most 0.02 nats beside the model as it was", "refuted"),
        ("gates help citation (elementwise)", "refuted"),
    )
    entries = [Entry(words, f"source {i % 2}", "p", "", "", "", verdict) for i, (words, verdict) in enumerate(said)]
    lines = list(page(entries))
    first = lines.index("|---|---|---|---|---|") + 1
    assert lines[first : first + 4] == [
        "| gates help citation | source 0; source 1 |  | 2 | 1 |",
        "| a sink can be cut out | source 1; source 0 | 1 | 1 |  |",
        "| gates help most after attention (G1) | source 0 |  |  | 1 |",
        "",
    ]


def test_every_line_is_counted_in_one_row():
    stored = (RESULTS / "claims.md").read_text(encoding="utf-8").splitlines()
    first = stored.index("|---|---|---|---|---|") + 1
    rows = [line.split("|")[1:-1] for line in stored[first : stored.index("", first)]]
    assert len({row[0] for row in rows}) == len(rows) <= 45
    assert sum(int(n) for row in rows for n in row[2:] if n.strip()) == len(CLAIMS)


def test_what_is_left_unread_is_the_most_that_costs_little(folder):
    lines = ["arm,seed,threshold,reads_skipped,reads_skipped_low,reads_skipped_high,loss_change_high,control_change"]
    lines += ["x,0,0.1,0.2,0.1,0.3,0.004,0.5", "x,0,0.2,0.4,0.3,0.5,0.009,0.7", "x,0,0.3,0.6,0.5,0.7,0.010,0.9"]
    (folder / "reads.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = unread("reads.csv", "x", 0.01)(folder)
    assert (found.value, found.low, found.high, found.over) == (0.4, 0.3, 0.5, "sequences of one model")
    assert unread("reads.csv", "x", 0.001)(folder).over == "no threshold that costs so little"
    lines += ["x,1,0.1,0.8,0.7,0.9,0.001,0.9", "x,2,0.1,0.8,0.7,0.9,0.5,0.9"]  # the third seed has no such threshold
    (folder / "reads.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    seeds = unread("reads.csv", "x", 0.01)(folder)
    assert seeds.value == pytest.approx((0.4 + 0.8 + 0.0) / 3) and seeds.over == "3 seeds" and seeds.low < seeds.value
    assert unread("reads.csv", "x", 0.01, "control_change")(folder).value == pytest.approx((0.7 + 0.9 + 0.0) / 3)


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
    said = [line.endswith("| **undecided** |") for line in page(entries) if line.endswith("** |")]
    assert len(said) == len(entries) and said == sorted(said), "what is decided comes first"
    assert all((RESULTS / f"{e.page}.md").is_file() for e in entries if e.is_run)
    assert all(e.control for e in entries if e.is_run)


def test_find_says_the_claims_and_what_a_folder_lacks(capsys, tmp_path):
    assert _status(["find", str(RESULTS), "--claims"]) == 0
    assert capsys.readouterr().out == (RESULTS / "claims.md").read_text(encoding="utf-8")
    for words, status in (([str(tmp_path), "--claims"], 1), ([str(RESULTS), "--claims", "--confirm"], 2)):
        assert _status(["find", *words]) == status
        assert len(capsys.readouterr().err.splitlines()) == 1
