"""Study: what words on the command line change in it, and what a study file may get wrong."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gatelab.config import BigramBackcopy, ConfigError, Execution, ModelConfig, Run, SinkLogit, Text, TrainConfig
from gatelab.study.study import Arm, Study, built_in, label_of, load_study

TOY = Run(
    model=ModelConfig(d_model=16, n_layers=1, n_heads=2),
    data=BigramBackcopy(vocab_size=16),
    train=TrainConfig(tokens=1000, batch_size=2, seq_len=8),
)
NONE = Arm("none", {"model.gate": "none"}, "no gate")
HEADWISE = Arm("sdpa-headwise", {"model.gate": "sdpa-headwise"}, "headwise gate")
SINK = Arm("sink-logit", {"model.softmax": "sink-logit"}, "learned sink logit", control=True)
STUDY = Study(
    name="fake",
    question="Does it?",
    cells={"toy": TOY, "text": TOY.model_copy(update={"data": Text()})},
    arms=(NONE, HEADWISE, SINK),
    about={"toy": "A toy.", "text": "Words."},
)


def problems(**fields: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        replace(STUDY, **fields)
    return caught.value.problems


def refusals(assignments: dict[str, list]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        STUDY.changed(assignments)
    return caught.value.problems


def test_no_words_change_nothing():
    assert STUDY.changed({}) == STUDY


def test_seed_replaces_the_seeds():
    assert STUDY.seed_values == (0, 1, 2)
    assert STUDY.changed({"seed": [4, 2]}).seed_values == (4, 2)


def test_execution_words_change_the_execution_alone():
    changed = STUDY.changed({"execution.slots": [2], "execution.device": ["cpu"]})
    assert changed == replace(STUDY, execution=Execution(slots=2, device="cpu"))
    assert refusals({"execution.slots": [1, 2]}) == [
        "execution.slots: takes one value; it does not change results, so it is no axis"
    ]


def test_a_key_that_arms_set_replaces_the_arms_after_the_baseline():
    changed = STUDY.changed({"model.gate": ["none", "sdpa-headwise", "value-headwise"]})
    assert changed.arms == (NONE, HEADWISE, Arm("value-headwise", {"model.gate": "value-headwise"}, "value-headwise"))
    assert changed.cells == STUDY.cells


def test_keys_that_different_arms_set_give_arms_side_by_side():
    changed = STUDY.changed({"model.gate": ["sdpa-headwise"], "model.softmax": ["softmax", "sink-logit"]})
    assert changed.arms == (NONE, HEADWISE, SINK)


def test_an_arm_that_equals_the_baseline_is_the_baseline():
    assert [a.name for a in STUDY.changed({"model.gate": [None, "value-headwise"]}).arms] == ["none", "value-headwise"]


def test_one_value_changes_the_cells_that_have_the_key():
    changed = STUDY.changed({"data.paths": ["a.txt"], "optim.lr": [0.5]})
    assert changed.cells["text"].data == Text(paths="a.txt") and changed.cells["toy"].data == TOY.data
    assert {run.optim.lr for run in changed.cells.values()} == {0.5}
    assert changed.about == STUDY.about


def test_several_values_make_cells():
    changed = STUDY.changed({"optim.lr": [0.1, 0.2], "data.document_mask": [True, False]})
    assert list(changed.cells) == [
        "toy, optim.lr=0.1",
        "toy, optim.lr=0.2",
        "text, optim.lr=0.1, data.document_mask=True",
        "text, optim.lr=0.1, data.document_mask=False",
        "text, optim.lr=0.2, data.document_mask=True",
        "text, optim.lr=0.2, data.document_mask=False",
    ]
    assert changed.cells["text, optim.lr=0.2, data.document_mask=False"].optim.lr == 0.2
    assert changed.about["text, optim.lr=0.2, data.document_mask=False"] == "Words."


def test_a_cell_keeps_its_own_words_where_another_name_begins_alike():
    study = replace(STUDY, cells={"toy": TOY, "toy2": STUDY.cells["text"]}, about={"toy": "A toy."})
    assert study.changed({"optim.lr": [0.1]}).about == {"toy": "A toy."}


def test_words_are_applied_together():
    """Each alone would be refused: 16 channels are not 3 heads, and 7000 tokens are not one step of 8000."""
    for pairs in ({"model.n_heads": [3], "model.d_model": [36]}, {"train.batch_size": [1000], "train.tokens": [9000]}):
        forwards, backwards = STUDY.changed(pairs), STUDY.changed(dict(reversed(pairs.items())))
        assert forwards.cells == backwards.cells != STUDY.cells


def test_a_kind_is_chosen_before_what_it_has():
    study = replace(STUDY, cells={"toy": TOY}, arms=(NONE, HEADWISE), about={})
    changed = study.changed({"data.paths": ["a.txt"], "model.softmax.init": [2.0], "data": ["text"],
                             "model.softmax.kind": ["sink-logit"]})  # fmt: skip
    assert changed.cells["toy"].data == Text(paths="a.txt")
    assert changed.cells["toy"].model.softmax == SinkLogit(init=2.0)


def test_all_mistakes_are_listed_at_once():
    found = refusals(
        {"optim.lrr": [1], "optim.lr": ["fast"], "seed": [-1], "execution.slot": [1], "model.gate": ["spda-headwise"]}
    )
    assert [p.partition(":")[0].partition("=")[0] for p in found] == [
        "optim.lr", "optim.lrr", "seed", "execution.slot", "model.gate",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "assignments, says",
    [
        ({"optim.lr": [0.1, 0.1]}, "optim.lr=0.1: is there twice"),
        ({"seed": [1, 1]}, "seeds: 1 is there twice"),
        ({"data.vocab_size": [4]}, "data.vocab_size=4"),
        ({"optim.lr": [0.1] * 200, "optim.eps": [0.1] * 200}, "80000 cells"),
        ({"execution": [3]}, "execution: no such key"),
        ({"model.gate": ["value-headwise", "value-headwise"]}, "arms: 'value-headwise' is there twice"),
    ],
)
def test_words_that_make_no_study_are_refused(assignments: dict, says: str):
    found = refusals(assignments)
    assert found[0].startswith(says), found


def test_a_key_of_a_kind_that_no_cell_has_names_those_that_are_allowed():
    study = replace(STUDY, cells={"toy": TOY}, about={})
    with pytest.raises(ConfigError, match=r"^data.paths: no such key; allowed here: bos, kind, n_triggers"):
        study.changed({"data.paths": ["x"]})


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"name": "../up"}, "name='../up'"),
        ({"name": ""}, "name=''"),
        ({"name": 3}, "name=3: expected a word, which names a folder"),
        ({"cells": [TOY]}, "cells=(list): expected Runs by name, as in {'toy': run}"),
        ({"cells": {3: TOY}}, "cells: 3 is no name"),
        ({"cells": {"": TOY}}, "cells: '' is no name"),
        ({"cells": {"a\n": TOY}}, "cells: 'a\\n' is no name"),
        ({"cells": {"a": TOY, "a/b": TOY}, "arms": (NONE, Arm("b/none", HEADWISE.changes))}, "'a/b/none' names two"),
        ({"arms": NONE}, "expected arms in a tuple"),
        ({"arms": (NONE, replace(HEADWISE, name=""))}, "arms: '' is no name"),
        ({"arms": (NONE, replace(HEADWISE, changes="none"))}, "the changes of 'sdpa-headwise' are 'none'; expected"),
        ({"match_unit": "8"}, "match_unit='8': expected 1 or more"),
        ({"only": ["toy"]}, "only=['toy']: expected arms by cell"),
        ({"execution": {}}, "execution={}: expected an Execution"),
        ({"cells": {}}, "at least one cell"),
        ({"arms": ()}, "at least one cell and one arm"),
        ({"cells": {"a": ModelConfig()}, "about": {}}, "'a' is a ModelConfig, not a Run"),
        ({"arms": (NONE, "sdpa-headwise")}, "'sdpa-headwise' is no Arm"),
        ({"arms": (NONE, Arm("same", {}))}, "arm same: is the same run as arm none"),
        ({"arms": (NONE, replace(HEADWISE, name="none"))}, "arms: 'none' is there twice"),
        ({"arms": (NONE, Arm("x", {"model.gat": 1}))}, "did you mean 'model.gate'?"),
        ({"arms": (NONE, Arm("x", {"data.n_triggers": 1}))}, "the same for all arms of a cell"),
        ({"arms": (NONE, Arm("x", {"seed": 1}))}, "the same for all arms of a cell"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": ()}, "seeds=()"),
        ({"seeds": (1, 1)}, "seeds: 1 is there twice"),
        ({"seeds": (-1,)}, "seed=-1"),
        ({"seeds": "10"}, "seeds='10': expected a positive number, or a tuple of seeds"),
        ({"seeds": True}, "seeds=True: expected a positive number, or a tuple of seeds"),
        ({"seeds": 2.5}, "seeds=2.5: expected a positive number, or a tuple of seeds"),
        ({"seeds": ("1", [2])}, "seeds: '1' is no whole number"),
        ({"seeds": (0, True)}, "seeds: True is no whole number"),
        ({"seeds": 10**9}, "a study has at most 20000"),
        ({"match": "model.d_model"}, "expected 'model.d_ff' or None"),
        ({"match_unit": 0}, "match_unit=0"),
        ({"primary": ("val_los",)}, "did you mean 'val_loss'?"),
        ({"primary": "val_loss"}, "primary='val_loss': expected names in a tuple"),
        ({"equivalence": {"val_los": 1.0}}, "did you mean 'val_loss'?"),
        ({"about": {"toi": "x"}}, "about: no cell 'toi'; did you mean 'toy'?"),
    ],
)
def test_a_study_that_cannot_be_is_refused(fields: dict, says: str):
    assert any(says in p for p in problems(**fields)), problems(**fields)


def test_all_problems_of_a_study_are_listed_at_once():
    assert len(problems(seeds=0, match="x", about={"q": ""}, primary=("x",), arms=(NONE, NONE))) == 5


def test_labels_are_words_for_people():
    assert [label_of(a) for a in (NONE, Arm("a", {"model.gate": "none"}), Arm("b", {}))] == ["no gate", "no gate", "b"]


def test_the_built_in_studies_load():
    assert "quickstart" in built_in()
    for name in built_in():
        assert load_study(name).name == name


GOOD = """
from gatelab import Arm, Run, Study
study = Study(name="mine", question="?", cells={"a": Run()}, arms=(Arm("none", {}),))
"""


def test_a_study_file_is_found_by_its_path(tmp_path: Path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("print('hello')" + GOOD)
    assert load_study(str(path)).name == "mine"
    assert capsys.readouterr() == ("", "hello\n")  # stdout is for records


@pytest.mark.parametrize(
    "code, says",
    [
        ("def broken(:\n", "mine.py, line 1: invalid syntax"),
        ("x = 1\n1 / 0\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("import nonesuch_package\n", "mine.py, line 1: ModuleNotFoundError: No module named 'nonesuch_package'"),
        ("import sys\nsys.exit()\n", "mine.py, line 2: calls sys.exit()"),
        ("raise SystemExit(0)\n", "mine.py, line 1: calls sys.exit()"),
        ("study = 3\n", "defines no `study = Study(...)`"),
        ("", "defines no `study = Study(...)`"),
        ("from gatelab import ModelConfig\nModelConfig(n_layer=3)\n", "line 2: ModelConfig: n_layer: no such key"),
        ("def f(): return f()\nf()\n", "RecursionError"),
        (GOOD.replace("Arm(", "Arn("), "line 3: NameError: name 'Arn' is not defined"),
        (GOOD.replace("Run()", "Run"), "'a' is a"),
        ("x = 'a\0b'\n", "null bytes"),
    ],
)
def test_a_study_file_that_fails_is_answered_with_its_line(tmp_path: Path, code: str, says: str):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(ConfigError) as caught:
        load_study(str(path))
    (problem,) = caught.value.problems
    assert str(path) in problem and says in problem


def test_a_study_file_imports_the_modules_beside_it(tmp_path: Path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "beside_it.py").write_text(f"name = {folder!r}")
        (tmp_path / folder / "mine.py").write_text(
            "import beside_it\n" + GOOD.replace('name="mine"', "name=beside_it.name")
        )
    monkeypatch.chdir(tmp_path)
    path = [*sys.path]
    assert [load_study(name).name for name in ("a/mine.py", str(tmp_path / "b/mine.py"))] == ["a", "b"]
    (tmp_path / "a" / "mine.py").write_text("import beside_it\nimport nowhere_at_all")
    with pytest.raises(ConfigError, match="line 2: ModuleNotFoundError: No module named 'nowhere_at_all'"):
        load_study("a/mine.py")
    assert sys.path == path and "beside_it" not in sys.modules


def test_what_a_study_file_loads_from_an_environment_beside_it_stays_loaded(tmp_path: Path, monkeypatch):
    packages = tmp_path / ".venv" / "lib" / "site-packages"
    for folder, text in ((packages / "once_only", ""), (tmp_path / "own_parts", "")):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(text)
        (folder / "inner.py").write_text(text)
    (tmp_path / "mine.py").write_text("import once_only.inner\nimport own_parts.inner\n" + GOOD)
    monkeypatch.syspath_prepend(packages)
    load_study(str(tmp_path / "mine.py"))
    assert {"once_only", "once_only.inner"} <= {*sys.modules}
    assert not {"own_parts", "own_parts.inner"} & {*sys.modules}
    for name in ("once_only", "once_only.inner"):
        monkeypatch.delitem(sys.modules, name)


def test_a_study_file_in_another_encoding_is_refused(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_bytes(b'x = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"mine\.py, line 1: .*utf-8"):
        load_study(str(path))


@pytest.mark.parametrize(
    "name, says",
    [
        ("quikstart", "did you mean 'quickstart'?"),
        ("", "quickstart, sinkless-seeds, sinks-on-text"),
        ("/", "/: holds no study (no study.json)"),
        ("study.txt", "or the path of a Python file"),
        ("mime.py", "no such file; did you mean"),
        ("none/mine.py", "no such file"),
        ("folder.py", "folder.py: holds no study (no study.json)"),
    ],
)
def test_a_study_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path, monkeypatch, name: str, says: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_study(name)
    (problem,) = caught.value.problems
    assert says in problem


@pytest.mark.parametrize("follows", [["toy"], {"toy": 3}, {"toy": ("toy", "none", "0")}])
def test_follows_that_are_no_cells_are_refused_in_one_sentence(follows):
    (problem,) = problems(follows=follows)
    assert "expected cells, as in {'later': 'sooner'}" in problem
