"""Effects by factor as a table: the tests of `heterogeneity` beside cells and levels, and what cannot be told with the reason."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from simulated import evidence, pairs

from gatelab.analysis.anomalies.screen import Screened
from gatelab.analysis.hunt import OF_PARTS, PARTS, Hunt
from gatelab.analysis.say import rest
from gatelab.analysis.varied import CELLS, varied

DEPTHS = {"a": 1, "b": 1, "c": 2, "d": 2, "e": 4, "f": 4}


def hunt(e, factors, brought=()):
    return Hunt(Screened([], [], 0.10), [], SimpleNamespace(evidence=e, factors=factors, brought=list(brought)))


def six(slope=0.0, n=6):
    rng = np.random.default_rng(3)
    return evidence({"val_loss": {c: pairs(rng, n, slope * np.log2(d), 0.1) for c, d in DEPTHS.items()}})


def test_a_factor_that_decides_is_named_with_its_ends_and_cells_are_compared():
    e = six(slope=1.0)
    found = varied(hunt(e, {"model.n_layers": DEPTHS}))
    over, by = found.rows
    groups = [np.asarray(e.pairs("val_loss", c, "gated").differences) for c in DEPTHS]
    alone = stats.f_oneway(*groups)
    assert (over.factor, over.f, over.p, over.df, over.df_error) == (
        CELLS, pytest.approx(alone.statistic), pytest.approx(alone.pvalue), 5, 30,
    )  # fmt: skip
    means = {c: g.mean() for c, g in zip(DEPTHS, groups, strict=True)}
    assert over.least.where == min(means, key=means.get) and over.most.effect == pytest.approx(max(means.values()))
    assert by.factor == "model.n_layers" and by.slope == pytest.approx(1.0, abs=0.1) and by.against == "cells"
    assert by.q < 0.01 and (by.least.where, by.most.where) == ("1", "4") and by.most.effect == pytest.approx(2, abs=0.2)
    assert set(found.fixed) == {"size", "architecture", "task", "learning rate"}
    assert found.fixed["size"] == "all 6 cells have one"


def test_what_an_architecture_brings_is_no_depth_of_its_own():
    kinds = {c: "encoder" if d == 1 else "decoder" for c, d in DEPTHS.items()}
    found = varied(hunt(six(), {"architecture": kinds}, ["model.n_layers"]))
    assert found.fixed["depth"] == "it goes with the architecture" and "architecture" not in found.fixed


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"val_loss": {"a": ([1.0, 2, 3], [1.1, 2.3, 3.2])}}, "the study has one cell"),
        (
            {"first_token_mass": {c: ([0.9] * 4, [0.1, 0.1, 0.9, 0.1]) for c in "ab"}},
            "seeds change between two states, and a mean over them describes no run",
        ),
        (
            {
                "val_loss": {
                    c: ([1.0, 2, 3][:n], [1.1, 2.3, 3.2][:n]) for c, n in zip("abcd", (3, 3, 1, 1), strict=True)
                }
            },
            "2 of 4 cells have two pairs",
        ),
    ],
)
def test_what_cannot_be_told_says_why(given, why):
    e = evidence(given)
    factors = {"optim.lr": {c: i + 1.0 for i, c in enumerate(e.cells)}} if len(e.cells) > 1 else {}
    rows = varied(hunt(e, factors)).rows
    assert len(rows) == 1 + len(factors) and {r.reason for r in rows} == {why} and all(np.isnan(r.f) for r in rows)


def test_versions_that_are_not_pooled_are_said():
    e = evidence({"val_loss": {c: ([1.0, 2, 3], [1.1, 2.3, 3.2]) for c in "ab"}}, not_pooled="two versions of the code")
    assert varied(hunt(e, {})).rows[0].reason == "two versions of the code"


def test_spreads_are_over_seeds_of_losses_and_over_parts_where_runs_have_them():
    rng = np.random.default_rng(5)
    base = {c: rng.normal(size=64) for c in "ab"}
    e = evidence({"val_loss": {c: (b, 5 * b + rng.normal(0, 0.1, 64)) for c, b in base.items()}})
    heads, layers, massive, seeds = varied(hunt(e, {})).spreads
    assert heads.reason == "no run has two heads to compare" and layers.over == massive.over == "layers"
    said = [line for line in rest(hunt(e, {})) if "spreads" in line]
    assert len(said) == 1 and "the held-out loss spreads so many times as much over seeds" in said[0]
    assert {*OF_PARTS} == {*PARTS}  # a part is told by the reading that it is a spread of
    assert seeds.n_cells == 2 and seeds.together.ratio == pytest.approx(5, rel=0.1) and seeds.named == ["a", "b"]
    few = varied(hunt(evidence({"val_loss": {"a": ([1.0, 2, 4], [1.5, 2, 3])}}), {})).spreads
    assert few[-1].reason == "3 pairs a cell, and 4 are needed"


def test_cells_in_which_most_runs_are_lost_are_said_and_are_in_no_row():
    rng = np.random.default_rng(6)
    cells = {c: pairs(rng, 5, 0.1, 0.01) for c in "abcd"} | {"e": pairs(rng, 5, 40, 20)}
    e = evidence({"val_loss": cells}, lost={("e", "none"): "none 5 of 5"})
    found = varied(hunt(e, {"optim.lr": dict(zip("abcde", (1.0, 2, 4, 8, 16), strict=True))}))
    over, by = found.rows
    assert over.most.effect < 1 and (over.left_out, by.left_out, over.df, by.df) == (("e",), ("e",), 3, 3)
    assert found.lost.endswith("own untrained weights): e: none 5 of 5")
    assert next(s for s in found.spreads if s.over == "seeds").together.n_pairs == 20
    few = evidence({"val_loss": {c: cells[c] for c in "de"}}, lost={("e", "none"): "none 5 of 5"})
    assert varied(hunt(few, {})).rows[0].reason == "1 of 1 cells have two pairs, in 1 others most runs are lost"
    lines = list(rest(hunt(e, {"optim.lr": dict(zip("abcde", (1.0, 2, 4, 8, 16), strict=True))}), all_=True))
    (said,) = (line for line in lines if "not in what follows" in line)
    assert said.endswith("e: none 5 of 5") and any("4 cells" in line for line in lines)
    assert any("a doubling, on a line p = " in line for line in lines)
