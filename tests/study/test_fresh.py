"""Runs with other seeds, taken from a study's folder, are the runs that the study itself would plan."""

import pytest

from gatelab import lab
from gatelab.config import BigramBackcopy, ModelConfig, Run, Text, TrainConfig, canonical, override
from gatelab.store import StoreError, write_json
from gatelab.study.fresh import fresh_runs, with_sources
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

TOY = Run(
    model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu"),
    data=BigramBackcopy(vocab_size=16),
    train=TrainConfig(tokens=16, batch_size=2, seq_len=8),
)
ARMS = (Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"}), Arm("value", {"model.gate": "value-headwise"}))


def study(seeds):
    cells = {
        "short": TOY,
        "long": override(TOY, {"train.seq_len": 16, "train.tokens": 32}),
        "alone": override(TOY, {"optim.lr": 1e-2}),
    }
    return Study("fake", "?", cells, ARMS, seeds=seeds, match=None, follows={"long": "short"})


@pytest.fixture
def folder(tmp_path):
    return lab.save_plan(make_plan(study(2)), tmp_path / "out")


def test_they_are_the_studys_own_runs_of_these_cells_and_arms_and_what_they_start_from(folder):
    wanted = [("long", "none"), ("long", "gated")]
    found = fresh_runs(folder, wanted, [7, 8])
    asked = {(c, a, s) for c in ("short", "long") for a in ("none", "gated") for s in (7, 8)}
    own = {(p.cell, p.arm, p.seed): p for p in make_plan(study((7, 8))).runs}
    assert {(p.cell, p.arm, p.seed) for p in found} == asked
    for p in found:
        same = own[p.cell, p.arm, p.seed]
        assert (p.fingerprint, canonical(p.run), p.entry(folder.path)) == (
            same.fingerprint, canonical(same.run), same.entry(folder.path)
        )  # fmt: skip


def test_a_source_stands_before_what_starts_from_it(folder):
    order = with_sources(folder, [("long", "gated"), ("alone", "none"), ("short", "gated")])
    assert order == [("short", "gated"), ("long", "gated"), ("alone", "none")]


def test_what_the_study_has_no_run_of_is_refused(folder):
    with pytest.raises(StoreError, match="has no run of elsewhere with none"):
        fresh_runs(folder, [("elsewhere", "none")], [7])


def test_data_that_have_changed_are_refused(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("some words " * 200, encoding="utf-8")
    base = override(TOY, {"data": Text(paths=str(text), tokenizer="byte"), "model.vocab_size": None})
    folder = lab.save_plan(make_plan(Study("fake", "?", {"c": base}, ARMS[:2], seeds=1)), tmp_path / "out")
    text.write_text("other words " * 200, encoding="utf-8")
    with pytest.raises(StoreError, match="since its data have changed"):
        fresh_runs(folder, [("c", "none")], [7])


def test_an_edited_configuration_is_refused(folder):
    """Where the arm's other runs are too: a configuration that is whole says what another seed's is."""
    before = fresh_runs(folder, [("alone", "none")], [7])
    for seed in (0, 1):
        assert fresh_runs(folder, [("alone", "none")], [7]) == before
        write_json(folder.find(f"alone/none/{seed}").path / "run.json", {"nothing": 1})
    with pytest.raises(StoreError):
        fresh_runs(folder, [("alone", "none")], [7])
