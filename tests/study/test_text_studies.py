"""Studies of texts: attention stays within a document, cells of different texts are never fed one, and each arm trains so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gatelab.analysis.atlas import place
from gatelab.analysis.planned import otherwise, still_open
from gatelab.cli import _status
from gatelab.config import ConfigError, Execution, Text, canonical, fingerprint, override, parse_assignments
from gatelab.data import open_source
from gatelab.study.plan import make_plan
from gatelab.study.study import built_in, load_study
from gatelab.train.group import Group
from gatelab.train.loop import train
from gatelab.train.stack import why_not

# Studies whose texts are read across documents, and why.
ACROSS = {
    "quickstart": "the first study, of files of Python in windows of 128 tokens",
    "gated-pair": "the stored weights that tests look at are of such runs",
    "paper-15a2b": "the paper does not say that it masks",
    "paper-48-layers": "the paper does not say that it masks",
    "paper-long-context": "the paper does not say that it masks",
}
OURS = [
    name for name in built_in()
    if name not in ACROSS and any(isinstance(run.data, Text) for run in load_study(name).cells.values())
]  # fmt: skip
SMALL = {
    "model.d_model": 16, "model.n_layers": 1, "model.n_heads": 1, "model.d_ff": 24, "data.val_paths": "",
    "train.tokens": 2 * 4 * 32, "train.batch_size": 4, "train.seq_len": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    """Of about as many tokens as a sequence, so that most hold the end of one."""
    folder, words = tmp_path_factory.mktemp("documents"), np.random.default_rng(0)
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"{i} says {' '.join(map(str, words.integers(0, 99, 9)))}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", OURS)
def test_every_study_of_ours_keeps_documents_apart(name):
    assert all(run.data.document_mask for run in load_study(name).cells.values() if isinstance(run.data, Text))


def test_they_are_these_and_what_does_not_is_named():
    assert {"sinks-on-text", "gates-on-text", "text-rates", "text-start", "text-trend", "text-longer-context"} <= {
        *OURS
    }
    assert ACROSS.keys() <= built_in().keys()


def test_runs_that_read_across_documents_are_other_runs_and_lie_elsewhere(documents):
    apart = override(load_study("gates-on-text").cells["text"], {"data.paths": str(documents), "data.val_paths": ""})
    across = override(apart, {"data.document_mask": False})
    digest = open_source(apart.data).digest
    assert digest == open_source(across.data).digest and fingerprint(apart, digest) != fingerprint(across, digest)
    assert "attention stays within a document" in open_source(apart.data).description
    assert "document;" not in open_source(across.data).description
    assert place({"data": canonical(apart.data)}, 1) != place({"data": canonical(across.data)}, 1)


def test_stored_rows_of_the_same_cell_read_across_documents_leave_it_open(tmp_path):
    study = load_study("gates-on-text")
    base = canonical(study.cells["text"])
    before = {
        "name": study.name,
        "cells": [{"name": "text", "base": base | {"data": base["data"] | {"document_mask": False}}}],
    }
    now = {
        "name": study.name,
        "cells": [{"name": "text", "base": base | {"data": base["data"] | {"paths": ["mine.bin"]}}}],
    }
    assert (otherwise(before), otherwise(now)) == (frozenset({"text"}), frozenset())
    runs = {("text", arm.name, 0): 4000 for arm in study.arms}
    (found,) = [o for o in still_open(tmp_path, {study.name: {}}, {study.name: runs}) if o.study == study.name]
    assert (found.n_open, found.note) == (7, "made on data that were read otherwise: 7")
    assert study.name not in {o.study for o in still_open(tmp_path, {study.name: runs}, {study.name: runs})}


def test_words_for_a_text_are_on_its_page_and_not_in_a_runs_name(documents):
    run = override(load_study("sinks-on-text").cells["text"], {"data.paths": str(documents), "data.val_paths": ""})
    named = override(run, {"data.about": "old English prose"})
    assert fingerprint(run, "x") == fingerprint(named, "x")
    assert open_source(named.data).description.startswith("old English prose: ")
    cells = load_study("text-rates").cells
    said = {name.split()[0]: run.data.about for name, run in cells.items()}
    assert said == {"prose": "old English prose", "code": "Python"}


def test_one_text_is_not_given_to_cells_of_prose_and_of_code():
    study = load_study("text-rates")
    with pytest.raises(ConfigError) as caught:
        study.changed(parse_assignments(["data.paths=prose.bin", "data.val_paths=val.bin"]))
    first, second = caught.value.problems
    assert first.startswith(
        "data.paths=prose.bin: cells of this study are of different texts (train.bin of prose lr0.0003 and 5 more; "
    )
    assert "as in 'cell=prose*'" in first and second.startswith("data.val_paths=val.bin: ")
    for part, n in (("prose*", 6), ("code*", 3)):
        made = study.changed(parse_assignments([f"cell={part}", "data.paths=some.bin", "data.val_paths=val.bin"]))
        assert len(made.cells) == n and {run.data.paths for run in made.cells.values()} == {("some.bin",)}
    assert len(load_study("gates-on-text").changed(parse_assignments(["data.paths=[a.bin,b.bin]"])).cells) == 2


def test_the_command_line_says_so_without_a_traceback(capsys):
    assert _status(["plan", "text-rates", "data.paths=prose.bin"]) == 2
    said = capsys.readouterr().err
    assert "choose those that this one is of" in said and len(said.splitlines()) == 1


def arms_of(name: str) -> list[str]:
    return [arm.name for arm in load_study(name).arms]


@pytest.mark.parametrize("arm", arms_of("gates-on-text"))
def test_each_arm_trains_with_documents_apart_alone_and_stacked(arm, documents):
    losses = {}
    for is_masked in (True, False):
        change = SMALL | {"data.paths": str(documents), "data.document_mask": is_masked}
        study = load_study("gates-on-text")
        study = replace(
            study, cells={n: override(run, change) for n, run in study.cells.items()}, seeds=2, match_unit=1
        )
        runs = [p.run for p in make_plan(study).runs if p.arm == arm]
        group = Group(runs, Execution(device="cpu"))
        assert why_not(group) is None
        losses[is_masked] = np.array([step.loss for step in train(group)])
        alone = np.array([step.loss for step in train(Group(runs[:1], Execution(device="cpu")))])
        np.testing.assert_allclose(losses[is_masked][:, :1], alone, rtol=1e-4)
    assert np.isfinite(losses[True]).all() and not np.allclose(losses[True], losses[False], rtol=1e-5)
