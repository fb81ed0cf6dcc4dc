"""Rows in an archive: which of them are the model's, what is made of them, and what is said of an archive that cannot be read."""

from math import isnan, nan
from pathlib import Path

import pytest
from planted_archive import losses, planted

from gatelab.analysis.archived import NUMBERS, kept, unstable
from gatelab.analysis.claim_rows import by_seed, numbers
from gatelab.analysis.claim_tests import gap, level
from gatelab.analysis.room import Room
from gatelab.store import StoreError

RESULTS = Path(__file__).parents[2] / "docs" / "results"
CONFIG = {"train": {"seq_len": 16}}


def row(metric, value, step=5, **at):
    return {"metric": metric, "step": step, "value": value, **at}


def run(cell, arm, seed, rows, status="done"):
    return {"cell": cell, "arm": arm, "seed": seed, "config": CONFIG, "rows": rows, "status": status}


def test_the_models_rows_are_told_from_all_others(tmp_path):
    rows = [
        *losses(4.0, 3.0),
        row("val_loss", 9.0, 1, domain="a"),
        row("gate_below", 0.7, threshold=0.1, site="value"),
        row("gate_below", 0.2, threshold=0.1, site="sdpa"),
        row("gate_below", 0.9, threshold=0.1, site="sdpa", layer=0),
        row("gate_below", 0.8, threshold=0.5, site="sdpa"),
        row("gate_hoyer", 0.3, stack="encoder", site="sdpa"),
        row("gate_hoyer", 0.4, stack="cross", site="sdpa"),
        row("gate_mean", "NaN", 5),
        row("citation_f1", 0.5, length=16),
        row("citation_f1", 0.1, length=128),
        row("citation_f1", 0.9, length=16, intervention="yarn"),
    ]
    (found,) = kept(planted(tmp_path, [run("c", "a", 0, rows)]))
    assert found.looks["val_loss",] == {0: 4.0, 1: 3.0} and found.status == "done"
    values = {name: number(found) for name, number in NUMBERS.items()}
    assert (values["gate_below"], values["gate_hoyer"], values["citation_f1"]) == (0.2, 0.3, 0.5)
    assert isnan(values["gate_mean"]) and isnan(values["position_bias"]) and isnan(values["u_size@8x"])


def test_bias_for_places_is_known_where_it_was_planted(tmp_path):
    places = [(0, 0.5, 0.1), (1, 0.2, 0.3), (2, 0.1, 0.6)]
    rows = [row("position_mass", m * 0.8, bin=b) for b, m, _ in places]  # a slot has the rest
    rows += [row("position_mass_uniform", u, bin=b) for b, _, u in places]
    rows += [row("exact_match", v, length=128, bin=b) for b, v in ((0, 0.2), (4, 0.5), (5, 0.6), (6, 0.7), (10, 0.4))]
    rows += [row("exact_match", 0.4, length=128), row("exact_match", 1.0, length=16, bin=0)]
    (found,) = kept(planted(tmp_path, [run("c", "a", 0, rows)]))
    assert NUMBERS["position_bias"](found) == pytest.approx((0.525 + 0.05 + 0.475) / 2)
    assert NUMBERS["u_size@8x"](found) == pytest.approx(0.3)


def test_numbers_are_of_finished_runs_and_pairs_of_seeds_that_both_have(tmp_path):
    values = {("x", "none"): (1.0, 1.1, 1.2), ("x", "gated"): (1.5, 1.7, nan), ("y", "none"): (2.0, 2.0, 2.0)}
    runs = [run(c, a, s, [row("gate_hoyer", str(v))]) for (c, a), of in values.items() for s, v in enumerate(of)]
    runs += [run("y", "gated", 0, [row("gate_hoyer", 9.0)], "diverged"), run("y", "gated", 1, [], None)]
    folder = planted(tmp_path, runs)
    assert numbers(folder, "gate_hoyer", "gated") == {"x": {0: 1.5, 1: 1.7}}
    found = gap("gate_hoyer", "gated", "none")(folder)
    assert found.value == pytest.approx(0.55) and found.over == "1 cell of 2 seeds"
    far = gap("gate_hoyer", "gated", "none", where=[Room("gate_hoyer", 5.0, words="above 5")])(folder)
    assert str(far) == "no room: 0 of 1 cell above 5 (gate_hoyer)"
    assert level("gate_hoyer", "none")(folder).value == pytest.approx(1.55)
    assert level("gate_hoyer", "none", cells=["y"])(folder).over == "the same in each of 1 cell and 3 seeds"
    with pytest.raises(StoreError, match="no gate_hoyer of a finished run of gated in y"):
        numbers(folder, "gate_hoyer", "gated", ["y"])


def test_accuracies_are_told_by_length_and_stretch_and_other_edits_are_no_rows(tmp_path):
    rows = [row("exact_match", v, length=n, intervention=i) for v, n, i in
            ((0.9, 16, None), (0.3, 128, None), (0.5, 128, "yarn"), (0.6, 32, "yarn"), (0.1, 128, "zero"))]  # fmt: skip
    (found,) = kept(planted(tmp_path, [run("c", "a", 0, rows)]))
    names = ("accuracy@1x", "accuracy@8x", "accuracy@2x, YaRN", "accuracy@8x, YaRN")
    assert [NUMBERS[name](found) for name in names] == [0.9, 0.3, 0.6, 0.5]


def test_a_run_is_unstable_that_diverges_or_spikes_by_both_thresholds_at_once(tmp_path):
    cases = [
        ([row("loss_spikes", 4)], "done", 1.0),
        ([row("loss_spikes", 0)], "done", 0.0),
        (
            [row("loss_spikes", 0), row("loss_spikes", 9, threshold=0.1), row("loss_spikes", 8, threshold=7.0)],
            "done",
            0.0,
        ),
        ([row("loss_spikes", 30, threshold=0.1), row("loss_spikes", 0, threshold=7.0)], "done", 0.0),
        ([row("loss_spikes", 30, threshold=0.1), row("loss_spikes", 9, threshold=7.0)], "done", nan),
        ([], "done", nan),
        ([], "diverged", 1.0),
    ]
    folder = planted(tmp_path, [run("c", "a", s, rows, status) for s, (rows, status, _) in enumerate(cases)])
    assert [unstable(k) for k in kept(folder)] == pytest.approx([value for *_, value in cases], nan_ok=True)
    assert numbers(folder, "unstable", "a")["c"] == {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0, 6: 1.0}


def test_an_archive_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"none of folder.parquet, folder.tar.xz, folder.tar.gz"):
        kept(tmp_path)
    (tmp_path / "folder.tar.gz").write_bytes(b"no archive")
    with pytest.raises(StoreError, match="cannot be read"):
        kept(tmp_path)


@pytest.mark.parametrize("page", [pytest.param("backcopy-phases", marks=pytest.mark.slow), "backcopy-causes"])
def test_seeds_are_those_of_the_archive(page):
    runs = {(r.cell, r.arm, r.seed): r.last("val_loss") for r in kept(RESULTS / page)}
    for cell in dict.fromkeys(cell for cell, _, _ in runs):
        arms = [a for a in dict.fromkeys(a for c, a, _ in runs if c == cell) if a != "key-bias"]
        for arm, of_seed in by_seed(RESULTS / page, "seeds.csv", "val_loss", arms, cell).items():
            assert of_seed == pytest.approx({s: runs[cell, arm, s] for s in of_seed}, rel=1e-4)


def test_runs_that_confirm_a_screen_are_not_mixed_with_it(tmp_path):
    runs = [run("a", arm, seed, losses(2.0)) for arm in ("none", "gate") for seed in range(4)]
    assert [k.seed for k in kept(planted(tmp_path / "whole", runs))] == [0, 1, 2, 3] * 2
    assert [k.seed for k in kept(planted(tmp_path / "screened", runs, [0, 1]))] == [0, 1] * 2
