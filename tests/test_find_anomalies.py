"""gatelab find on folders with planted rows: anomalies, registration, confirmation, causes, and what is refused."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import toy

from gatelab import lab
from gatelab.analysis.registration import Claim, Registration
from gatelab.cli import _status
from gatelab.config import override
from gatelab.lab.declared import registration_of
from gatelab.record import Row
from gatelab.store import Appender, StoreError, StudyFolder, read_json, write_json
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

TOY = toy()
ARMS = (Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"}))


def study(seeds=5, cells=("toy",), arms=ARMS, **settings):
    bases = {name: override(TOY, {"optim.lr": (i + 1) * 1e-3}) for i, name in enumerate(cells)}
    return Study(name="fake", question="?", cells=bases, arms=arms, seeds=seeds, **settings)


def planned(out: Path, **settings) -> StudyFolder:
    return lab.save_plan(make_plan(study(**settings)), out)


def fill(folder: StudyFolder, effect: Mapping[str, float], *, first=0, sigma=0.1, commit=lambda entry: "a" * 40):
    """The held-out loss of every run from seed `first` on, gates differing by `effect` [cell], and a layer's shut gate."""
    for entry, run in folder.planned():
        if entry["seed"] < first:
            continue
        rng = np.random.default_rng([entry["seed"], *entry["cell"].encode()])
        base, noise = rng.normal(3, 1), rng.normal(0, sigma)
        is_gated = entry["arm"] != "none"
        rows = [
            Row(
                run.fingerprint, 1, "eval", "val_loss", base + is_gated * (effect.get(entry["cell"], 0) + noise), "nats"
            )
        ]
        if is_gated:
            shut = 0.99 if entry["cell"] == "shut" else 0.3
            rows += [
                Row(
                    run.fingerprint, 1, "gate_scores", "gate_below", v, "share", layer=layer, site="sdpa", threshold=0.1
                )
                for layer, v in enumerate((0.1, shut))
            ]
        appender = Appender(run.rows_path)
        appender.write(rows)
        appender.close()
        write_json(run.path / "environment.json", {"git": {"commit": commit(entry), "modified": False}, "versions": {}})
        run.mark_done("done", {"steps": 1})
    return folder


def made_by(commit: str) -> dict:
    return {"git": {"commit": commit * 40, "modified": False}, "versions": {}}


def find(capsys, *words) -> tuple[int, str, str]:
    status = _status(["find", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


CELLS = ("a", "b", "shut", "d")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planned(tmp_path_factory.mktemp("once") / "out", cells=CELLS)
    return fill(folder, {"a": -1.0, "b": -1.0, "d": 1.0, "shut": -1.0}).path


@pytest.fixture
def finished(once: Path, tmp_path: Path) -> StudyFolder:
    """A copy to be changed."""
    return StudyFolder.open(Path(shutil.copytree(once, tmp_path / "out")))


@pytest.fixture(scope="module")
def registered_once(once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = StudyFolder.open(Path(shutil.copytree(once, tmp_path_factory.mktemp("registered") / "out")))
    lab.register(folder)
    return folder.path


@pytest.fixture
def with_claims(registered_once: Path, tmp_path: Path) -> StudyFolder:
    """A copy, with all its claims registered, to be changed."""
    return StudyFolder.open(Path(shutil.copytree(registered_once, tmp_path / "claims")))


def test_find_names_planted_anomalies_with_their_q(finished, capsys):
    status, out, err = find(capsys, finished.path)
    assert status == 0 and not err
    assert "anomalies (3 of " in out
    for rule in ("sign-flip            d:", "worse-than-none      d:", "gate-collapse        shut:"):
        assert rule in out
    assert "5 of 5 runs with gated have a layer whose gate is shut nearly everywhere (q = 0.0" in out
    assert out.index("anomalies (3 of ") < out.index("the held-out loss") < out.index("\nover cells")
    assert "(untested)" not in out and "\nthe other tests" in find(capsys, finished.path, "--all")[1]


def test_find_as_json_gives_effects_then_anomalies(finished, capsys):
    status, out, _ = find(capsys, finished.path, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [r["verdict"] for r in records if "rule" in r] == ["anomaly"] * 3
    _, out, _ = find(capsys, finished.path, "--json", "--all")
    every = [json.loads(line) for line in out.splitlines()]
    assert {"none", "untestable", "anomaly"} >= {r["verdict"] for r in every if "rule" in r} > {"anomaly"}
    assert (
        any("p_between" in r for r in every) and any("factor" in r for r in every) and any("ratio" in r for r in every)
    )


def test_the_effect_by_learning_rate_is_a_dependence(finished):
    (found,) = (d for d in lab.hunt(finished).dependences if d.reading == "val_loss")
    assert found.factor == "optim.lr" and len(found.levels) == 4 and found.against == "seeds"


def test_claims_are_registered_before_their_runs_and_confirmed_after(finished, capsys):
    status, out, _ = find(capsys, finished.path, "--register", "--seeds", "5..7")
    assert status == 0 and out.startswith("the smallest true effect that is seen with 80% power")
    assert "registered: 6 claims, to be confirmed on seeds 5, 6, 7 by Holm at 5%" in out
    same = (
        "note: effect of d, gated: val_loss is the same test on the same seeds as worse-than-none, which is registered"
    )
    assert same in out
    assert f"next: gatelab run {finished.path}    (24 runs: what the claims need, and nothing else)" in out
    status, _, err = find(capsys, finished.path, "--confirm")
    assert status == 1 and "have not ended" in err and "it is read once" in err

    grown = planned(finished.path, cells=CELLS, seeds=8)
    fill(grown, {"a": -1.0, "b": 0.0, "d": 1.0, "shut": -1.0}, first=5)
    status, out, _ = find(capsys, grown.path, "--confirm")
    assert status == 0
    verdicts = {line.split("(")[0].split(" ", 2)[2].strip(): line for line in out.splitlines()}
    assert sum(line.strip().startswith("confirmed") for line in out.splitlines()) >= 4
    assert any(
        line.strip().startswith("not confirmed") and "effect b, gated: val_loss" in line for line in verdicts.values()
    )
    # The screen does not look at what the confirmation keeps to itself.
    assert {s for a in lab.hunt(grown).screened.alarms for s in a.seeds} == set(range(5))
    status, _, err = find(capsys, grown.path, "--register")
    assert status == 1 and "its runs have begun" in err


def registered(folder: StudyFolder, *claims: Claim, seeds=(5, 6, 7)) -> StudyFolder:
    found = Registration(list(claims), list(seeds), [0, 1, 2, 3, 4], 0.05, 0.10, [])
    write_json(folder.path / "confirmation.json", found.as_json())
    return folder


SHUT = Claim("gate-collapse", "shut", "gated", "gate_shut", 0, 0.001, 0.01)
FLIP = Claim("sign-flip", "d", "gated", "val_loss", 0, 0.001, 0.01)


def test_going_on_in_a_folder_adds_the_runs_that_the_claims_need_and_no_others(finished):
    folder = registered(
        planned(finished.path, cells=CELLS, arms=(*ARMS, Arm("late", {"model.gate": "value-headwise"}))), SHUT
    )
    before = folder.study()["plan"]
    assert lab.confirmation(folder, registration_of(folder)) == [("shut", "none"), ("shut", "gated")]
    execution = lab.go_on(folder, {"execution.slots": [3]})
    new = [(e["cell"], e["arm"], e["seed"]) for e in folder.study()["plan"][len(before) :]]
    assert execution.slots == 3 and sorted(new) == sorted(("shut", a, s) for a in ("none", "gated") for s in (5, 6, 7))
    assert folder.study()["seeds"] == list(range(8))
    lab.go_on(folder)
    assert len(folder.study()["plan"]) == len(before) + 6


def test_fresh_seeds_that_are_planned_and_have_not_begun_can_be_registered_anew(finished):
    lab.go_on(registered(finished, SHUT))
    assert lab.register(finished, [5, 6, 7]).seeds == [5, 6, 7]


def test_a_claim_about_several_cells_needs_them_all(finished, capsys):
    registered(finished, FLIP)
    pairs = [(c, a) for c in ("d", "a", "b", "shut") for a in ("none", "gated")]
    assert lab.confirmation(finished, registration_of(finished)) == pairs
    lab.go_on(finished)
    fill(finished, {"d": 1.0} | dict.fromkeys(("a", "b", "shut"), -1.0), first=5)
    status, out, _ = find(capsys, finished.path, "--confirm")
    assert status == 0 and out.strip().startswith("confirmed") and "3 fresh seeds" in out


def test_a_confirmation_may_be_the_work_of_another_version_of_the_code(finished, capsys):
    lab.go_on(registered(finished, SHUT, FLIP))
    fill(finished, {"d": 1.0} | dict.fromkeys(("a", "b", "shut"), -1.0), first=5, commit=lambda entry: "b" * 40)
    assert not any("versions of the code" in note for note in lab.hunt(finished).notes)
    assert {v.verdict for v in lab.confirm(finished)} == {"confirmed"}
    write_json(finished.find("d/none/6").path / "environment.json", made_by("c"))
    _, flip = lab.confirm(finished)
    assert flip.n_pairs == 2
    assert f"seed 6 is of two versions of the code (none: {'c' * 12}; gated: {'b' * 12})" in flip.notes
    for seed in (5, 7):
        write_json(finished.find(f"d/none/{seed}").path / "environment.json", made_by("c"))
    shut, flip = lab.confirm(finished)
    assert (shut.verdict, flip.verdict) == ("confirmed", "untestable")
    assert flip.notes[0].startswith("refused: no pair of its runs is of one version (none: cccccccccccc; gated: bbbb")


def test_variances_are_not_shrunk_towards_those_of_another_version(finished):
    lab.go_on(registered(finished, Claim("effect", "a", "gated", "val_loss", -1, 0.001, 0.01)))
    kept = registration_of(finished)
    write_json(
        finished.path / "confirmation.json", replace(kept, priors=[("gated", "val_loss", 40.0, 1e-12)]).as_json()
    )
    fill(finished, dict.fromkeys(CELLS, -0.01), first=5)
    assert lab.confirm(finished)[0].p < 1e-6
    fill(finished, dict.fromkeys(CELLS, -0.01), first=5, commit=lambda entry: "b" * 40)
    assert lab.confirm(finished)[0].p > 1e-3


def test_what_so_few_seeds_cannot_confirm_is_said(finished, capsys):
    status, out, _ = find(capsys, finished.path, "--register", "--seeds", "5,6")
    assert (
        status == 0
        and "note: gate-collapse shut, gated: gate_shut cannot be confirmed on 2 seeds, whatever they show;" in out
    )
    assert "register 3 or more with --seeds" in out


def test_going_on_takes_settings_of_the_execution_alone(finished, capsys):
    for words, says in (
        (["seed=0..3"], "seed: "), (["--out", "x"], "is a study's folder and goes on in it"),
        (["execution.slots=[1,2]"], "takes one value"),
    ):  # fmt: skip
        assert _status(["run", str(finished.path), *words]) == 2
        assert says in capsys.readouterr().err


def test_seeds_that_were_added_are_said_to_be(finished, capsys):
    declared = read_json(finished.path / "screen.json")
    write_json(finished.path / "screen.json", declared | {"seeds": [0, 1, 2]})
    assert "note: seeds 3, 4 were not declared before the runs" in find(capsys, finished.path)[1]
    write_json(finished.path / "screen.json", [])
    assert "screen.json: is not what was declared" in find(capsys, finished.path)[2]


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": "abc"},
        {"seeds": [0]},
        {"seeds": []},
        {"alpha": 2.0},
        {"priors": [[1]]},
        {"priors": 3},
        {"claims": [7]},
        {"x": 1},
    ],
)
def test_a_registration_that_cannot_be_is_refused(with_claims, change, capsys):
    write_json(with_claims.path / "confirmation.json", read_json(with_claims.path / "confirmation.json") | change)
    status, _, err = find(capsys, with_claims.path, "--confirm")
    assert status == 1 and "was it edited?" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"arms": "none"},
        {"metrics": [{"nme": 1}]},
        {"cells": [1]},
        {"baseline": "zzz"},
        {"metrics": [{"name": "a", "unit": 1}]},
    ],
)
def test_a_study_that_was_edited_is_refused(finished, change, capsys):
    write_json(finished.path / "study.json", read_json(finished.path / "study.json") | change)
    for words in ([], ["--explain", "a"], ["--register"], ["--confirm"]):
        status, _, err = find(capsys, finished.path, *words)
        assert (status == 1 and "study.json: its " in err) or "no claims are registered" in err


def test_the_page_shows_the_screen_the_confirmation_and_the_causes(finished, capsys):
    names = [run.fingerprint for entry, run in finished.planned() if (entry["cell"], entry["arm"]) == ("d", "none")]
    rows = [
        Row(
            name, 1, "intervene", "loss_change", 0.001 * (1 + i / 10), "nats", intervention="zero-value@first", dose=1.0
        )
        for i, name in enumerate(names)
    ]
    (finished.path / "causes.jsonl").write_text("".join(json.dumps(r.as_dict()) + "\n" for r in rows), encoding="utf-8")
    lab.go_on(registered(finished, SHUT))
    looked = lab.look_for_anomalies(finished)
    assert not looked.verdicts and {c.hypothesis for c in looked.cards} >= {"no-op"}
    fill(finished, {"shut": -1.0}, first=5)
    assert [v.verdict for v in lab.look_for_anomalies(finished).verdicts] == ["confirmed"]
    analysis = lab.analyse(finished)
    assert {s for f in analysis.findings for s in f.seeds} == set(range(5))  # those of the claims alone are no effects'
    page = lab.report(finished, analysis).read_text(encoding="utf-8")
    assert (
        'id="anomalies"' in page and "Registered, and confirmed on fresh seeds" in page and "Atlas of effects" in page
    )
    assert (
        "3 of 3 runs with gated have a layer whose gate is shut nearly everywhere: 1.00 (0.29 to 1.00) on 3 fresh"
        in page
    )
    assert len((finished.path / "confirmed.csv").read_text(encoding="utf-8").splitlines()) == 2
    assert (finished.path / "anomalies.csv").read_text(encoding="utf-8").startswith("rule,cell,arm,baseline,reading")
    (finished.path / "causes.jsonl").write_text("garbage\n", encoding="utf-8")
    assert not lab.look_for_anomalies(finished).cards  # the page comes without; `find --explain` says which line


def test_a_study_without_a_gate_has_a_page_without_anomalies(tmp_path):
    folder = fill(planned(tmp_path / "out", arms=(Arm("none", {}),)), {})
    assert lab.look_for_anomalies(folder) is None
    assert 'id="anomalies"' not in lab.report(folder, lab.analyse(folder)).read_text(encoding="utf-8")


def test_what_a_study_set_out_to_look_at_is_written_with_its_plan(tmp_path, capsys):
    folder = planned(tmp_path / "out", seeds=2)
    declared = read_json(folder.path / "screen.json")
    assert declared["arms"] == ["none", "gated"] and declared["seeds"] == [0, 1] and "sink-stays" in declared["rules"]
    more = planned(folder.path, seeds=2, arms=(*ARMS, Arm("late", {"model.gate": "value-headwise"})))
    assert read_json(more.path / "screen.json") == declared
    assert "note: not declared before the runs: arm late" in find(capsys, fill(more, {}).path)[1]


def test_seeds_of_the_screen_confirm_nothing(finished, capsys):
    status, _, err = find(capsys, finished.path, "--register", "--seeds", "4,5")
    assert status == 1 and "4 were in the screen" in err
    assert not (finished.path / "confirmation.json").exists()


def test_nothing_is_registered_where_nothing_was_found(tmp_path, capsys):
    folder = fill(planned(tmp_path / "out"), {})
    status, _, err = find(capsys, folder.path, "--register")
    assert status == 1 and "nothing is to be confirmed" in err
    status, _, err = find(capsys, folder.path, "--confirm")
    assert status == 1 and "no claims are registered" in err


def test_an_edited_registration_is_refused(with_claims, capsys):
    write_json(with_claims.path / "confirmation.json", {"claims": []})
    for words in (["--confirm"], []):
        status, _, err = find(capsys, with_claims.path, *words)
        assert "confirmation.json" in err and "was it edited" in err and status == 1


def test_a_claim_that_was_turned_round_after_its_runs_is_refused(with_claims, capsys):
    lab.go_on(with_claims)
    fill(with_claims, {"a": -1.0, "b": -1.0, "d": 1.0, "shut": -1.0}, first=5)
    status, out, err = find(capsys, with_claims.path, "--confirm")
    assert status == 0 and not err and "not confirmed" not in out
    path = with_claims.path / "confirmation.json"
    stored = read_json(path)
    turned = [c | {"direction": -c["direction"]} for c in stored["claims"]]
    write_json(path, stored | {"claims": turned})
    status, out, err = find(capsys, with_claims.path, "--confirm")
    assert status == 1 and not out and len(err.splitlines()) == 1
    assert "confirmation.json: it is not what `--register` wrote, by the digest that it holds; was it edited?" in err
    # An older one has no digest, and is read as it lies.
    write_json(path, {k: v for k, v in stored.items() if k not in ("digest", "equal")})
    status, out, err = find(capsys, with_claims.path, "--confirm")
    assert status == 0 and "not confirmed" not in out
    assert err.startswith("note: the registration is of a version that kept no digest of it")


def test_a_run_without_rows_gave_no_nan(finished, capsys):
    lab.go_on(registered(finished, Claim("effect", "a", "gated", "val_loss", -1, 0.001, 0.01)))
    fill(finished, {"a": -1.0}, first=5)
    finished.find("a/gated/6").rows_path.unlink()
    status, out, _ = find(capsys, finished.path, "--confirm")
    assert status == 0 and "2 fresh seeds; left out: seed 6 of gated has no rows" in out
    finished.find("a/gated/1").rows_path.unlink()
    _, out, _ = find(capsys, finished.path, "--all")
    assert "seed 1 of gated has no rows" in out and "gave nan" not in out


def test_causes_are_read_from_the_rows_of_interventions(finished, capsys):
    names = [run.fingerprint for entry, run in finished.planned() if (entry["cell"], entry["arm"]) == ("a", "none")]
    rows = [
        Row(
            name, 1, "intervene", "loss_change", 0.001 * (1 + i / 10), "nats", intervention="zero-value@first", dose=1.0
        )
        for i, name in enumerate(names)
    ]
    (finished.path / "causes.jsonl").write_text("".join(json.dumps(r.as_dict()) + "\n" for r in rows), encoding="utf-8")
    status, out, _ = find(capsys, finished.path, "--explain", "a")
    assert status == 0
    zeroed = "zero-value@first [loss_change]: changes the loss of the ungated runs by less than 0.01 nats"
    assert f"{zeroed}: supported; +0.0012 nats" in out
    assert "\n  first-token: drop-first, mask-key@first: edits need weights, which none of the runs" in out
    records = [json.loads(line) for line in find(capsys, finished.path, "--explain", "a", "--json")[1].splitlines()]
    assert {r["verdict"] for r in records} <= {"supported", "refuted", "undecided", "not run"}
    (finished.path / "causes.jsonl").write_text("garbage\n", encoding="utf-8")
    status, _, err = find(capsys, finished.path, "--explain", "a")
    assert status == 1 and "causes.jsonl, line 1" in err


def test_causes_are_asked_of_what_a_claim_is_about(finished):
    """The shut gate of cell `shut` is one of all its five runs, and of none elsewhere."""
    of = {"val_loss", "first_token_mass"}
    for folder in (finished, registered(finished, SHUT)):
        found = {(c.hypothesis, c.reading): c for c in lab.explain(folder, "shut")}
        assert {reading for _, reading in found} == {"", "gate_shut", *of}
        (decision,) = found["learning-rate", "gate_shut"].decisions
        assert decision.verdict == "undecided" and decision.reading == "gate_shut > 0.95"
        assert "0 of 5 at 0.001, 0 of 5 at 0.002, 5 of 5 at 0.003, 0 of 5 at 0.004" in decision.numbers
        assert ("sparsity", "val_loss") in found and ("sparsity", "gate_shut") not in found  # one of the loss alone
        assert {c.reading for c in lab.explain(folder, "a")} == {"", *of}


def test_a_cell_that_is_not_there_and_questions_that_exclude_one_another(finished, capsys):
    status, _, err = find(capsys, finished.path, "--explain", "shot")
    assert status == 1 and "no such cell; expected a, b, shut, d; did you mean 'shut'?" in err
    status, _, err = find(capsys, finished.path, "--confirm", "--register")
    assert status == 2 and "--register and --confirm: each is a question of its own" in err
    status, _, err = find(capsys, finished.path, "--seeds", "5..9")
    assert status == 2 and "--seeds 5..9 is for --register" in err


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        ((Arm("none", {}),), "it has no arm besides its baseline that is not a control"),
        ((Arm("none", {}), Arm("slot", {"model.softmax": "sink-logit"}, control=True)), "it has no arm besides"),
        (
            (Arm("gated", {"model.gate": "sdpa-headwise"}), Arm("none", {})),
            "its baseline gated has a gate (sdpa-headwise)",
        ),
    ],
)
def test_a_study_without_a_control_or_a_gate_is_refused_and_its_effects_stand(tmp_path, capsys, arms, says):
    folder = fill(planned(tmp_path / "out", arms=arms), {})
    with pytest.raises(StoreError, match="anomalies are what a gate does against none"):
        lab.hunt(folder)
    status, _, err = find(capsys, folder.path)
    assert status == 0 and says in err


def test_a_pair_with_unequal_tokens_is_refused(tmp_path):
    longer = Arm("longer", {"model.gate": "value-headwise", "train.tokens": 32})
    folder = fill(planned(tmp_path / "out", arms=(*ARMS, longer)), {"toy": 1.0})
    found = lab.hunt(folder)
    assert "toy, longer: refused: seed 0 sees 32 tokens with longer and 16 with none; give both as many" in found.notes
    assert {a.arm for a in found.screened.alarms} == {"gated"} and {c.arm for c in found.claims} == {"gated"}


def test_cells_of_two_versions_stand_alone_and_are_not_pooled(tmp_path):
    folder = planned(tmp_path / "out", cells=("a", "b", "c", "d", "e"))
    fill(folder, dict.fromkeys("abcd", -9.0) | {"e": 9.0}, commit=lambda e: ("b" if e["cell"] == "a" else "a") * 40)
    found = lab.hunt(folder)
    assert "nothing is pooled over cells: the cells were made by 2 versions of the code" in found.notes
    assert not found.pooled and not found.dependences
    assert {a.rule for a in found.screened.anomalies} == {"worse-than-none"}


def test_a_run_that_diverged_is_unstable_and_has_no_loss(tmp_path):
    folder = fill(planned(tmp_path / "out", seeds=6), {})
    for entry, run in folder.planned():
        if entry["arm"] == "gated":
            (run.path / "done.json").unlink()
            run.mark_done("diverged", {"steps": 1})
        else:
            rows = Appender(run.rows_path, run.rows_path.stat().st_size)
            rows.write([Row(run.fingerprint, 1, "train", "loss_spikes", 0.0, "count")])
            rows.close()
    (alarm,) = (a for a in lab.hunt(folder).screened.alarms if a.rule == "instability")
    assert alarm.p == pytest.approx(0.5**6) and "6 diverge or spike with gated alone" in alarm.sentence


def test_a_plan_says_what_its_budget_can_see_by_a_pilot(finished, tmp_path, capsys):
    more = tuple(f"more{i}" for i in range(16))
    status, out, err = plan_with_pilot(capsys, tmp_path, finished, cells=(*CELLS, *more), seeds=7)
    assert status == 0 and not err
    assert "gated, val_loss (nats): a pair spreads " in out and "with 3, 5, 7, 8, 12, 20 seeds:" in out
    assert (
        "note: cells of the study that the pilot lacks, and that are taken to spread as the others do: more0, " in out
    )
    assert "more4, 11 more\n" in out and "in the median of 4 cells (" in out
    assert "whether 40 runs are lost is not known, since no row has their held-out loss at step 0" in out


def test_a_pilot_of_other_cells_or_arms_is_refused_or_named(finished, tmp_path, capsys):
    status, out, err = plan_with_pilot(capsys, tmp_path, finished, cells=("x", "y"))
    assert status == 2 and not out and len(err.splitlines()) == 1
    assert "as a pilot it has no cell of the study's: a, b, shut, d there, x, y here" in err
    status, _, err = plan_with_pilot(capsys, tmp_path, finished, arms=("late",))
    assert status == 2 and "as a pilot it has no gate of the study's: gated there, late here" in err
    status, out, _ = plan_with_pilot(capsys, tmp_path, finished, cells=("a",), arms=("gated", "late"))
    assert status == 0 and "a pair spreads " in out and "in the median of" not in out
    assert "note: gates of the study that the pilot lacks, and that have no line: late" in out
    assert "note: cells of the pilot that the study lacks, and that are left out: b, shut, d" in out


def test_lost_runs_of_a_pilot_are_left_out_of_its_spread(finished, tmp_path, capsys):
    """Every run starts at 20 nats; one of `a` and two of `b` end at 33, which would be a spread of tens of nats."""
    where = {(e["cell"], e["arm"], e["seed"]): run for e, run in finished.planned()}
    for run in where.values():
        change_losses(run, untrained=20.0)
    _, out, _ = plan_with_pilot(capsys, tmp_path, finished, "--json", cells=("a", "b"))
    before = [json.loads(line) for line in out.splitlines()][-1]
    lost = {("a", "gated", 1), ("b", "none", 2), ("b", "gated", 3)}
    for key in lost:
        change_losses(where[key], end=33.0)
    _, out, err = plan_with_pilot(capsys, tmp_path, finished, "--json", cells=("a", "b"))
    after = [json.loads(line) for line in out.splitlines()][-1]
    said = "left out: 3 lost runs, which end with a held-out loss above that of their untrained weights"
    assert f"note: {said} (a: 1 of 10, b: 2 of 10)" in err and after["df"] == 2.5 < before["df"] == 4
    kept = {c: [s for s in range(5) if not {(c, "none", s), (c, "gated", s)} & lost] for c in ("a", "b")}
    sds = [np.std([difference(where, c, s) for s in seeds], ddof=1) for c, seeds in kept.items()]
    assert after["sigma"] == pytest.approx(np.median(sds)) and after["sigma_high"] == pytest.approx(max(sds))
    assert max(sds) < 1
    _, out, _ = find(capsys, finished.path, "--register")
    assert f"note: {said}" in out


def plan_with_pilot(capsys, place: Path, folder: StudyFolder, *words, cells=CELLS, arms=("gated",), seeds=5):
    (place / "fake.py").write_text(
        "from gatelab import Arm, BigramBackcopy, ModelConfig, Run, Study, TrainConfig\n"
        "toy = Run(model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp='relu'), data=BigramBackcopy(vocab_size=16),\n"
        "          train=TrainConfig(tokens=16, batch_size=2, seq_len=8))\n"
        f"study = Study(name='big', question='?', cells=dict.fromkeys({cells}, toy), seeds={seeds}, primary=('val_loss',),\n"
        "              arms=(Arm('none', {}), *(Arm(n, {'model.gate': 'sdpa-headwise' if n == 'gated' else 'value-headwise'})\n"
        f"                                       for n in {arms})))\n",
        encoding="utf-8",
    )
    status = _status(["plan", str(place / "fake.py"), "--pilot", str(folder.path), *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def change_losses(run, *, untrained: float | None = None, end: float | None = None) -> None:
    lines = [json.loads(line) for line in run.rows_path.read_text(encoding="utf-8").splitlines()]
    if untrained is not None:
        lines.insert(0, lines[0] | {"step": 0, "value": untrained})
    for line in lines:
        if end is not None and (line["metric"], line["step"]) == ("val_loss", 1):
            line["value"] = end
    run.rows_path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def difference(where, cell: str, seed: int) -> float:
    """Gated minus ungated at step 1."""
    ends = []
    for arm in ("gated", "none"):
        rows = [json.loads(line) for line in where[cell, arm, seed].rows_path.read_text(encoding="utf-8").splitlines()]
        ends += [r["value"] for r in rows if r["metric"] == "val_loss" and r["step"] == 1]
    return ends[0] - ends[1]


def test_claims_are_chosen_by_rule_cell_and_arm_before_their_runs(finished, capsys):
    status, out, _ = find(capsys, finished.path, "--register", "--rule", "gate-collapse", "sign-flip", "--cell", "sh*")
    assert status == 0 and "registered: 1 claims" in out and "gate-collapse        shut, gated" in out
    assert [c["rule"] for c in read_json(finished.path / "confirmation.json")["claims"]] == ["gate-collapse"]
    for words, says in (
        (["--rule", "sink-stay"], "--rule sink-stay: no claim of it; expected some of effect, "),
        (["--arm", "x*"], "--arm x*: no claim of it; expected some of gated"),
    ):
        status, _, err = find(capsys, finished.path, "--register", *words)
        assert status == 2 and says in err
    for words in (["--cell", "a"], ["--arm", "gated"], ["--explain", "a", "--cell", "a"]):
        assert find(capsys, finished.path, *words)[0] == 2


def test_many_claims_out_of_reach_are_one_note(finished, capsys):
    status, out, _ = find(capsys, finished.path, "--register", "--seeds", "5")
    notes = [line for line in out.splitlines() if "cannot be confirmed on 1 seeds" in line]
    assert status == 0 and len(notes) == len({n.rpartition("register ")[2] for n in notes})


def test_what_was_registered_is_planned_where_no_row_of_the_screen_is(finished):
    lab.register(finished)
    for _, run in finished.planned():
        run.rows_path.unlink()
    lab.go_on(finished)
    fresh = {(e["cell"], e["arm"]) for e, run in finished.planned() if e["seed"] >= 5}
    assert fresh == {(cell, arm) for cell in CELLS for arm in ("none", "gated")}


def test_edits_are_made_run_by_run_and_not_twice(finished, capsys, monkeypatch):
    asked = []

    def intervene(path, words):
        if words[1:] and "drop-first" in words:
            raise ValueError("drop-first: not of this model")
        if words == ["drop-first"]:
            raise ValueError("not of this model")
        asked.extend((path.name, word) for word in words)
        return type("E", (), {"rows": lambda self, name: [loss_change(name, word) for word in words]})()

    monkeypatch.setattr("gatelab.lab.explaining.intervene", intervene)
    for _, run in finished.planned():
        (run.path / "weights.safetensors").touch()
    status, out, err = find(capsys, finished.path, "--explain", "d", "--edit", "--seeds", "0..1")
    assert status == 0 and "4 runs were edited" in err and "drop-first: not of this model" in err
    names = {e["arm"]: [] for e, _ in finished.planned()}
    for e, run in finished.planned():
        if e["cell"] == "d" and e["seed"] < 2:
            names[e["arm"]].append(run.fingerprint)
    assert {n for n, word in asked if word == "gate-mean"} == {*names["gated"]}
    assert {n for n, word in asked if word == "zero-value@first"} == {*names["none"]}
    assert (
        "zero-value@first [loss_change]: changes the loss of the ungated runs by less than 0.01 nats: undecided" in out
    )
    asked.clear()
    assert find(capsys, finished.path, "--explain", "d", "--edit", "--seeds", "0,1")[0] == 0
    assert not asked  # but for those that cannot be made, which are tried again
    status, _, err = find(capsys, finished.path, "--explain", "d", "--edit", "--seeds", "9")
    assert status == 1 and "no finished run of it here to edit" in err
    assert find(capsys, finished.path, "--edit")[0] == 2


def loss_change(name: str, word: str) -> Row:
    return Row(name, 1, "intervene", "loss_change", 0.0, "nats", intervention=word, dose=1.0)


def test_edits_need_scipy_and_say_so(finished, capsys, monkeypatch):
    monkeypatch.setattr("gatelab.lab.explaining.find_spec", lambda name: None)
    status, _, err = find(capsys, finished.path, "--explain", "d", "--edit")
    assert status == 1 and "SciPy" in err and len(err.splitlines()) == 1


def test_a_machine_without_the_analysis_says_where_the_page_is_made(finished, capsys, monkeypatch):
    monkeypatch.setattr("gatelab.cli.study.find_spec", lambda name: None if name == "duckdb" else name)
    assert _status(["run", str(finished.path), "--json"]) == 0
    said = capsys.readouterr()
    assert "no page: this machine has no duckdb; take" in said.err
    assert len(said.out.splitlines()) == 40 and '"page"' not in said.out
