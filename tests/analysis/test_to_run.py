"""The commands that cards print: a cell with its words, seeds, arms together, and what cannot be made of what is there."""

from dataclasses import replace

import pytest
from simulated import evidence
from test_causes import MODELS, RUNS, card, ledger

from gatelab.analysis.causes import Card, Decision, cards
from gatelab.analysis.hypotheses import HYPOTHESES
from gatelab.analysis.say_causes import explained
from gatelab.analysis.to_run import Recipe, recipe_of, run, seeds_more, span

STUDY = {
    "name": "tiny",
    "asked": [
        "my dir/tiny.py",
        "optim.lr=[0.001,0.01]",
        "train.tokens=64",
        "seed=0..4",
        "cell=x*",
        "execution.slots=2",
    ],
    "arms": [{"name": "none", "changes": {"model.gate": "none"}}],
    "cells": [{"name": "x, optim.lr=0.01"}, {"name": "long"}],
    "plan": [
        {"cell": "x, optim.lr=0.01", "fingerprint": "a", "init_from": None},
        {"cell": "long", "fingerprint": "b", "init_from": "a"},
    ],
}


def two_cells(**changes):
    """The ledger of c0 with another cell beside it."""
    study = evidence({"val_loss": {c: ([3.0, 3.1, 3.2], [2.9, 3.01, 3.1]) for c in ("c0", "c1")}})
    return replace(ledger(study=study), **changes)


def test_a_cell_of_a_file_is_made_by_its_own_values_and_the_words_that_it_was_run_with() -> None:
    recipe = recipe_of(STUDY)
    assert recipe.study == "my dir/tiny.py" and recipe.is_sure and not recipe.of_arms
    assert recipe.cells["x, optim.lr=0.01"] == ("x", ["train.tokens=64", "optim.lr=0.01"])
    assert recipe.sources == {"long": "x, optim.lr=0.01"}
    assert recipe.words == ["optim.lr=[0.001,0.01]", "train.tokens=64", "cell=x*"]
    assert recipe_of(STUDY | {"asked": ["tiny.py", "model.gate=[none,value-headwise]"]}).of_arms == {"model.gate"}


@pytest.mark.parametrize(
    ("name", "known", "sure"), [("quickstart", "quickstart", False), ("tiny", "", False)], ids=["built-in", "file"]
)
def test_of_an_older_folder_a_built_in_study_alone_is_known(name, known, sure) -> None:
    recipe = recipe_of({k: v for k, v in STUDY.items() if k != "asked"} | {"name": name})
    assert (recipe.study, recipe.is_sure) == (known, sure)


def test_a_cell_is_run_with_those_that_it_goes_on_from() -> None:
    there = two_cells(recipe=Recipe("t.py", {"c1": ("c1", ["a.b=2"])}, {"c1": "c0"}))
    assert run(there, ["c1"], "out", seeds=[3]) == "gatelab run t.py 'cell=[c1,c0]' a.b=2 seed=3 --out out"
    assert run(there, ["c1"], "out", words=["a.b=[1,2]"], arms=["none", "gated"], seeds=[0, 2]) == (
        "gatelab run t.py 'cell=[c1,c0]' 'a.b=[1,2]' arm=gated 'seed=[0,2]' --out out"
    )


def test_other_cells_are_asked_of_this_cell_and_these_arms_alone() -> None:
    (word,) = next(
        c for c in cards(two_cells(only=["gated"]), HYPOTHESES, "c0", "gated") if c.hypothesis == "training-length"
    ).decisions[0].to_do  # fmt: skip
    assert word == (
        "gatelab run quickstart cell=c0 'train.tokens=[500,1000,2000]' arm=gated seed=0..2 --out runs/x-tokens"
        " && gatelab find runs/x-tokens --explain 'c0, train.tokens=1000'"
    )


def test_every_axis_gets_a_folder_of_its_own_and_no_two_plans_meet_in_one() -> None:
    words = {w for c in cards(two_cells(), HYPOTHESES, "c0", "gated") for d in c.decisions for w in d.to_do}
    plans = [w.partition(" && gatelab find ")[0] for w in words if " && gatelab find " in w]
    axes = {out: command for command, _, out in (p.rpartition(" --out ") for p in plans)}
    assert len(axes) == len({*plans}) > 4
    assert "'optim.lr=[0.0005,0.001,0.002]'" in axes["runs/x-lr"]
    assert "'optim.lr=[0.000333,0.001,0.003]'" in axes["runs/x-best-lr"]


def test_more_seeds_grow_a_study_of_one_cell_and_are_new_beside_one_of_more() -> None:
    assert seeds_more(ledger(), ["c0"]) == ["gatelab run quickstart seed=0..5 --out runs/x"]
    assert seeds_more(two_cells(), ["c0"]) == [
        "gatelab run quickstart cell=c0 seed=3..8 --out runs/x-seeds && gatelab find runs/x-seeds --explain c0"
    ]


def test_seeds_of_several_cells_do_not_meet_those_of_one_in_a_folder() -> None:
    study = evidence({"val_loss": {c: ([3.0, 3.1, 3.2], [2.9, 3.01, 3.1]) for c in ("c0", "c1", "c2")}})
    there = ledger(study=study)
    outs = {tuple(cells): seeds_more(there, cells)[0].split(" --out ")[1] for cells in (["c0"], ["c0", "c1"])}
    assert outs["c0",] == "runs/x-seeds && gatelab find runs/x-seeds --explain c0"
    assert outs["c0", "c1"] == "runs/x-seeds-of-2-cells && gatelab find runs/x-seeds-of-2-cells --explain c0"


def test_arms_of_all_cards_are_one_command_with_the_baseline_in_a_folder_of_its_own() -> None:
    found = cards(ledger(), HYPOTHESES, "c0", "gated")
    asked = [d for c in found for d in c.decisions if d.arms]
    (word,) = {w for d in asked for w in d.to_do}
    assert len(asked) > 4 and "from gatelab.studies.quickstart import study" in word
    assert word.count("Arm('static'") == word.count("Arm('static-2'") == 1  # two of one name, of two models
    assert " --out runs/x-causes && gatelab find runs/x-causes --explain c0 --edit" in word
    assert "arm=[gated," in word


def test_where_the_file_is_not_known_it_says_so() -> None:
    words = [
        w
        for c in cards(replace(ledger(), study="tiny"), HYPOTHESES, "c0", "gated")
        for d in c.decisions
        for w in d.to_do
    ]
    runs = [w for w in words if "gatelab run" in w]
    assert runs and all(
        "gatelab run FILE.py" in w and "# FILE.py: the file that defines the study 'tiny'" in w for w in runs
    )


def test_runs_without_weights_are_not_edited_but_made_anew() -> None:
    there = replace(ledger(), unstored={"n0", "n1", "n2"})
    found = card("first-token", there).decisions[0]
    assert "edits need weights, which none of the runs that lack these rows have in runs/x" in found.to_do[0]
    assert found.arms == ["none"] and "--out runs/x-causes" in found.to_do[1]
    # The gated runs have theirs, and two of the others are enough.
    assert card("shut-scores", there).decisions[0].to_do == ["gatelab find runs/x --explain c0 --edit"]
    assert card("first-token", replace(there, unstored={"n0"})).decisions[0].to_do == [
        "gatelab find runs/x --explain c0 --edit"
    ]
    assert (
        "which too few of the runs" in card("first-token", replace(there, unstored={"n0", "n1"})).decisions[0].to_do[0]
    )


def test_cards_say_what_is_decided_first_and_every_command_once() -> None:
    runs = {**RUNS, ("c0", "other"): {0: "o0", 1: "o1", 2: "o2"}}
    there = replace(ledger(edits={(f"n{i}", "zero-value@first"): 0.3 + i / 100 for i in range(3)}), runs=runs,
                    models={**MODELS, ("c0", "other"): {"gate": "value-headwise"}})  # fmt: skip
    found = [c for arm in ("gated", "other") for c in cards(there, HYPOTHESES, "c0", arm)]
    lines = list(explained(found))
    text = "\n".join(lines)
    assert lines[:2] == ["\nc0, gated", next(x for x in lines if "refuted    no-op" in x)]
    assert sum(x.startswith("  key-bias: ") for x in lines) == 1 and "not run" not in text.replace("\nnot run, or", "")
    commands = [x.partition("] ")[2].partition("    #")[0] for x in lines if x.startswith("  [")]
    assert len(commands) == len(set(commands)) and text.count("--explain c0 --edit") <= len(commands)
    assert len(lines) < 45 < 150 < len("\n".join(explained(found, all_=True)).splitlines())


def test_the_loss_and_sinks_stand_first_and_parts_of_a_reading_in_a_line() -> None:
    def of(reading: str, verdict: str) -> Card:
        told = Decision("data", "cells", "depends on it", verdict, "+1", reading=reading, estimate=1.0, n=3)
        return Card("c0", "gated", "data-domain", "it depends", verdict, [told], reading=reading)

    told = [("new_places:from 7", "supported"), ("value_drain", "supported"), ("new_places:from 15", "refuted")]
    lines = list(explained([of(*x) for x in (*told, ("val_loss", "undecided"))]))
    assert [x.split()[0] for x in lines[1:]] == ["undecided", "supported", "new_places,"]
    assert lines[-1].endswith("data-domain supported (from 7), refuted (from 15)")


def test_seeds_are_written_as_they_are_read() -> None:
    assert (span([3]), span([0, 1, 2]), span([0, 2])) == ("3", "0..2", "[0,2]")
