"""lab: which rows become a run's outcome, how arms are paired, and what one run and one probe refuse."""

import math
from pathlib import Path
from typing import Any

import pytest
from tiny import toy

from gatelab import lab
from gatelab.cli.base import said
from gatelab.config import ConfigError, Execution, ModelConfig, Run, TrainConfig, canonical
from gatelab.config.objective import Continuation
from gatelab.lab.looking import _at_length
from gatelab.record import Row
from gatelab.store import Appender, RunFolder, StoreError, StudyFolder, write_json
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

TOY = toy()
STUDY = Study(
    name="fake",
    question="?",
    cells={"toy": TOY},
    arms=(Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"})),
    seeds=3,
)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return lab.save_plan(make_plan(STUDY), tmp_path / "out")


def run_of(folder: StudyFolder, arm: str, seed: int) -> RunFolder:
    return folder.find(f"toy/{arm}/{seed}")


def write(run: RunFolder, *rows: tuple[int, str, float, dict[str, Any]], status: str | None = "done") -> None:
    appender = Appender(run.rows_path)
    appender.write(
        Row(run.fingerprint, step, "eval", metric, value, "1", **where) for step, metric, value, where in rows
    )
    appender.close()
    if status is not None:
        run.mark_done(status, {"steps": 1})


def outcomes_of(folder: StudyFolder, arm: str, seed: int) -> dict[str, tuple[float, str]]:
    return {o.metric: (o.value, o.status) for o in lab.outcomes(folder) if (o.arm, o.seed) == (arm, seed)}


def test_an_outcome_is_the_row_of_the_whole_model_at_the_last_look(folder):
    write(
        run_of(folder, "none", 0),
        (0, "val_loss", 9.0, {}),
        (7, "val_loss", 1.0, {"domain": "bigram"}),
        (7, "val_loss", 2.0, {"split": "heldout", "length": 8}),
        (7, "first_token_mass", 3.0, {"layer": 0}),
        (7, "first_token_mass", 4.0, {"layer": 0, "head": 1}),
        (7, "first_token_mass", 0.25, {"length": 8}),
        (7, "massive_max", 5.0, {"intervention": "shut"}),
        (7, "massive_max", 6.0, {"stage": "before"}),
        (7, "massive_max", 7.0, {}),
        (7, "gate_mean", 0.9, {"site": "value"}),
        (7, "gate_mean", 0.5, {"site": "sdpa"}),
    )
    assert outcomes_of(folder, "none", 0) == {
        "val_loss": (2.0, "done"),
        "first_token_mass": (0.25, "done"),
        "massive_max": (7.0, "done"),
        "gate_mean": (0.5, "done"),
    }


def test_an_outcome_is_taken_at_its_metrics_threshold(folder):
    rates = [(7, "sink_rate", t, {"threshold": t}) for t in (0.1, 0.3, 0.5)]
    spikes = [(1, "loss_spikes", t, {"threshold": t}) for t in (0.1, 7.0)]
    write(run_of(folder, "none", 0), *rates, *spikes, (1, "loss_spikes", 3.0, {}))
    write(run_of(folder, "none", 1), *rates, *spikes)
    assert outcomes_of(folder, "none", 0) == {"sink_rate": (0.3, "done"), "loss_spikes": (3.0, "done")}
    assert outcomes_of(folder, "none", 1) == {"sink_rate": (0.3, "done")}  # counts of each threshold do not tell


def test_a_run_that_is_not_done_is_named_with_its_state(folder):
    write(run_of(folder, "none", 0), (3, "val_loss", 2.0, {}), status="diverged")
    write(run_of(folder, "none", 1), (3, "val_loss", 2.0, {}), status=None)
    assert outcomes_of(folder, "none", 0)["val_loss"] == (2.0, "diverged")
    assert outcomes_of(folder, "none", 1)["val_loss"] == (2.0, "planned")
    value, state = outcomes_of(folder, "none", 2)["val_loss"]
    assert math.isnan(value) and state == "planned"


def test_a_done_run_without_any_row_is_not_passed_over(folder):
    write(run_of(folder, "none", 0))
    value, state = outcomes_of(folder, "none", 0)["val_loss"]
    assert math.isnan(value) and state == "done"


def test_arms_are_compared_seed_by_seed(folder):
    """The seeds differ by 10 and the arms by about 1: only pairs can tell."""
    for seed in range(3):
        write(run_of(folder, "none", seed), (1, "val_loss", 10.0 * seed, {}))
        write(run_of(folder, "gated", seed), (1, "val_loss", 10.0 * seed - 1 - seed / 100, {}))
    (finding,) = lab.analyse(folder).findings
    assert (finding.arm, finding.baseline, finding.seeds) == ("gated", "none", [0, 1, 2])
    assert finding.differences == pytest.approx([-1.0, -1.01, -1.02])
    assert finding.effect == pytest.approx(-1.01) and finding.low < -1.01 < finding.high < 0
    assert finding.verdict == "lower"


def test_a_pair_needs_both_runs(folder):
    for seed in range(3):
        write(run_of(folder, "none", seed), (1, "val_loss", float(seed), {}))
        write(run_of(folder, "gated", seed), (1, "val_loss", 0.0, {}), status="diverged" if seed == 1 else "done")
    (finding,) = lab.analyse(folder).findings
    assert finding.seeds == [0, 2]
    assert any("seed 1 of gated diverged" in note for note in finding.notes)


def test_a_folder_without_results_has_findings_that_say_so(folder):
    assert {f.verdict for f in lab.analyse(folder).findings} == {"untestable"}


def test_a_study_that_was_edited_is_refused(folder):
    study = folder.study()
    del study["metrics"]
    write_json(folder.path / "study.json", study)
    with pytest.raises(StoreError, match="metrics missing"):
        lab.analyse(folder)


def test_an_unfinished_run_has_nothing_to_probe(folder):
    with pytest.raises(StoreError, match="has not finished"):
        lab.probe(run_of(folder, "none", 0).path)


def test_only_a_run_can_be_probed(folder, tmp_path):
    for path, says in (
        (folder.path, "is a whole study"),
        (tmp_path, "holds no run"),
        (tmp_path / "x", "no such folder"),
    ):
        with pytest.raises(StoreError, match=says):
            lab.probe(path)


def test_one_run_is_a_study_of_one_run():
    study = lab.single({"seed": [7], "model.gate": ["sdpa-headwise"], "execution.device": ["cpu"]})
    assert study.seed_values == (7,) and study.execution == Execution(device="cpu")
    assert [a.name for a in study.arms] == ["sdpa-headwise"]
    assert list(study.cells) == ["text"] and study.match is None


def test_one_run_keeps_the_name_that_it_had_in_its_study(folder):
    original = run_of(folder, "gated", 2)
    (planned,) = make_plan(lab.single({}, original.path / "run.json")).runs
    assert planned.fingerprint == original.fingerprint
    assert canonical(planned.run) == original.config()


def test_one_run_takes_one_value():
    with pytest.raises(ConfigError) as caught:
        lab.single({"seed": [1, 2], "optim.lr": [1, 2]})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("content, says", [("[]", "holds a list"), ('{"seed": -1}', "seed=-1"), ("{", "not readable")])
def test_a_configuration_that_is_none_is_refused(tmp_path, content: str, says: str):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        lab.single({}, path)


def test_a_configuration_of_another_version_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    write_json(path, {"schema": 99, "run": {}})
    with pytest.raises(StoreError, match="schema 99"):
        lab.single({}, path)


def test_an_executor_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'local'"):
        lab.check_executor("locl")


def test_a_configuration_lies_flat_by_dotted_path():
    assert lab.flat({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}


@pytest.mark.parametrize(
    ("stacks", "counts"),
    [
        ({None: 1.0, "cross": 2.0, "encoder": 3.0}, 1.0),
        ({"encoder": 3.0, "cross": 2.0, None: 1.0}, 1.0),
        ({"encoder": 3.0}, 3.0),
    ],
)
def test_an_outcome_is_of_the_decoders_self_attention_and_of_an_encoder_only_where_it_stands_alone(
    folder, stacks, counts
):
    rows = [(7, metric, value, {"stack": s}) for s, value in stacks.items() for metric in ("first_token_mass", "drain")]
    gates = [(7, "gate_mean", value / 10, {"stack": s, "site": "sdpa"}) for s, value in stacks.items()]
    write(run_of(folder, "gated", 0), (7, "val_loss", 2.0, {}), *rows, *gates)
    found = outcomes_of(folder, "gated", 0)
    assert found["first_token_mass"] == (counts, "done") and found["gate_mean"] == (counts / 10, "done")


def test_a_gate_of_the_encoder_alone_is_not_taken_for_one_of_the_decoder(folder):
    own = [(7, "first_token_mass", 0.5, {"stack": s}) for s in (None, "cross", "encoder")]
    write(run_of(folder, "gated", 0), *own, (7, "gate_mean", 0.2, {"stack": "encoder", "site": "sdpa"}))
    assert "gate_mean" not in outcomes_of(folder, "gated", 0)


def test_final_rows_say_whose_they_are(folder):
    run = run_of(folder, "gated", 0)
    write(run, *((7, "gate_mean", 0.5, {"stack": s, "site": g}) for s in ("cross", None) for g in ("value", "sdpa")))
    said = [(row["stack"], row["site"]) for row in lab.final_rows(folder, run.fingerprint)]
    assert said == [(None, "sdpa"), (None, "value"), ("cross", "sdpa"), ("cross", "value")]


def test_final_rows_of_tasks_say_task_length_and_stretch(folder):
    run, yarn = run_of(folder, "gated", 0), {"intervention": "yarn", "dose": 2.0}
    at = [
        {"task": task, "length": length} | stretch
        for task in ("needle", "bracket")
        for length, stretch in ((16, yarn), (16, {}), (8, {}))
    ]
    write(
        run,
        *((7, "exact_match", i / 8, where) for i, where in enumerate(at)),
        (7, "exact_match", 1.0, at[0] | {"depth": 0.5, "bin": 5}),
        (7, "val_loss", 2.0, {"length": 8}),
    )
    rows = lab.final_rows(folder, run.fingerprint)
    assert [(r["task"], r["length"], r["intervention"], r["dose"], r["value"]) for r in rows] == [
        (None, 8, None, None, 2.0),
        *(("bracket", 8, None, None, 5 / 8), ("bracket", 16, None, None, 4 / 8), ("bracket", 16, "yarn", 2.0, 3 / 8)),
        *(("needle", 8, None, None, 2 / 8), ("needle", 16, None, None, 1 / 8), ("needle", 16, "yarn", 2.0, 0.0)),
    ]
    shown = {"metric", "value", "unit", "task", "length", "intervention", "dose"}
    assert all(set(row) == shown for row in said(rows))


def test_the_only_length_of_a_table_is_not_printed(folder):
    run = run_of(folder, "gated", 0)
    write(run, (7, "val_loss", 2.0, {"length": 8}), (7, "loss", 2.5, {}))
    assert [set(row) for row in said(lab.final_rows(folder, run.fingerprint))] == [{"metric", "value", "unit"}] * 2


def test_a_run_from_weights_that_are_not_there_is_refused_before_anything_is_written(tmp_path):
    study = lab.single({"init_from": ["abcdefabcdef"], "data": ["bigram-backcopy"]})
    with pytest.raises(StoreError, match=r"init_from=abcdefabcdef: .* holds no finished run of this name"):
        lab.save_plan(make_plan(study), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_probe_at_a_length_with_more_spans_than_sentinels_is_refused():
    run = Run(model=ModelConfig(arch="encoder-decoder"), train=TrainConfig(seq_len=32, batch_size=2)).resolved(256)
    with pytest.raises(ValueError, match=r"--length 64: 'span-corruption' takes out more spans"):
        _at_length(run, 64)
    assert _at_length(run.model_copy(update={"objective": Continuation()}), 64).train.seq_len == 64
