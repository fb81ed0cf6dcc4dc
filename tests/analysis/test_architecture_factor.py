"""The architecture as one factor: planted effects of it are found where its parts alone could not be told apart."""

import numpy as np
import pytest
from scipy import stats

from gatelab.analysis.anomalies.gather import varying
from gatelab.analysis.architecture import NAME, by_architecture
from gatelab.analysis.heterogeneity import fit

EXPERTS = {"n_experts": 8, "top_k": 2}
KINDS = {
    "decoder": {"arch": "decoder", "n_layers": 4, "n_encoder_layers": None, "moe": None},
    "decoder with experts": {"arch": "decoder", "n_layers": 4, "n_encoder_layers": None, "moe": EXPERTS},
    "encoder": {"arch": "encoder", "n_layers": 4, "n_encoder_layers": None, "moe": None},
    "encoder-decoder": {"arch": "encoder-decoder", "n_layers": 2, "n_encoder_layers": 2, "moe": None},
}
OBJECTIVES = {"encoder": {"kind": "answers"}, "encoder-decoder": {"kind": "continuation", "share": 0.5}}
TASKS = "track", "cite", "select", "conflict", "needle", "identifier"


def cells(kinds=KINDS, tasks=TASKS):
    """{cell: configuration}: every task in every kind of architecture, with the objective that it comes with."""
    return {
        f"{kind} {task}": {"model": dict(model), "data": task, "objective": OBJECTIVES.get(model["arch"])}
        for kind, model in kinds.items()
        for task in tasks
    }


def factors(bases):
    return by_architecture(dict(varying(bases)), {c: base["model"] for c, base in bases.items()})


def differences(bases, rng, effect):
    return {c: {s: effect(c) + rng.normal(0, 0.1) for s in range(3)} for c in bases}


def test_what_an_architecture_brings_is_one_factor_with_four_levels():
    found, brought = factors(cells())
    assert list(found) == [NAME, "data"]
    assert list(dict.fromkeys(found[NAME].values())) == list(KINDS)
    assert brought == ["model.arch", "model.n_layers", "model.n_encoder_layers", "model.moe", "objective"]


def test_a_planted_effect_of_the_architecture_is_seen_and_its_f_is_that_of_a_two_way_analysis():
    """Without the factor neither the architecture nor the depth can be told; with it F is that of cell means by kind and task."""
    bases, rng = cells(), np.random.default_rng(0)
    planted = dict(zip(KINDS, (0.0, 0.5, -1.0, 2.0), strict=True))
    other = dict(zip(bases, rng.normal(0, 0.3, len(bases)), strict=True))
    groups = differences(bases, rng, lambda c: planted[c.rpartition(" ")[0]] + other[c])
    alone = {d.factor: d for d in fit(groups, dict(varying(bases)))}
    assert alone["model.arch = objective"].notes and np.isnan(alone["model.arch = objective"].p)

    by_kind, by_task = fit(groups, factors(bases)[0])
    table = np.array([[np.mean(list(groups[f"{k} {t}"].values())) for t in TASKS] for k in KINDS])
    rows, columns = (table.mean(axis=i) - table.mean() for i in (1, 0))
    left = ((table - table.mean() - rows[:, None] - columns) ** 2).sum() / 15
    f = len(TASKS) * (rows**2).sum() / 3 / left
    assert (by_kind.factor, by_kind.df, by_kind.df_error, by_kind.against) == (NAME, 3, 15, "cells")
    assert (by_kind.f, by_kind.p) == pytest.approx((f, stats.f.sf(f, 3, 15))) and by_kind.p < 1e-6
    assert [x.effect for x in by_kind.levels] == pytest.approx(list(table.mean(axis=1)))
    assert by_task.factor == "data" and by_task.p > 0.01


def test_an_effect_of_the_task_is_none_of_the_architecture():
    bases, rng = cells(), np.random.default_rng(1)
    shifts = dict(zip(TASKS, rng.normal(0, 2, len(TASKS)), strict=True))
    other = dict(zip(bases, rng.normal(0, 0.3, len(bases)), strict=True))
    by_kind, by_task = fit(
        differences(bases, rng, lambda c: shifts[c.rpartition(" ")[2]] + other[c]), factors(bases)[0]
    )
    assert by_kind.p > 0.05 and by_task.p < 1e-3


def test_the_feed_forward_layer_that_experts_replace_is_theirs_and_a_width_is_not():
    bases = cells()
    for name, base in bases.items():
        base["model"]["mlp"] = "swiglu" if "experts" in name else "relu"
        base["model"]["d_model"] = 64 if name.startswith("encoder ") else 128
    found, brought = factors(bases)
    assert "model.mlp" in brought and list(found) == [NAME, "model.d_model", "data"]


def test_a_depth_that_varies_within_an_architecture_stays_a_factor():
    bases = cells()
    for task in TASKS[:3]:
        bases[f"decoder {task}"]["model"]["n_layers"] = 8
    found, brought = factors(bases)
    assert "model.n_layers" in found and "model.n_layers" not in brought and "model.n_encoder_layers" in brought


def test_experts_that_every_architecture_has_are_a_factor_of_their_own():
    kinds = {f"{k}{' moe' * bool(m)}": KINDS[k] | {"moe": m} for k in ("decoder", "encoder") for m in (None, EXPERTS)}
    found, brought = factors(cells(kinds, TASKS[:2]))
    assert list(found) == [NAME, "model.moe", "data"]
    assert set(found[NAME].values()) == {"decoder", "encoder"} and "model.moe" not in brought


def test_experts_of_several_shapes_are_a_factor_of_their_own():
    kinds = {k: KINDS[k] for k in ("decoder", "encoder", "decoder with experts")}
    kinds["decoder with many"] = KINDS["decoder"] | {"moe": EXPERTS | {"n_experts": 16}}
    found, _ = factors(cells(kinds, TASKS[:2]))
    assert "model.moe" in found and set(found[NAME].values()) == {"decoder", "encoder"}


def test_cells_of_one_architecture_keep_their_keys():
    kinds = {k: KINDS[k] for k in ("decoder", "decoder with experts")}
    found, brought = factors(cells(kinds))
    assert list(found) == ["model.moe", "data"] and brought == []
