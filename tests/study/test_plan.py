"""The plan: runs matched in parameters, named by their content, extended without losing what is done."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from gatelab import lab
from gatelab.config import BigramBackcopy, ConfigError, ModelConfig, Run, Text, TrainConfig, override, validate
from gatelab.models.sizes import count_parameters
from gatelab.store import StudyFolder
from gatelab.study.plan import Plan, make_plan
from gatelab.study.study import Arm, Study, load_study

TOY = Run(
    model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu", d_ff=40),
    data=BigramBackcopy(vocab_size=16),
    train=TrainConfig(tokens=1000, batch_size=2, seq_len=8),
)
STUDY = Study(
    name="fake",
    question="?",
    cells={"toy": TOY},
    arms=(
        Arm("none", {}),
        Arm("headwise", {"model.gate": "sdpa-headwise"}),
        Arm("elementwise", {"model.gate": "sdpa-elementwise"}),
        Arm("sink", {"model.softmax": "sink-logit"}, control=True),
        Arm("wide", {"model.d_ff": 80}, control=True),
    ),
    seeds=2,
)


def arm_of(plan: Plan, name: str):
    return next(p for p in plan.runs if p.arm == name)


def finish(folder: StudyFolder) -> None:
    for _, run in folder.planned():
        run.mark_done("done", {"steps": 1})


def seeds_in(folder: StudyFolder) -> list[int]:
    return [entry["seed"] for entry, _ in folder.planned() if entry["arm"] == "none"]


def test_there_is_one_run_a_cell_arm_and_seed():
    plan = make_plan(STUDY)
    assert len(plan.runs) == len({p.fingerprint for p in plan.runs}) == 10
    assert [(p.arm, p.seed, p.run.seed) for p in plan.runs[:3]] == [("none", 0, 0), ("none", 1, 1), ("headwise", 0, 0)]


def test_the_baseline_keeps_its_width():
    none = arm_of(make_plan(STUDY), "none")
    assert (none.run.model.d_ff, none.remainder) == (40, 0)


def test_arms_are_narrowed_to_the_nearest_unit():
    plan = make_plan(STUDY)
    target = arm_of(plan, "none").n_parameters
    for name in ("headwise", "elementwise", "sink"):
        planned = arm_of(plan, name)
        assert planned.n_parameters == count_parameters(planned.run.model) == target + planned.remainder
        for d_ff in (planned.run.model.d_ff - 1, planned.run.model.d_ff + 1):
            other = count_parameters(planned.run.model.model_copy(update={"d_ff": d_ff}))
            assert abs(planned.remainder) <= abs(other - target)
    # 16 · 16 gate weights are 8 units of 2 · 16; one of 2 · 16 weights is a unit; two sink logits are less than half.
    assert [(arm_of(plan, n).run.model.d_ff, arm_of(plan, n).remainder) for n in ("headwise", "elementwise", "sink")] == [
        (39, 0), (32, 0), (40, 2),
    ]  # fmt: skip


def test_widths_are_multiples_of_the_unit():
    plan = make_plan(replace(STUDY, match_unit=4))
    assert [arm_of(plan, n).run.model.d_ff for n in ("none", "headwise", "elementwise")] == [40, 40, 32]
    assert arm_of(plan, "headwise").remainder == 32


def test_an_arm_about_the_width_is_not_narrowed():
    wide = arm_of(make_plan(STUDY), "wide")
    assert wide.run.model.d_ff == 80 and wide.remainder == 40 * 2 * 16


def test_an_arm_about_the_width_of_experts_keeps_it():
    moe = {"n_experts": 4, "top_k": 2, "d_expert": 32}
    cells = {"toy": TOY.model_copy(update={"model": ModelConfig(d_model=16, n_layers=1, n_heads=2, moe=moe)})}
    arms = (Arm("none", {}), Arm("gated", {"model.gate": "sdpa-elementwise"}), Arm("wide", {"model.moe.d_expert": 64}))
    none, gated, wide = (p.run.model.moe.d_expert for p in make_plan(replace(STUDY, cells=cells, arms=arms)).runs[::2])
    assert (none, wide) == (32, 64) and gated == 31


def test_without_matching_the_remainder_is_the_whole_gate():
    plan = make_plan(replace(STUDY, match=None))
    assert arm_of(plan, "elementwise").run.model.d_ff == 40
    assert arm_of(plan, "elementwise").remainder == 256


def test_what_cannot_be_matched_is_refused_for_all_cells_at_once():
    narrow = TOY.model_copy(update={"model": ModelConfig(d_model=16, n_heads=2, d_ff=2, mlp="relu")})
    with pytest.raises(ConfigError) as caught:
        make_plan(Study("x", "?", {"a": narrow, "b": narrow}, STUDY.arms[:3]))
    (problem,) = caught.value.problems
    assert problem.startswith("2 of 6 arms, such as elementwise of cell a: ")
    assert "take a wider baseline FFN or a smaller gate" in problem


def test_what_is_wrong_with_many_arms_is_one_sentence_each():
    wide = TOY.model_copy(update={"model": TOY.model.model_copy(update={"d_ff": 66})})
    study = replace(STUDY, cells={"a": TOY, "b": wide})
    with pytest.raises(ConfigError) as caught:
        make_plan(study.changed({"execution.processes": [3], "execution.parallel.tp": [3]}))
    n = 2 * len(STUDY.arms)
    first, second = caught.value.problems
    assert first == f"{n} of {n} arms: execution.parallel.tp=3 does not divide model.n_heads=2; take a divisor"
    said = "such as none of cell a: execution.parallel.tp=3 does not divide model.d_ff=40; take a divisor"
    assert second.endswith(said) and not second.startswith(f"{n} of")


def test_problems_of_data_and_of_models_are_listed_together(tmp_path: Path):
    missing = TOY.model_copy(update={"data": Text(paths=str(tmp_path / "none.txt"))})
    small = TOY.model_copy(update={"model": TOY.model.model_copy(update={"vocab_size": 3})})
    with pytest.raises(ConfigError) as caught:
        make_plan(Study("x", "?", {"a": missing, "b": small}, STUDY.arms[:1]))
    first, second = caught.value.problems
    assert first.startswith("cell a: ") and "no such file" in first
    assert second.startswith("cell b, arm none: model.vocab_size=3 is less than the data's 17 ids")


def test_the_name_follows_the_content_of_a_text_and_not_its_place(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GATELAB_CACHE", str(tmp_path / "cache"))
    for folder, text in (
        ("one", "all about gates. " * 99),
        ("two", "all about gates. " * 99),
        ("three", "sinks. " * 99),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(text)

    def names(folder: str) -> list[str]:
        run = TOY.model_copy(update={"data": Text(paths=str(tmp_path / folder))})
        return [p.fingerprint for p in make_plan(replace(STUDY, cells={"toy": run})).runs]

    assert names("one") == names("two")
    assert not set(names("one")) & set(names("three"))


def test_the_quickstart_keeps_its_names():
    """A changed default, stream, matching rule or study changes a name: was that meant? Then raise SCHEMA where stored
    results no longer mean the same, and write down the new names."""
    plan = make_plan(load_study("quickstart").changed({"data": ["bigram-backcopy"], "seed": [0]}))
    toy = [(p.arm, p.fingerprint) for p in plan.runs if p.cell == "bigram-backcopy"]
    assert toy == [
        ("none", "e08c8343ba2c"),
        ("sdpa-headwise", "4184f0c11637"),
        ("sdpa-elementwise", "cea56b9192dc"),
        ("sink-logit", "ef75702b8e54"),
    ]


def test_the_plan_is_json_and_its_commands_name_the_run(tmp_path: Path):
    plan = make_plan(STUDY)
    content = json.loads(json.dumps(plan.as_json(tmp_path / "a folder"), allow_nan=False))
    assert content["baseline"] == "none" and content["seeds"] == [0, 1]
    assert [a["control"] for a in content["arms"]] == [False, False, False, True, True]
    entry = content["plan"][0]
    assert entry["steps"] == 62 and entry["tokens"] == 62 * 16
    assert f"--config '{tmp_path}/a folder/runs/{entry['fingerprint']}/run.json'" in entry["command"]


def test_a_saved_plan_has_every_run_in_full(tmp_path: Path):
    plan = make_plan(STUDY)
    folder = lab.save_plan(plan, tmp_path / "out")
    assert [validate(Run, run.config()) for _, run in folder.planned()] == [p.run for p in plan.runs]


def test_a_grown_plan_keeps_what_it_had(tmp_path: Path):
    finish(lab.save_plan(make_plan(STUDY), tmp_path))
    folder = lab.save_plan(make_plan(replace(STUDY, seeds=3)), tmp_path)
    assert seeds_in(folder) == [0, 1, 2]
    done = [run.done() is not None for entry, run in folder.planned() if entry["arm"] == "none"]
    assert done == [True, True, False]


def test_finished_runs_of_more_seeds_stay_in_a_smaller_plan(tmp_path: Path):
    finish(lab.save_plan(make_plan(replace(STUDY, seeds=3)), tmp_path))
    folder = lab.save_plan(make_plan(replace(STUDY, seeds=1)), tmp_path)
    assert sorted(seeds_in(folder)) == [0, 1, 2]
    assert folder.study()["seeds"] == [0, 1, 2]


def test_unfinished_runs_of_more_seeds_leave_a_smaller_plan(tmp_path: Path):
    lab.save_plan(make_plan(replace(STUDY, seeds=3)), tmp_path)
    folder = lab.save_plan(make_plan(replace(STUDY, seeds=1)), tmp_path)
    assert seeds_in(folder) == folder.study()["seeds"] == [0]


def test_runs_of_another_configuration_are_not_mixed_in(tmp_path: Path):
    """Same cell, arm, width and steps, another learning rate: pooled, they would be one arm with two treatments."""
    finish(lab.save_plan(make_plan(replace(STUDY, seeds=3)), tmp_path))
    before = (tmp_path / "study.json").read_bytes()
    with pytest.raises(ValueError, match="15 finished runs of another configuration"):
        lab.save_plan(make_plan(replace(STUDY, seeds=1).changed({"optim.lr": [0.5]})), tmp_path)
    assert (tmp_path / "study.json").read_bytes() == before


def test_a_run_of_another_version_stops_the_plan_before_anything_is_written(tmp_path: Path):
    folder = lab.save_plan(make_plan(STUDY), tmp_path)
    last = list(folder.planned())[-1][1].path / "run.json"
    last.write_text(last.read_text().replace('"schema": 1', '"schema": 99'))
    before = (tmp_path / "study.json").read_bytes()
    with pytest.raises(ValueError, match="another version"):
        lab.save_plan(make_plan(replace(STUDY, question="another?")), tmp_path)
    assert (tmp_path / "study.json").read_bytes() == before


def following(**changes: object) -> Study:
    run = tiny.run(model=tiny.model(max_seq_len=8))
    arms = (Arm("none", {"model.gate": "none"}), Arm("gated", {"model.gate": "sdpa-headwise-two_sigmoid-init=1"}))
    fields = {"name": "x", "question": "?", "cells": {"second": run, "first": run}, "arms": arms, "seeds": 2}
    later = override(run, {"optim.lr": 1e-3})
    return Study(**{**fields, "cells": {"second": later, "first": run}, "match": None, **changes})


def test_a_cell_goes_on_from_the_same_arm_and_seed_of_another():
    plan = make_plan(following(follows={"second": "first"}))
    by = {(p.cell, p.arm, p.seed): p for p in plan.runs}
    assert [p.cell for p in plan.runs] == ["first"] * 4 + ["second"] * 4
    for arm in ("none", "gated"):
        for seed in (0, 1):
            assert by["second", arm, seed].run.init_from == by["first", arm, seed].fingerprint
            assert by["second", arm, seed].entry(Path("x"))["init_from"] == by["first", arm, seed].fingerprint
    assert by["first", "none", 0].entry(Path("x"))["init_from"] is None


def test_a_gate_may_be_inserted_later():
    plan = make_plan(following(follows={"second": ("first", "none")}))
    by = {(p.cell, p.arm, p.seed): p for p in plan.runs}
    assert by["second", "gated", 1].run.init_from == by["first", "none", 1].fingerprint


def test_weights_that_do_not_fit_are_seen_before_anything_is_started():
    with pytest.raises(ConfigError, match=r"cell second, arm gated: starts from cell first, arm none.*set match=None"):
        make_plan(following(follows={"second": ("first", "none")}, match="model.d_ff"))


@pytest.mark.parametrize(
    "follows, says",
    [
        ({"third": "first"}, "no cell 'third'"),
        ({"second": "frist"}, "did you mean 'first'?"),
        ({"second": ("first", "gate")}, "did you mean 'gated'?"),
        ({"second": "second"}, "goes on from itself"),
        ({"second": "first", "first": "second"}, "goes on from itself"),
    ],
)
def test_a_cell_cannot_go_on_from_what_is_not_there(follows: dict, says: str):
    with pytest.raises(ConfigError) as caught:
        following(follows=follows)
    assert says in str(caught.value)
