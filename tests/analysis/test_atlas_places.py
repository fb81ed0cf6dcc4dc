"""The atlas' coordinates: what an arm and a place are called, and runs that two studies share."""

from types import SimpleNamespace

import pytest

from gatelab.analysis.atlas import Atlas, Place, Sheet, arm_name, place, shared
from gatelab.analysis.uses import USES

SINK = {"kind": "sink-logit", "init": 0.0}
PLAIN = {"gate": "none", "softmax": {"kind": "softmax"}, "output_map": None}


@pytest.mark.parametrize(
    ("changes", "model", "name"),
    [
        ({"model.gate": "paper/g1-headwise"}, PLAIN | {"gate": "sdpa-headwise"}, "sdpa-headwise"),
        ({"model.gate": "none", "model.softmax": "sink-logit"}, PLAIN | {"softmax": SINK}, "softmax=sink-logit"),
        ({"model.gate": "none", "model.output_map": "rms"}, PLAIN | {"output_map": "rms"}, "output_map=rms"),
        (
            {"model.gate": "sdpa-headwise", "optim.lr": 0.1},
            PLAIN | {"gate": "sdpa-headwise"},
            "sdpa-headwise + optim.lr=0.1",
        ),
        ({"model.gate": "qwen3-next"}, None, "qwen3-next"),  # no run of it has been written
        ({"model.gate": "none"}, PLAIN, "twin"),  # like the baseline
    ],
)
def test_an_arm_is_called_by_what_its_runs_are(changes, model, name):
    assert arm_name(changes, model, PLAIN, "twin") == name


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        ({"arch": "decoder"}, {"kind": "bigram-backcopy"}, ("decoder", "bigram-backcopy")),
        ({"arch": "encoder"}, {"kind": "toy", "bos": False}, ("encoder", "toy without BOS")),
        ({"arch": "decoder", "moe": {"n_experts": 8}}, {"kind": "tasks", "names": ["find"]}, ("decoder, experts", "task find")),
        ({"arch": "decoder"}, {"kind": "text", "paths": ["/there/a.bin", "b.bin"]}, ("decoder", "text (a.bin and 1 more)")),
        ({"arch": "decoder"}, {"kind": "text", "paths": ["a.bin"], "about": "Python"}, ("decoder", "text (Python)")),
        ({"arch": "decoder"}, {"kind": "text", "paths": ["a.bin"], "document_mask": True},
         ("decoder", "text (a.bin, documents apart)")),
        ({}, {}, ("?", "?")),
    ],
)  # fmt: skip
def test_a_place_is_read_from_the_configuration(model, data, expected):
    assert place({"model": model, "data": data}, 7) == Place(*expected, 7)


def test_a_text_is_named_by_itself_then_by_what_its_files_hold():
    def data(names, **of):
        return place({"data": {"kind": "text", "paths": ["/x/a.bin", "b.bin"], **of}}, 7, names).data

    assert data({"a.bin": "old prose", "b.bin": "old prose"}) == "text (old prose)"
    assert (
        data({"a.bin": "old prose"}) == "text (old prose, b.bin)"
        and data({"c.bin": "code"}) == "text (a.bin and 1 more)"
    )
    assert data({"a.bin": "old prose"}, about="new prose") == "text (new prose)"


def test_runs_in_common_are_counted_and_whole_studies_told():
    plans = [("one", "abc"), ("two", "cd"), ("three", "ab"), ("four", "xyz"), ("five", "wxyz")]
    assert shared(plans) == [("two", "one", 1, False), ("three", "one", 2, True), ("five", "four", 3, False)]


def sheet(letter, runs, setting="toy", *, arm="gate", controls=()):
    told = SimpleNamespace(arm=arm, setting=setting, use=USES[0])
    advice = SimpleNamespace(told=[told], against=[], at_best=SimpleNamespace(best={(setting, arm): "cell"}))
    return Sheet(
        letter, f"study {letter}", "?", [0, 1, 2], 3, 3, set(), {arm: arm}, {arm: arm}, set(controls),
        {setting: Place("decoder", "toy", 10)}, {("cell", arm): frozenset(runs)}, advice, 0, [], [],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def told_are_plain(monkeypatch):
    def named(self):
        old = self.advice.told
        return [SimpleNamespace(arm=self.arms[t.arm], setting=f"{self.letter} {t.setting}", use=t.use) for t in old]

    monkeypatch.setattr(Sheet, "told", property(named))


def test_a_comparison_whose_runs_another_study_has_is_counted_once():
    few, many, same, apart = sheet("A", "ab"), sheet("B", "abcd"), sheet("C", "abcd"), sheet("D", "xy")
    assert Atlas([few, many, same, apart], []).repeated == {("A toy", "gate"): "C", ("C toy", "gate"): "B"}


def test_a_comparison_counts_where_the_study_that_has_more_runs_makes_none():
    few, many = sheet("A", "ab"), sheet("B", "abcd")
    many.advice.told.clear()
    assert Atlas([few, many], []).repeated == {}


def test_a_run_in_common_is_not_the_same_comparison():
    assert Atlas([sheet("A", "abc"), sheet("B", "cde")], []).repeated == {}


def test_arms_that_are_only_ever_controls_come_last():
    atlas = Atlas([sheet("A", "a", arm="sink", controls=["sink"]), sheet("B", "b", arm="gate")], [])
    assert atlas.arms == ["gate", "sink"] and atlas.controls == ["sink"]
