"""Which missing metric is a hole and which is none: by outcomes that are typed in."""

from gatelab.analysis import Outcome, effects
from gatelab.analysis.lacking import lacks, notes
from gatelab.analysis.paired import Outcomes
from gatelab.record import Metric

LOSS = Metric("val_loss", "nats", "lower-is-better", "held-out loss", primary=True)
MASS = Metric("first_token_mass", "share", "neutral", "first-token mass")
GATE = Metric("gate_mean", "1", "neutral", "mean gate score")
ASKED = Metric("gate_mean", "1", "neutral", "mean gate score", primary=True)
ARMS = ("none", "head", "elem")
# Ungated runs have no gate mean.
HAS = {"none": {"val_loss", "first_token_mass"}} | {a: {"val_loss", "first_token_mass", "gate_mean"} for a in ARMS[1:]}


def outcomes(*missing: tuple[str, str, str], cells=("a", "b"), arms=ARMS) -> list[Outcome]:
    """Three seeds of each, without `missing` (cell, arm, metric)."""
    return [
        Outcome(cell, arm, seed, metric, 1 + 0.1 * seed + 0.03 * ARMS.index(arm) * (seed + 1) ** 2)
        for cell in cells
        for arm in arms
        for metric in sorted(HAS[arm])
        for seed in range(3)
        if (cell, arm, metric) not in missing
    ]


def found(rows, metrics=(LOSS, MASS, GATE), arms=ARMS, cells=("a", "b")) -> list[tuple]:
    return [
        (x.cell, x.metric.name, x.arm, x.sides)
        for x in lacks(Outcomes(rows), metrics, baseline="none", arms=arms, cells=cells)
    ]


def test_a_study_that_has_what_it_should_lacks_nothing():
    assert found(outcomes()) == found(outcomes(), metrics=(LOSS, ASKED)) == []


def test_an_arm_that_lacks_what_the_others_of_its_cell_have_is_a_finding_and_a_note():
    rows = outcomes(("a", "head", "val_loss"))
    told = effects(rows, [LOSS, MASS], baseline="none", arms=ARMS, cells=["a", "b"])
    assert [(f.cell, f.metric, f.arm) for f in told] == [
        (c, m, a) for c in "ab" for m in ("val_loss", "first_token_mass") for a in ("head", "elem")
    ]
    hole = told[0]
    assert (hole.verdict, hole.n_pairs, hole.seeds) == ("untestable", 0, []) and hole.q != hole.q
    assert hole.sentence == (
        "a: the effect of head on the held-out loss cannot be tested: no finished run of head has val_loss."
    )
    assert hole.notes == ["untestable: no finished run of head has val_loss"]
    assert all(f.verdict != "untestable" for f in told[1:])
    said = notes(lacks(Outcomes(rows), [LOSS, MASS], baseline="none", arms=ARMS, cells=["a", "b"]))
    assert said == ["untestable: no finished run has val_loss of head in a"]


def test_the_others_tests_are_those_of_a_study_that_never_planned_it():
    """A hole has no part in the family."""
    rows = outcomes(("a", "head", "val_loss"))
    with_hole = effects(rows, [LOSS], baseline="none", arms=ARMS, cells=["a", "b"])
    kept = [o for o in rows if (o.cell, o.arm) != ("a", "head")]
    alone = effects(kept, [LOSS], baseline="none", arms=ARMS, cells=["a", "b"])
    tested = [[f for f in told if f.verdict != "untestable"] for told in (with_hole, alone)]
    assert tested[0] == tested[1] and len(tested[0]) == 3


def test_a_baseline_that_lacks_a_metric_in_one_cell_takes_all_its_comparisons():
    rows = outcomes(("b", "none", "first_token_mass"))
    assert found(rows) == [("b", "first_token_mass", arm, ("none",)) for arm in ("head", "elem")]
    # Where it has it nowhere: of a primary metric.
    rows = outcomes(("a", "none", "val_loss"), ("a", "head", "val_loss"), cells=("a",))
    assert found(rows, cells=("a",)) == [
        ("a", "val_loss", "head", ("none", "head")),
        ("a", "val_loss", "elem", ("none",)),
    ]


def test_a_metric_of_some_cells_or_some_kinds_of_arm_is_no_hole():
    assert found(outcomes(*(("a", arm, "first_token_mass") for arm in ARMS))) == []
    nowhere = [("a", "elem", "gate_mean"), ("b", "elem", "gate_mean")]
    assert found(outcomes(*nowhere)) == found(outcomes(*nowhere), metrics=(ASKED,)) == []


def test_an_arm_in_one_cell_alone_is_judged_by_all_others_there():
    lost = ("a", "head", "first_token_mass")
    assert found(outcomes(lost, cells=("a",)), cells=("a",)) == [("a", "first_token_mass", "head", ("head",))]
    two = ARMS[:2]
    assert found(outcomes(lost, cells=("a",), arms=two), arms=two, cells=("a",)) == []


def test_an_arm_that_has_not_run_is_no_hole():
    planned = [Outcome("b", "head", s, "val_loss", float("nan"), "planned") for s in range(3)]
    rows = [o for o in outcomes() if (o.cell, o.arm) != ("b", "head")]
    assert found([*rows, *planned]) == [] == found(rows)
