"""The small model that gates harm: beside its size it is that of the confirmed cell, and each arm differs in one thing."""

from gatelab.analysis.causes import besides
from gatelab.config import canonical
from gatelab.studies import citing_causes, gates_on_tasks
from gatelab.study.plan import make_plan

PLANNED = {(p.cell, p.arm, p.run.seed): canonical(p.run) for p in make_plan(citing_causes.study).runs}


def test_task_and_optimiser_are_those_of_the_cell_that_was_confirmed():
    large_runs = {(p.cell, p.arm, p.run.seed): canonical(p.run) for p in make_plan(gates_on_tasks.study).runs}
    sizes = ("d_model", "n_layers", "n_kv_heads", "head_dim", "max_seq_len")
    for rate in ("0.001", "0.003"):
        large, small = large_runs[f"easy cite {rate}", "none", 0], PLANNED[f"cite {rate}", "none", 2]
        assert small["data"] == large["data"] and small["optim"] == large["optim"]
        assert besides(small["model"], *sizes) == besides(large["model"], *sizes)


def test_each_arm_differs_in_one_thing_and_halves_are_both_layers():
    models = {arm: run["model"] for (cell, arm, seed), run in PLANNED.items() if (cell, seed) == ("cite 0.001", 2)}
    assert len(models) == 8
    assert [models[f"{half}-half"]["gate_layers"] for half in ("first", "last")] == [[0], [1]]
    for arm, key, of in (
        ("scaled", "init", "none"),
        ("sdpa-headwise", "gate", "none"),
        ("static", "gate", "sdpa-headwise"),
        ("open", "gate", "sdpa-headwise"),
        ("first-half", "gate_layers", "sdpa-headwise"),
        ("last-half", "gate_layers", "sdpa-headwise"),
    ):
        assert besides(models[arm], key, "d_ff") == besides(models[of], key, "d_ff")
        assert models[arm][key] != models[of][key]


def test_seeds_are_none_of_the_pilots_and_66_runs_are_planned():
    assert min(citing_causes.FRESH) == 2 and len(PLANNED) == 66
