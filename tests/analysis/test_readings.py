"""Readings: rows that are planted in a study's folder come out as the numbers that docs/metrics.md makes of them."""

from math import log
from pathlib import Path

import pytest

from gatelab import lab
from gatelab.analysis.anomalies import RULES, screen
from gatelab.analysis.anomalies.gather import gather
from gatelab.config import BigramBackcopy, ModelConfig, Run, TrainConfig
from gatelab.record import Row
from gatelab.store import Appender
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

TOY = Run(
    model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu"),
    data=BigramBackcopy(vocab_size=16),
    train=TrainConfig(tokens=16, batch_size=2, seq_len=8),
)
ROWS = (
    (1, "val_loss", 9.0, {}),  # an earlier look
    (2, "val_loss", 2.5, {}),
    (2, "val_loss", 7.0, {"domain": "code"}),
    (2, "first_token_mass", 0.4, {}),
    *((2, "first_token_mass", v, {"layer": 0, "head": h}) for h, v in enumerate((0.1, 0.3))),
    *((2, "first_token_mass", v, {"layer": 1, "head": h}) for h, v in enumerate((0.2, 0.8))),
    *((2, "first_token_mass", v, {"layer": layer}) for layer, v in enumerate((0.2, 0.5))),
    (2, "sink_elsewhere", 0.7, {"threshold": 0.1}),
    (2, "sink_elsewhere", 0.2, {"threshold": 0.3}),
    *((2, "gate_below", v, {"layer": layer, "site": "sdpa", "threshold": 0.1}) for layer, v in enumerate((0.97, 0.4))),
    *((2, "position_mass", v, {"bin": b}) for b, v in enumerate((0.5, 0.3, 0.2))),
    *((2, "position_mass_uniform", v, {"bin": b}) for b, v in enumerate((0.1, 0.25, 0.65))),
    (2, "key_mass", 0.6, {"domain": "comma"}),
    (2, "key_mass_uniform", 0.1, {"domain": "comma"}),
    *((2, "exact_match", v, {"task": "needle", "length": n}) for n, v in ((8, 0.95), (16, 0.8), (64, 0.3))),
    (2, "exact_match", 0.0, {"task": "needle", "length": 8, "bin": 3}),
    (2, "exact_match", 0.9, {"task": "needle", "length": 64, "intervention": "yarn", "dose": 8.0}),
    (2, "exact_match", 0.5, {"task": "mqar", "length": 8}),
    (2, "val_loss", 5.0, {"intervention": "gate=open"}),
    *((2, "loss_spikes", v, {"threshold": t}) for t, v in ((0.1, 40.0), (7.0, 5.0))),
    (2, "loss_spikes", 3.0, {}),
)
EXPECTED = {
    "val_loss": 2.5, "first_token_mass": 0.4, "sink_elsewhere": 0.2, "gate_shut": 0.97,
    "new_places:from 1": 0.05, "new_places:from 3": -0.45, "new_tokens:comma": 0.5,
    "accuracy:needle": 0.95, "accuracy:mqar": 0.5, "longer:needle": -0.65,
    # The standard deviation of two values is their difference over the root of two.
    "mass_spread_heads": (log(0.2 / 2**0.5) + log(0.6 / 2**0.5)) / 2, "mass_spread_layers": log(0.3 / 2**0.5),
    "loss_spikes": 3.0, "unstable": 1.0,
}  # fmt: skip


# The counts of a run by threshold (None: of both), how it ended; its spikes, and whether it is unstable.
SPIKES = (
    ({}, "done", None, None),
    ({}, "diverged", None, 1.0),
    ({0.1: 1500.0, 7.0: 0.0}, "done", 0.0, 0.0),  # batches of few answers
    ({0.1: 2.0, 7.0: 74.0}, "done", 0.0, 0.0),  # two steps cannot be three that pass both
    ({0.1: 65.0, 7.0: 364.0}, "done", None, None),  # may be the same steps or not
    ({0.1: 65.0, 7.0: 364.0, None: 0.0}, "done", 0.0, 0.0),
    ({0.1: 65.0, 7.0: 364.0, None: 12.0}, "done", 12.0, 1.0),
    ({0.1: 65.0, 7.0: 0.0, None: 0.0}, "diverged", 0.0, 1.0),
)


def planned(path, n_seeds):
    arms = (Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"}))
    study = Study(name="fake", question="?", cells={"toy": TOY}, arms=arms, seeds=n_seeds)
    return lab.save_plan(make_plan(study), Path(path) / "out")


def written(run, rows, ending="done"):
    appender = Appender(run.rows_path)
    appender.write(Row(run.fingerprint, step, "probe", metric, v, "1", **where) for step, metric, v, where in rows)
    appender.close()
    run.mark_done(ending, {"steps": 2})


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    folder = planned(tmp_path_factory.mktemp("study"), 1)
    written(folder.find("toy/gated/0"), ROWS)
    return gather(folder)


@pytest.fixture(scope="module")
def with_spikes(tmp_path_factory):
    folder = planned(tmp_path_factory.mktemp("spikes"), len(SPIKES))
    for seed, (counts, ending, _, _) in enumerate(SPIKES):
        rows = [(2, "loss_spikes", n, {} if t is None else {"threshold": t}) for t, n in counts.items()]
        written(folder.find(f"toy/gated/{seed}"), rows, ending)
    return gather(folder).evidence


@pytest.mark.parametrize("name", EXPECTED)
def test_a_reading_is_what_its_rows_say(gathered, name):
    assert gathered.evidence.runs(name, "toy", "gated") == {0: pytest.approx(EXPECTED[name])}


def test_there_is_no_other_reading(gathered):
    measured = {n for n in gathered.evidence.readings if gathered.evidence.runs(n, "toy", "gated")}
    assert measured == set(EXPECTED)


def test_a_spike_passes_both_thresholds_and_rows_that_do_not_tell_give_no_reading(with_spikes):
    counts, unstable = (
        {seed: line[column] for seed, line in enumerate(SPIKES) if line[column] is not None} for column in (2, 3)
    )
    finished = {seed: n for seed, n in counts.items() if SPIKES[seed][1] == "done"}
    assert with_spikes.runs("loss_spikes", "toy", "gated") == finished
    assert with_spikes.runs("unstable", "toy", "gated") == unstable


def test_where_no_run_counted_spikes_there_is_no_test_of_instability(tmp_path):
    folder = planned(tmp_path, 6)
    for arm in ("none", "gated"):
        for seed in range(6):
            written(folder.find(f"toy/{arm}/{seed}"), [(2, "val_loss", 2.0 + seed, {})])
    assert not [a for a in screen(gather(folder).evidence, RULES).alarms if a.rule == "instability"]
