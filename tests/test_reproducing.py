"""The commands of a card: read back, they plan the very runs that the study's folder has."""

import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from gatelab import lab
from gatelab.config import ConfigError, canonical, parse_assignments
from gatelab.lab.reproducing import again
from gatelab.study.plan import make_plan
from gatelab.study.study import load_study

COMMAND = "gatelab train --config 'runs/my x/runs/f00/run.json' --out runs/reproduced"


def content(study):
    """What study.json would say of a study, without its plan."""
    return {
        "name": study.name, "baseline": study.baseline.name, "match": study.match, "plan": [],
        "cells": [{"name": n, "base": canonical(r)} for n, r in study.cells.items()],
        "arms": [{"name": a.name, "changes": {k: str(v) for k, v in a.changes.items()}} for a in study.arms],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seeds", "word"), [([7], "seed=7"), ([5, 6, 7], "seed=5..7"), ([5, 9], "seed=[5,9]"), ([9, 5], "seed=[9,5]")]
)
def test_a_built_in_study_is_named_and_its_words_make_the_same_runs(seeds, word):
    study = load_study("backcopy-phases")
    cell, arm = list(study.cells)[1], study.arms[2].name
    run, find = again(content(study), cell, arm, seeds)
    words = shlex.split(run)
    assert (
        words[:3] == ["gatelab", "run", "backcopy-phases"]
        and word in words
        and words[-2:] == ["--out", "runs/reproduced"]
    )
    made = lab.plan(words[2], parse_assignments(words[3:-2]))
    assert {(p.cell, p.arm, p.seed) for p in made.runs} == {
        (cell, a, s) for a in (study.baseline.name, arm) for s in seeds
    }
    assert find == f"gatelab find DIR --explain {shlex.quote(cell)}"


def test_what_the_study_was_changed_by_is_said_again():
    study = load_study("gates-on-tasks").changed(parse_assignments(["train.tokens=1024000", "ask.items=8"]))
    words = shlex.split(again(content(study), "mqar 0.001", "sdpa-headwise", [5])[0])
    assert {"train.tokens=1024000", "ask.items=8"} < {*words}
    made = load_study(words[2]).changed(parse_assignments(words[3:-2]))
    assert made.cells == {"mqar 0.001": study.cells["mqar 0.001"]}


def test_a_study_of_another_file_has_the_commands_of_its_runs(tmp_path):
    study = load_study("backcopy-phases")
    study = SimpleNamespace(**{**vars(study), "name": "mine", "baseline": study.baseline})
    entry = {
        "cell": "a b",
        "fingerprint": "f00",
        "command": COMMAND,
    }
    told = content(study) | {
        "plan": [{**entry, "arm": a, "seed": s} for a in ("none", "headwise-half") for s in (0, 5)]
    }
    told["cells"] = [{"name": "a b"}]
    *runs, find = again(told, "a b", "headwise-half", [5])
    assert runs == [f"{COMMAND}-f00"] * 2
    assert find == "gatelab find 'runs/my x' --explain 'a b'"


def test_a_changed_arm_or_one_that_is_gone_is_not_named_as_the_built_in_one():
    told = content(load_study("backcopy-phases"))
    cell = told["cells"][0]["name"]
    told["arms"][1]["changes"] = {"model.gate": "value-headwise"}
    assert again(told, cell, told["arms"][1]["name"], [5])[:-1] == []
    assert again(told, cell, "nobody", [5])[:-1] == []


def test_arms_are_chosen_by_name_and_the_baseline_stays():
    study = load_study("backcopy-phases")
    chosen = study.changed({"arm": ["headwise*"]})
    assert [a.name for a in chosen.arms] == ["none", "headwise-half", "headwise-open"]
    assert [a.name for a in study.changed({"arm": ["none"]}).arms] == ["none"]
    with pytest.raises(
        ConfigError, match=r"arm=headwise-hlf: no such arm; expected some of none, .*did you mean 'headwise-half'"
    ):
        study.changed({"arm": ["headwise-hlf"]})
    one = study.changed({"arm": ["headwise-half"], "cell": [next(iter(study.cells))], "seed": [3]})
    assert len(make_plan(one).runs) == 2


def test_a_command_is_made_without_torch():
    program = (
        "import sys; from gatelab.config import canonical; from gatelab.study.study import load_study;"
        "from gatelab.lab.reproducing import again; s = load_study('backcopy-phases'); c = next(iter(s.cells));"
        "told = dict(name=s.name, baseline='none', match=s.match, plan=[], cells=[dict(name=c, base=canonical(s.cells[c]))],"
        "arms=[dict(name=a.name, changes={k: str(v) for k, v in a.changes.items()}) for a in s.arms]);"
        "print(again(told, c, 'headwise-half', [5])[0]); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("gatelab run backcopy-phases cell="), done.stderr
