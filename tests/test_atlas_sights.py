"""Cards of the atlas: figures of the study's own rows, else of another study's runs that are the same but for seeds and looks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import toy

from gatelab import lab
from gatelab.analysis.atlas import Atlas, taken_from
from gatelab.analysis.confirmed import Anomaly, Held
from gatelab.analysis.registration import Claim, Verdict
from gatelab.analysis.sights import setting
from gatelab.config import canonical, override
from gatelab.lab.atlas import read_atlas
from gatelab.lab.sources import sources_in
from gatelab.record import Row
from gatelab.report.atlas_book import book_of
from gatelab.report.atlas_sights import scale, seen, sights_of
from gatelab.report.document import Charts
from gatelab.store import Appender, StudyFolder, write_json
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

TOY = toy(tokens=64)
GATED = {"model.gate": "paper/g1-headwise"}
CLAIM = Claim("sink-stays", "toy", "gated", "first_token_mass", 0, 0.01, 0.01)
ANOMALY = Anomaly("toy", "gated", [Held(Verdict(CLAIM, 5, 0.01, 0.01, "confirmed"), None, None)], [], {})


def study(
    out: Path, name: str, *, cell="toy", gate="gated", seeds=(0, 1), looks=(4,), changes=None, is_rich=False
) -> StudyFolder:
    """A folder with the loss and the first-token mass by head at its looks; `is_rich`: with gate histograms at the last."""
    base = override(TOY, {"probe.times": max(1, len(looks) - 1), **(changes or {})})
    arms = (Arm("none", {}), Arm(gate, GATED), Arm("other", {"model.gate": "value-headwise"}))
    made = Study(
        name, "What?", {cell: base}, arms, seeds=seeds, primary=("val_loss",), only={cell: (gate,)} if is_rich else {}
    )
    folder = lab.save_plan(make_plan(made), out)
    for entry, run in folder.planned():
        rows = []
        for step in looks:
            at = (run.fingerprint, step)
            value = 3 + entry["seed"] / 10 - step / 10
            rows.append(Row(*at, "eval", "val_loss", value, "nats"))
            rows.append(Row(*at, "sinks", "first_token_mass", 0.4, "share"))
            rows += [
                Row(*at, "sinks", "first_token_mass", 0.3 + head / 5, "share", layer=0, head=head) for head in (0, 1)
            ]
        if is_rich and entry["arm"] != "none":
            shares = {0: 0.75, 9: 0.25}
            rows += [Row(run.fingerprint, looks[-1], "gate_scores", "gate_histogram", shares.get(b, 0.0), "share", layer=0,
                         site="sdpa", bin=b) for b in range(10)]  # fmt: skip
        appender = Appender(run.rows_path)
        appender.write(rows)
        appender.close()
        write_json(
            run.path / "environment.json",
            {"versions": {"gatelab": "1"}, "git": {"commit": "a" * 40, "modified": False}},
        )
        run.mark_done("done", {"steps": 4})
    return folder


@pytest.fixture
def read(tmp_path: Path) -> Callable[[], Atlas]:
    return lambda: Atlas(*read_atlas(sources_in([tmp_path]), tmp_path / "atlas.html", lambda _: None))


def drawn(atlas: Atlas, letter: int = 0) -> tuple[str, list[str]]:
    """The card's part, and what its charts show in words."""
    charts = Charts()
    s = atlas.sheets[letter]
    html = sights_of(atlas, s, ANOMALY, book_of(s, charts), scale(atlas))
    return str(html), [spec["spec"]["description"] for spec in charts.placed] if charts.placed else []


def test_a_setting_is_a_run_without_its_seed_and_looks():
    def of(**changes):
        return setting(canonical(override(TOY, changes)))

    assert of() == of(seed=7) == of(**{"probe.times": 9}) is not None
    assert (
        len({of(), of(**{"optim.lr": 0.5}), of(**GATED), of(**{"model.n_layers": 2}), of(**{"train.tokens": 128})}) == 5
    )
    assert of(init_from="0" * 12) is None and setting({"model": {"n_layers": "many"}}) is None
    older = canonical(TOY)
    older["probe"].pop("every")
    older["optim"].pop("qk_clip")
    assert setting(older) == of(), "what it does not state is as it was then"


def test_what_its_own_rows_lack_is_of_the_runs_of_a_companion(tmp_path, read):
    study(tmp_path / "a", "found", seeds=(0, 1, 2))
    study(
        tmp_path / "b", "companion", cell="called otherwise", gate="a-gate", seeds=(7, 8), looks=(0, 2, 4), is_rich=True
    )
    study(tmp_path / "c", "another", seeds=(7, 8), looks=(0, 2, 4), changes={"optim.lr": 0.1}, is_rich=True)
    atlas = read()
    there = seen(atlas, atlas.sheets[0], ANOMALY)
    assert [(x.sheet.name, x.cell, sorted(x.sides)) for x in there] == [
        ("found", "toy", ["gated", "none"]), ("companion", "called otherwise", ["gated", "none"]),
    ]  # fmt: skip
    html, charts = drawn(atlas)
    assert html.count("B companion") == 2 and "runs of the same configuration, seeds 7, 8." in html
    assert html.count("Of this study's finished runs, seeds 0, 1, 2.") == 1 and "C another" not in html
    assert "No study here has" not in html
    assert any(d.startswith("held-out loss over training in toy") for d in charts)
    assert any(d.startswith("Gate scores of gated in toy by layer") for d in charts)
    assert sum(d.startswith("First-token mass by layer and head") and "median of 3 seeds" in d for d in charts) == 2


def test_where_no_study_has_them_it_is_said(tmp_path, read):
    study(tmp_path / "a", "found")
    html, charts = drawn(read())
    assert "No study here has a curve over training or a histogram of gates of these settings." in html
    assert len(charts) == 2, "the maps are its own"


def test_of_two_companions_the_one_with_more_looks_is_shown(tmp_path, read):
    study(tmp_path / "a", "found", seeds=(0, 1, 2))
    study(tmp_path / "b", "few", seeds=(7,), looks=(0, 4), is_rich=True)
    study(tmp_path / "c", "many", seeds=(8,), looks=(0, 1, 2, 3, 4), is_rich=True)
    html, _ = drawn(read())
    assert "C many" in html and "B few" not in html


def test_a_companion_counts_for_nothing_a_second_time(tmp_path, read):
    study(tmp_path / "a", "found", seeds=(0, 1, 2, 3))
    study(tmp_path / "b", "companion", seeds=(7, 8, 9), looks=(0, 4), is_rich=True)
    atlas = read()
    assert taken_from(atlas.sheets) == {"B": "A"}
    assert any("shown, and not counted a second time" in flag for flag in atlas.sheets[1].flags)
    alone = Atlas(atlas.sheets[:1], [])
    assert atlas.answers == alone.answers
    more = study(tmp_path / "c", "more-seeds", seeds=tuple(range(20, 30)), is_rich=True)
    assert more and set(taken_from(read().sheets)) == {"B"}, "more seeds say more"
