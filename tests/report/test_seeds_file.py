"""seeds.csv: a line a finished run, five digits, the fresh seeds in a file of their own, and `gatelab report` writes it."""

import csv
from dataclasses import asdict

from synthetic import COMPLETE, METRICS, make_study

from gatelab import lab
from gatelab.analysis import Outcome
from gatelab.report.seeds import seeds_files

DECLARED = [asdict(m) for m in METRICS] + [
    {"name": "task_accuracy@1x", "primary": True},
    {"name": "other", "primary": False},
]


def run(seed: int, arm: str = "none", status: str = "done", **values: float) -> list[Outcome]:
    return [Outcome("a,b", arm, seed, name.replace("_at_", "@"), value, status) for name, value in values.items()]


def test_a_line_a_finished_run_in_order_to_five_digits():
    found = [
        *run(1, val_loss=2.1234567, massive_max=18.359374, gate_mean=0.5, other=1.0),
        *run(0, val_loss=float("nan"), massive_max=1234567.0),
        *run(2, status="diverged", val_loss=9.0),
        *run(0, "gated", val_loss=1.0, task_accuracy_at_1x=0.00001234567),
    ]
    files = seeds_files(found, DECLARED, kept=[])
    assert list(files) == ["seeds.csv"]
    assert files["seeds.csv"].splitlines() == [
        "cell,arm,seed,val_loss,massive_max,task_accuracy@1x",
        '"a,b",gated,0,1,,1.2346e-05',
        '"a,b",none,0,,1.2346e+06,',
        '"a,b",none,1,2.1235,18.359,',
    ]


def test_the_seeds_of_a_confirmation_have_a_file_of_their_own_once_they_are_run():
    found = [*run(0, val_loss=2.0), *run(64, val_loss=3.0)]
    files = seeds_files(found, DECLARED, kept=[64, 65])
    assert [text.splitlines()[1] for text in files.values()] == ['"a,b",none,0,2', '"a,b",none,64,3']
    planned = [*run(0, val_loss=2.0), *run(64, status="planned", val_loss=float("nan"))]
    assert list(seeds_files(planned, DECLARED, kept=[64])) == ["seeds.csv"]


def test_the_report_of_a_folder_writes_it_and_names_it(tmp_path):
    folder = make_study(tmp_path / "quickstart", endings=COMPLETE)
    analysis = lab.analyse(folder)
    page = lab.report(folder, analysis)
    with (folder.path / "seeds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    done = {(o.cell, o.arm, str(o.seed)): o.value for o in analysis.outcomes if o.metric == "val_loss"}
    assert {(r["cell"], r["arm"], r["seed"]) for r in rows} == set(done) and len(rows) == len(done) == 24
    assert all(abs(float(r["val_loss"]) / done[r["cell"], r["arm"], r["seed"]] - 1) < 5e-5 for r in rows)
    assert "curves.csv, seeds.csv" in page.read_text(encoding="utf-8")
