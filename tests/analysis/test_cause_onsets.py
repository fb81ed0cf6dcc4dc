"""What comes first in training: planted courses give the order, or say why they do not."""

from dataclasses import replace

import pytest
from test_causes import card, ledger

from gatelab import lab
from gatelab.analysis.causes import Ledger
from gatelab.analysis.onsets import EVENTS, LOOKS, courses
from gatelab.config import BigramBackcopy, ModelConfig, ProbeConfig, Run, TrainConfig
from gatelab.record import Row
from gatelab.store import Appender, StudyFolder
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

NEVER = 10**6


def course(onset: int, before: float, after: float, looks: int = 21) -> list[tuple[int, float]]:
    """Looks at every fiftieth step, past the bound from `onset` on."""
    return [(50 * i, after if 50 * i >= onset else before) for i in range(looks)]


def seen(sinks: list[int], drains: list[int], shut: list[int] | None = None, looks: int = 21) -> Ledger:
    """A ledger of as many seeds, whose ungated runs have these onsets of sink and drain, and gated ones of sink and gate."""
    runs = {("c0", arm): {s: f"{arm}{s}" for s in range(len(sinks))} for arm in ("none", "gated")}
    found = {}
    for s, (sink, drain) in enumerate(zip(sinks, drains, strict=True)):
        found[f"none{s}"] = {"sink": course(sink, 0.1, 0.6, looks), "drain": course(drain, 0.9, 0.2, looks)}
        found[f"gated{s}"] = {"sink": course(sink, 0.1, 0.6, looks)}
        if shut is not None:
            found[f"gated{s}"]["shut"] = course(shut[s], 0.1, 0.8, looks)
    return replace(ledger(), runs=runs, courses=found)


def decision(name: str, found: Ledger):
    return card(name, found).decisions[0]


def test_an_event_is_past_its_bound_at_two_looks_in_a_row() -> None:
    sink, drain = EVENTS["sink"], EVENTS["drain"]
    assert sink.onset([(0, 0.1), (100, 0.4), (200, 0.1), (300, 0.5), (400, 0.6)]) == 300
    assert sink.onset([(400, 0.6), (300, 0.5), (0, 0.1)]) == 300
    assert sink.onset([(0, 0.1), (100, 0.2), (200, 0.5)]) is None and sink.onset([]) is None
    assert drain.onset([(0, 0.9), (100, 0.29), (200, 0.1)]) == 100 and drain.onset([(0, 0.3), (1, 0.3)]) is None


@pytest.mark.parametrize(
    ("sinks", "drains", "verdict", "p"),
    [
        ([100] * 5, [300] * 5, "supported", 1 / 32),
        ([300] * 6, [100] * 6, "refuted", 1 / 64),
        ([100] * 8, [300] * 7 + [50], "supported", 9 / 256),
        ([100] * 6, [300] * 5 + [50], "undecided", 7 / 64),
        ([100] * 4, [300] * 4, "undecided", 1 / 16),
    ],
)
def test_the_sign_test_over_seeds_by_hand(sinks, drains, verdict, p) -> None:
    found = decision("sink-before-drain", seen(sinks, drains))
    assert found.verdict == verdict and found.numbers.endswith(f"p = {p:.2g}")
    assert found.n == len(sinks)


def test_four_seeds_that_agree_ask_for_more() -> None:
    found = decision("sink-before-drain", seen([100] * 4, [300] * 4))
    assert found.to_do == ["gatelab run quickstart seed=0..7 --out runs/x"]
    assert "median steps 100 and 300" in found.numbers


def test_seeds_that_do_not_tell_an_order_are_counted_apart() -> None:
    sinks = [100] * 5 + [200, 100, NEVER, NEVER]
    drains = [300] * 5 + [200, NEVER, 100, NEVER]
    found = decision("sink-before-drain", seen(sinks, drains))
    assert found.numbers.startswith(
        "the first earlier in 5 of 9 seeds, the other in 0; at one look in 1; the first alone in 1; the other alone in 1; "
        "neither in 1; median steps 100 and 300"
    )
    assert (found.verdict, found.n, found.estimate) == ("supported", 5, 1.0)


def test_an_event_that_never_comes_decides_nothing() -> None:
    found = decision("sink-before-drain", seen([100] * 6, [NEVER] * 6))
    assert found.verdict == "undecided" and "the first alone in 6" in found.numbers and not found.to_do


def test_events_at_one_look_ask_for_more_looks() -> None:
    found = decision("sink-before-drain", seen([100] * 6, [100] * 6))
    assert found.verdict == "undecided" and "probe.times=80 seed=0..5 --out runs/x-looks" in found.to_do[0]


@pytest.mark.parametrize("looks", [2, LOOKS])
def test_too_few_looks_are_missing_and_name_the_command(looks) -> None:
    found = decision("sink-before-drain", seen([100] * 6, [300] * 6, looks=looks))
    assert found.verdict == "not run"
    ask = "gatelab find runs/x-looks --explain c0"
    assert found.to_do == [f"gatelab run quickstart cell=c0 probe.times=20 seed=0..5 --out runs/x-looks && {ask}"]
    assert decision("sink-before-massive", seen([100] * 6, [300] * 6)).verdict == "not run"


def test_of_gated_runs_the_gate_is_held_against_their_own_sink() -> None:
    early = decision("gate-before-sink", seen([400] * 5, [NEVER] * 5, shut=[200] * 5))
    late = decision("gate-before-sink", seen([100] * 5, [NEVER] * 5, shut=[200] * 5))
    assert (early.verdict, late.verdict) == ("supported", "refuted")
    assert early.predicts == "the first comes before the other in the gated runs"


def test_courses_are_of_the_furthest_layer_and_of_looks_alone(tmp_path) -> None:
    run = Run(
        model=ModelConfig(d_model=16, n_layers=2, n_heads=2, mlp="relu"),
        data=BigramBackcopy(vocab_size=16),
        train=TrainConfig(tokens=32, batch_size=2, seq_len=8),
        probe=ProbeConfig(times=2, sequences=1, eval_sequences=1),
    )
    arms = (Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"}))
    study = Study(name="s", question="?", cells={"a": run, "b": run.model_copy(update={"seed": 9})}, arms=arms, seeds=1)
    folder: StudyFolder = lab.save_plan(make_plan(study), tmp_path / "out")
    names = {(e["cell"], e["arm"]): r for e, r in folder.planned()}
    for own in names.values():
        f = own.fingerprint
        rows = [
            Row(f, 1, "sinks", "first_token_mass", 0.1, "share", layer=0),
            Row(f, 1, "sinks", "first_token_mass", 0.7, "share", layer=1),
            Row(f, 1, "sinks", "first_token_mass", 0.9, "share", layer=1, head=0),
            Row(f, 1, "sinks", "first_token_mass", 0.4, "share"),
            Row(f, 1, "train", "first_token_mass", 0.99, "share", layer=1),
            Row(f, 1, "sinks", "value_drain", 0.2, "ratio", layer=0),
            Row(f, 1, "sinks", "value_drain", 0.8, "ratio", layer=1),
            Row(f, 2, "sinks", "first_token_mass", 0.3, "share", layer=0),
            Row(f, 1, "gate_scores", "gate_below", 0.6, "share", layer=0, site="sdpa", threshold=0.1),
            Row(f, 1, "gate_scores", "gate_below", 0.9, "share", layer=0, site="key", threshold=0.1),
        ]
        appender = Appender(own.rows_path)
        appender.write(rows)
        appender.close()
    found = courses(folder, ["a"])
    expected = {"sink": [(1, 0.7), (2, 0.3)], "drain": [(1, 0.2)], "shut": [(1, 0.6)]}
    assert found == {names["a", arm].fingerprint: expected for arm in ("none", "gated")}
