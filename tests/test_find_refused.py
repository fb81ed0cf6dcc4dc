"""What may not be compared, from the rows to the page: unequal tokens, two versions of the code; and a gated baseline, before."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import toy

from gatelab import lab
from gatelab.analysis.refusals import UNKNOWN
from gatelab.cli import _status
from gatelab.config import override
from gatelab.record import Row
from gatelab.store import Appender, StudyFolder, write_json
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

TOY = toy()
ARMS = (Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"}), Arm("late", {"model.gate": "value-headwise"}))
LONG = Arm("late", {"model.gate": "value-headwise", "train.tokens": 32})
EFFECTS = {"none": 0.0, "gated": -0.1, "late": -0.2}

Environment = Callable[[dict], dict | None]


def env(commit="", code="", torch="2.11.0") -> dict:
    git = {"commit": commit * 40, "modified": False} if commit else None
    return {"git": git, "versions": {"torch": torch}} | ({"code": code} if code else {})


def made(
    out: Path, *, arms=ARMS, cells=("a", "b"), seeds=5, environment: Environment = lambda e: env("a")
) -> StudyFolder:
    """A finished study, each arm with its effect on the held-out loss, each run with what `environment` says of it."""
    bases = {name: override(TOY, {"optim.lr": (i + 1) * 1e-3}) for i, name in enumerate(cells)}
    folder = lab.save_plan(make_plan(Study("fake", "?", bases, arms, seeds=seeds, primary=("val_loss",))), out)
    for entry, run in folder.planned():
        rng = np.random.default_rng([entry["seed"], *entry["cell"].encode()])
        base, noise = rng.normal(3, 1), rng.normal(0, 0.05, 3)
        value = base + EFFECTS[entry["arm"]] + noise[list(EFFECTS).index(entry["arm"])]
        rows = Appender(run.rows_path)
        rows.write([Row(run.fingerprint, 1, "eval", "val_loss", value, "nats")])
        rows.close()
        write_json(run.path / "environment.json", environment(entry))
        run.mark_done("done", {"steps": 1})
    return folder


def said(capsys, *words) -> tuple[int, str, str]:
    status = _status([*map(str, words)])
    out = capsys.readouterr()
    return status, out.out, out.err


def losses(folder: StudyFolder) -> dict[tuple[str, str], object]:
    return {(f.cell, f.arm): f for f in lab.analyse(folder).findings if f.metric == "val_loss"}


def test_an_arm_with_other_tokens_has_no_verdict_and_shifts_no_q(tmp_path, capsys):
    """The other arm's findings are those of a study that never had it."""
    folder = made(tmp_path / "out", arms=(*ARMS[:2], LONG))
    found, alone = losses(folder), losses(made(tmp_path / "alone", arms=ARMS[:2]))
    assert {found[c, "gated"].q for c in "ab"} == {alone[c, "gated"].q for c in "ab"}
    assert {found[c, "late"].verdict for c in "ab"} == {"refused"}
    status, out, _ = said(capsys, "find", folder.path)
    assert status == 0 and "  refused     a: late is refused: seed 0 sees 32 tokens with late and 16 with none" in out
    assert not [line for line in out.splitlines() if "late lowers" in line or "late may" in line]

    page = lab.report(folder, lab.analyse(folder)).read_text(encoding="utf-8")
    assert "Refused comparisons have no effect and no test" in page.partition("Verdicts</h2>")[0]
    assert "badge refused" in page and "late lowers" not in page
    with (folder.path / "effects.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["arm"] == "late" and r["metric"] == "val_loss"]
    assert len(rows) == 2 and {r["verdict"] for r in rows} == {"refused"}
    assert {r["p"] for r in rows} == {r["q"] for r in rows} == {r["effect"] for r in rows} == {"nan"}
    assert all(r["notes"].startswith("refused: seed 0 sees 32 tokens") for r in rows)
    assert {g.arm for g in lab.analyse(folder).pairing} == {"gated"}


def test_the_records_of_find_say_what_is_refused(tmp_path, capsys):
    folder = made(tmp_path / "out", arms=(*ARMS[:2], LONG), cells=("a",))
    _, out, _ = said(capsys, "find", folder.path, "--json")
    (late,) = (r for line in out.splitlines() if (r := json.loads(line)).get("arm") == "late")
    assert late["verdict"] == "refused" and late["n_pairs"] == 0 and late["notes"][0].startswith("refused: ")


def test_pairs_of_two_versions_are_left_out_of_every_number(tmp_path, capsys):
    """The commit is known of two seeds of the gate and of all of the baseline: the three others are no pairs."""
    folder = made(
        tmp_path / "out",
        environment=lambda e: env("" if (e["cell"], e["arm"]) == ("a", "gated") and e["seed"] > 1 else "a"),
    )
    found, whole = losses(folder), losses(made(tmp_path / "whole"))
    assert found["a", "gated"].seeds == [0, 1] and found["a", "late"].seeds == [0, 1, 2, 3, 4]
    assert found["a", "gated"].differences == whole["a", "gated"].differences[:2]
    clause = f"seed 2 is of two versions of the code (none: {'a' * 12}; gated: not recorded)"
    assert clause in found["a", "gated"].notes and clause in found["a", "gated"].sentence
    hunt = lab.hunt(folder)
    assert hunt.gathered.evidence.pairs("val_loss", "a", "gated").seeds == [0, 1]
    assert "pairs are left out whose two runs are of two versions: a, gated: seeds 2, 3, 4" in hunt.notes
    page = lab.report(folder, lab.analyse(folder)).read_text(encoding="utf-8")
    assert "Pairs are left out whose two runs are of two versions" in page.partition("Verdicts</h2>")[0]
    # Arms at their best rates would be of other cells, whose runs make no pairs by version.
    assert any("each cell is a setting of its own: pairs are left out" in n for n in lab.recommend(
        folder, lab.analyse(folder)).notes)  # fmt: skip


def test_seeds_that_another_version_added_are_compared_and_said_to_be_mixed(tmp_path, capsys):
    folder = made(tmp_path / "out", environment=lambda e: env(code=("1" if e["seed"] < 3 else "2") * 12))
    assert {f.n_pairs for f in losses(folder).values()} == {5}
    hunt = lab.hunt(folder)
    (note,) = (n for n in hunt.notes if "versions" in n)
    assert note.startswith("pairs of 2 versions of the code are compared together in 4 of 4 comparisons (code 1111")
    assert hunt.pooled and hunt.gathered.versions == {"code 111111111111", "code 222222222222"}


def test_a_study_whose_runs_name_no_version_is_analysed_and_says_so_once(tmp_path, capsys):
    folder = made(tmp_path / "out", environment=lambda e: env())
    assert {f.n_pairs for f in losses(folder).values()} == {5}
    _, out, _ = said(capsys, "find", folder.path)
    assert out.count(UNKNOWN) == 1
    assert lab.hunt(folder).pooled


def test_versions_are_told_where_no_anomalies_are_looked_for(tmp_path, capsys):
    folder = made(tmp_path / "out", arms=ARMS[1:], environment=lambda e: env())
    status, out, err = said(capsys, "find", folder.path)
    why = "no anomalies were looked for: "
    assert status == 0 and "late " in out and err.startswith(why) and err.count(UNKNOWN) == 1
    page = lab.report(folder, lab.analyse(folder)).read_text(encoding="utf-8").partition("Verdicts</h2>")[0]
    assert (
        "No anomalies were looked for: anomalies are what a gate does against none, and its baseline gated has" in page
    )
    assert str(folder.path) not in page.partition("<body")[2]


def test_two_versions_of_torch_in_a_comparison_are_flagged(tmp_path):
    folder = made(
        tmp_path / "out",
        environment=lambda e: env("a", torch="2.12.0" if (e["arm"], e["seed"]) == ("gated", 4) else "2.11.0"),
    )
    found = losses(folder)["a", "gated"]
    assert found.n_pairs == 4 and "seed 4 is of two versions of torch (none: 2.11.0; gated: 2.12.0)" in found.sentence


def test_a_refused_comparison_stays_refused_where_an_arm_never_ran_with_the_code_of_its_baseline(tmp_path):
    folder = made(tmp_path / "out", environment=lambda e: env("b" if e["arm"] == "late" else "a"))
    found, hunt = losses(folder), lab.hunt(folder)
    assert found["a", "late"].verdict == found["b", "late"].verdict == "refused" and found["a", "gated"].n_pairs == 5
    assert {a.arm for a in hunt.screened.alarms} == {"gated"} and {c.arm for c in hunt.claims} <= {"gated"}


def test_architectures_are_one_factor_of_find_and_its_f_is_printed(tmp_path, capsys):
    """Three tasks' worth of cells in three architectures, which bring depth and objective with them."""
    shapes = {
        "dense": {},
        "experts": {"model.moe": {"n_experts": 2, "top_k": 1, "d_expert": 8}},
        "encoder": {"model.arch": "encoder", "model.n_layers": 2},
    }
    bases = {
        f"{name} {lr}": override(TOY, {"optim.lr": lr, "model.mlp": "swiglu"} | change)
        for name, change in shapes.items()
        for lr in (1e-3, 2e-3, 4e-3)
    }
    folder = lab.save_plan(make_plan(Study("fake", "?", bases, ARMS[:2], seeds=3, primary=("val_loss",))), tmp_path)
    rng = np.random.default_rng(0)
    planted = {cell: (-2.0 if "encoder" in cell else 1.0) + rng.normal(0, 0.1) for cell in bases}
    for entry, run in folder.planned():
        rows = Appender(run.rows_path)
        gain = (planted[entry["cell"]] + rng.normal(0, 0.05)) * (entry["arm"] == "gated")
        rows.write([Row(run.fingerprint, 1, "eval", "val_loss", 3 + entry["seed"] + gain, "nats")])
        rows.close()
        write_json(run.path / "environment.json", env("a"))
        run.mark_done("done", {"steps": 1})
    found = lab.hunt(folder).dependences
    assert {d.factor for d in found} == {"architecture", "optim.lr"}
    _, out, _ = said(capsys, "find", folder.path)
    stands = "the architecture stands for what varies with it alone: model.arch, model.n_layers, model.moe"
    assert stands in out
    (line,) = (x for x in out.splitlines() if "by architecture" in x)
    assert "gated, val_loss by architecture: decoder: +" in line and ", encoder: -" in line and "(F(2, 4) = " in line


GATED_FIRST = """
from gatelab import Arm, BigramBackcopy, ModelConfig, Run, Study, TrainConfig

toy = Run(model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu"), data=BigramBackcopy(vocab_size=16),
          train=TrainConfig(tokens=0, batch_size=2, seq_len=8))
GATED, PLAIN = Arm("value", {"model.gate": "value-headwise"}), Arm("none", {})
study = Study("fake", "?", {"toy": toy}, (GATED, PLAIN), seeds=1)
"""
SAYS = "note: the baseline value has a gate (value-headwise)"


@pytest.fixture
def gated_first(tmp_path) -> Path:
    path = tmp_path / "fake.py"
    path.write_text(GATED_FIRST, encoding="utf-8")
    return path


def test_a_plan_with_a_gated_baseline_says_so_in_one_sentence(gated_first, capsys):
    status, _, err = said(capsys, "plan", gated_first)
    assert status == 0 and err.count(SAYS) == 1 and len(err.splitlines()) == 1
    assert "give the study a first arm without a gate" in err
    gated_first.write_text(GATED_FIRST.replace("(GATED, PLAIN)", "(PLAIN, GATED)"), encoding="utf-8")
    assert said(capsys, "plan", gated_first)[2] == ""


def test_a_run_with_a_gated_baseline_begins_with_that_sentence(gated_first, tmp_path, capsys, monkeypatch):
    folder = lab.save_plan(lab.plan(str(gated_first)), tmp_path / "out")
    for _, run in folder.planned():
        run.rows_path.touch()
        run.mark_done("done", {"steps": 0})
    for words in ([gated_first, "--out", folder.path], [folder.path]):
        monkeypatch.setattr("gatelab.cli.study.find_spec", lambda name: None if name == "duckdb" else name)
        _, _, err = said(capsys, "run", *words, "--json")
        assert err.splitlines()[1].startswith(SAYS) and err.count(SAYS) == 1


def test_a_study_of_one_arm_is_not_warned_of(tmp_path, capsys):
    only = Study("fake", "?", {"toy": TOY}, (Arm("value", {"model.gate": "value-headwise"}),), seeds=1)
    assert lab.baseline_warning(make_plan(only)) == ""
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    assert lab.baseline_warning(lab.save_plan(make_plan(only), tmp_path / "x")) == ""
