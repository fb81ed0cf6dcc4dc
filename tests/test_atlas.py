"""gatelab report over several studies: what it reads, what it refuses by name, and what the page of all says."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny import toy

from gatelab import lab
from gatelab.cli import _status
from gatelab.config import override
from gatelab.lab.sources import Source, opened, sources_in
from gatelab.record import Row
from gatelab.store import Appender, StoreError, StudyFolder, read_json, write_json
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

TOY = toy()
ARMS = (Arm("none", {}, "no gate"), Arm("gated", {"model.gate": "paper/g1-headwise"}, "a <b>gate</b>"))
LARGER = {"model.d_model": 32}


def study(
    out: Path, name="first", *, seeds=3, arms=ARMS, effect=-0.3, commit="a", changes=None, unfinished=()
) -> StudyFolder:
    """A folder whose gate changes the held-out loss of every seed by `effect`; `unfinished` seeds have no end."""
    base = override(TOY, changes or {})
    folder = lab.save_plan(
        make_plan(Study(name, "What?", {"toy": base}, arms, seeds=seeds, primary=("val_loss",))), out
    )
    for entry, run in folder.planned():
        rng = np.random.default_rng(entry["seed"])
        loss, noise = rng.normal(3, 1), rng.normal(0, 0.01)
        gain = 0 if entry["arm"] == "none" else effect + noise
        rows = Appender(run.rows_path)
        rows.write([Row(run.fingerprint, 1, "eval", "val_loss", loss + gain, "nats")])
        rows.close()
        environment = {"versions": {"gatelab": "1"}, "git": {"commit": commit * 40, "modified": False}}
        write_json(run.path / "environment.json", environment)
        if entry["seed"] not in unfinished:
            run.mark_done("done", {"steps": 1})
    return folder


def archive(folder: Path, to: Path) -> Path:
    with tarfile.open(to, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return to


def report(capsys, *words) -> tuple[int, str, str]:
    status = _status(["report", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out.strip(), said.err


def page_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like docs/results: a study's folder, an archive in a folder with a page and a text beside it, and a stranger."""
    there = tmp_path_factory.mktemp("results")
    study(there / "alpha", "alpha")
    made = study(there.parent / "made" / "beta", "beta", commit="b", changes=LARGER, seeds=1)
    (there / "beta").mkdir()
    archive(made.path, there / "beta" / "folder.tar.gz")
    (there / "beta" / "report.html").write_text("its page", encoding="utf-8")
    (there / "beta.md").write_text("its text", encoding="utf-8")
    (there / "images").mkdir()
    return there


def test_a_folder_of_studies_and_archives_becomes_one_page(results, capsys):
    status, out, err = report(capsys, results)
    assert (status, out) == (0, str(results / "atlas.html"))
    assert err.splitlines() == [f"reading {results / 'alpha'}", f"reading {results / 'beta' / 'folder.tar.gz'}"]
    page = page_of(results / "atlas.html")
    for words in (
        "2 studies with 8 finished runs", ">[B]</a> has fewer than 3 seeds", "sdpa-headwise", " in 1 of 1 settings, ",
        'href="beta/report.html"', 'href="beta.md"', "2 versions of the code", "Never run here: encoder",
        "No anomaly was confirmed",
    ):  # fmt: skip
        assert words in page, words
    assert "1 seed" in page, "the pilot is on the map"
    assert len(page) < 200_000, "no chart library is in a page without charts"
    csv = (results / "atlas.csv").read_text(encoding="utf-8").splitlines()
    assert csv[0].startswith("study,setting,architecture") and any(
        line.startswith("beta,B toy,decoder") for line in csv
    )


def test_folders_of_one_study_are_told_apart_by_their_texts(tmp_path):
    study(tmp_path / "early", "toy")
    study(tmp_path / "late", "toy", changes=LARGER)
    (tmp_path / "late.md").write_text("its text", encoding="utf-8")
    page = page_of(lab.atlas([tmp_path]))
    assert "toy, late" in page and "toy, early" not in page


def test_the_same_studies_make_the_same_bytes_and_leave_no_copy(results, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pages = [page_of(lab.atlas([results], tmp_path / name)) for name in ("one.html", "two.html")]
    assert pages[0].replace("one.csv", "") == pages[1].replace("two.csv", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.csv", "one.html", "two.csv", "two.html"]


def test_words_of_studies_are_text(tmp_path):
    evil = '<script>alert("x")</script>'
    folder = study(tmp_path / "one", "one", arms=(ARMS[0], Arm("gated", {"model.gate": "sdpa-headwise"}, evil)))
    content = read_json(folder.path / "study.json")
    write_json(folder.path / "study.json", content | {"name": evil, "question": evil})
    page = page_of(lab.atlas([tmp_path]))
    assert evil not in page and "&lt;script&gt;alert" in page


def test_several_folders_need_no_parent_and_out_names_the_page(results, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study(Path("more"), "more", effect=0.3, changes={"model.n_layers": 2})
    status, out, _ = report(capsys, results / "alpha", "more", "--out", "all.html")
    assert (status, out) == (0, "all.html")
    page = page_of(Path("all.html"))
    assert [page.index(f"<b>{letter}</b>") for letter in "AB"] and ">alpha<" in page and ">more<" in page
    assert report(capsys, "more", results / "alpha")[1] == "atlas.html"
    # A folder of studies has no page of its own by this name.
    monkeypatch.chdir(tmp_path / "more")
    study(Path("of/one"), "one")
    assert report(capsys, "of", "--out", "of/report.html")[:2] == (0, "of/report.html")


def test_one_study_keeps_its_own_page_and_has_an_atlas_where_it_is_asked_for(tmp_path, capsys):
    study(tmp_path / "one", "one")
    assert report(capsys, tmp_path / "one")[1] == str(tmp_path / "one" / "report.html")
    assert "Which arm for which use" in page_of(tmp_path / "one" / "report.html")
    assert (tmp_path / "one" / "recommendations.csv").is_file()
    assert report(capsys, tmp_path / "one", "--out", tmp_path / "x.html")[1] == str(tmp_path / "x.html")
    own = tmp_path / "one" / "report.html"
    assert report(capsys, tmp_path / "one", "--out", own)[:2] == (0, str(own))
    page = page_of(own)
    study(tmp_path / "two", "two", effect=0.3)
    status, _, err = report(capsys, tmp_path / "one", tmp_path / "two", "--out", own)
    assert status == 2 and f"--out {own}: is the page of its study, not an atlas; name another file" in err
    assert "Which arm for which use" in page and page_of(own) == page


def test_a_pack_and_a_study_are_read_from_within_their_own_folder(tmp_path, capsys, monkeypatch):
    lab.pack(study(tmp_path / "one", "one").path, tmp_path / "one" / "folder.parquet")
    monkeypatch.chdir(tmp_path / "one")
    for words in (["folder.parquet"], [".", "--out", "all.html"]):
        assert report(capsys, *words)[0] == 0
    for name in ("study.json", "runs"):
        (tmp_path / "one" / name).rename(tmp_path / name)
    assert report(capsys, ".")[:2] == (0, "atlas.html")


def test_a_folder_without_a_study_is_refused_by_name(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    status, out, err = report(capsys, tmp_path / "empty")
    assert (status, out) == (1, "") and "holds no study (no study.json), and neither a folder nor an archive" in err
    status, _, err = report(capsys, tmp_path / "nowhere", tmp_path / "empty")
    assert status == 1 and "no such folder or archive" in err
    (tmp_path / "note.txt").write_text("?", encoding="utf-8")
    assert "holds no study" in report(capsys, tmp_path / "note.txt")[2]


def test_a_study_that_is_named_twice_is_refused(results, capsys):
    alpha = results / "alpha"
    for words in ((alpha, alpha), (results, results / "beta"), (alpha, results / "beta" / ".." / "alpha")):
        status, out, err = report(capsys, *words)
        assert (status, out) == (1, "") and "is named twice" in err


def test_an_out_that_cannot_be_written_is_said_before_anything_is_read(results, capsys):
    for out, why in ((results, "is a folder"), (results / "no" / "where.html", "its folder does not exist")):
        status, _, err = report(capsys, results, "--out", out)
        assert status == 2 and why in err and "reading" not in err


def test_an_archive_beside_its_folder_is_the_same_study_and_left_out(tmp_path, capsys):
    folder = study(tmp_path / "in" / "one", "one")
    archive(folder.path, tmp_path / "in" / "a.tar.gz")
    status, _, err = report(capsys, tmp_path / "in")
    assert status == 0 and "is not in the atlas: has the runs of" in err
    assert "1 study with 6 finished runs" in page_of(tmp_path / "in" / "atlas.html")


def test_runs_in_common_are_flagged_and_count_once(tmp_path):
    study(tmp_path / "few", "few", seeds=3)
    study(tmp_path / "many", "many", seeds=5, arms=(*ARMS, Arm("sink", {"model.softmax": "sink-logit"}, control=True)))
    page = page_of(lab.atlas([tmp_path]))
    assert "6 of its runs are those of A few" in page
    assert "sdpa-headwise in A toy: the runs are among those of B, which counts" in page
    assert " in 1 of 1 settings, " in page and "A (in B)" in page


def test_a_study_without_a_control_and_an_unfinished_one_are_flagged(tmp_path):
    gated = (Arm("g", {"model.gate": "sdpa-headwise"}), Arm("h", {"model.gate": "value-headwise"}))
    study(tmp_path / "gated", "gated", arms=gated)
    study(tmp_path / "half", "half", unfinished=(2, 3, 4), seeds=5, changes=LARGER)
    page = page_of(lab.atlas([tmp_path]))
    assert "no comparison is made: anomalies are what a gate does against none, and its baseline g has a gate" in page
    assert "6 of 10 runs are not done; they are in no number" in page


def test_a_study_of_another_version_is_left_out_with_its_reason(tmp_path, capsys):
    study(tmp_path / "old", "old")
    newer = study(tmp_path / "newer", "newer", changes=LARGER)
    content = read_json(newer.path / "study.json")
    write_json(newer.path / "study.json", content | {"schema": content["schema"] + 1})
    status, _, err = report(capsys, tmp_path)
    assert status == 0 and "written by another version of Gatelab" in err
    assert "left out" in page_of(tmp_path / "atlas.html") and "1 source refused" in page_of(tmp_path / "atlas.html")
    shutil.rmtree(tmp_path / "old")
    status, out, err = report(capsys, tmp_path)
    assert (status, out) == (1, "") and "another version" in err.splitlines()[-1]


def test_a_cut_archive_and_one_without_a_study_are_named_not_their_copies(tmp_path):
    folder = study(tmp_path / "made", "made")
    whole = archive(folder.path, tmp_path / "whole.tar.gz")
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:2000])
    none = archive(folder.path / "runs", tmp_path / "none.tar.gz")
    for path, why in ((cut, "cannot be unpacked"), (none, "holds 0 studies")):
        with pytest.raises(StoreError, match=why) as error, opened(Source(path)):
            pass
        assert str(error.value).startswith(f"{path}: ") and "gatelab-study-" not in str(error.value)


def test_a_member_that_leaves_its_archive_is_refused(tmp_path):
    evil = tmp_path / "evil.tar.gz"
    with tarfile.open(evil, "w:gz") as tar:
        tar.add(__file__, arcname="../escaped.json")
    with pytest.raises(StoreError, match="is not unpacked, since it holds what no study does"), opened(Source(evil)):
        pass
    assert not list(tmp_path.rglob("escaped.json"))


def test_an_archive_of_more_than_a_disk_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    folder = study(tmp_path / "toy")
    with tarfile.open(tmp_path / "toy.tar.gz", "w:gz") as tar:
        tar.add(folder.path, "toy")
    monkeypatch.setattr("gatelab.lab.sources._MOST", 1000)
    why = r"toy\.tar\.gz: is not unpacked, since its files have more than 1,000 bytes"
    with pytest.raises(StoreError, match=why), opened(Source(tmp_path / "toy.tar.gz")):
        pass


def test_an_archive_that_this_disk_cannot_hold_is_left_out_and_the_others_read(tmp_path, capsys):
    study(tmp_path / "one", "one")
    with tarfile.open(tmp_path / "odd.tar.gz", "w:gz") as tar:
        tar.add(__file__, arcname="a")
        tar.add(__file__, arcname="a/b")
    with tarfile.open(tmp_path / "long.tar.gz", "w:gz") as tar:
        tar.add(__file__, arcname="n" * 300)
    (tmp_path / "text.tar.xz").write_text("no archive", encoding="utf-8")
    status, _, err = report(capsys, tmp_path)
    said = [line for line in err.splitlines() if not line.startswith("reading ")]
    assert status == 0 and len(said) == 3
    assert all(" is not in the atlas: cannot be unpacked (" in line for line in said), said
    assert "gatelab-study-" not in err and "3 sources refused" in page_of(tmp_path / "atlas.html")


def test_a_page_is_not_written_over_its_own_numbers(tmp_path, capsys):
    study(tmp_path / "one", "one")
    status, _, err = report(capsys, tmp_path / "one", "--out", tmp_path / "all.csv")
    assert status == 2 and "its numbers are written" in err and not (tmp_path / "all.csv").exists()


def test_a_refused_comparison_is_flagged_once(tmp_path):
    folder = study(tmp_path / "one", "one", arms=(*ARMS, Arm("other", {"model.gate": "value-headwise"})))
    environment = {"versions": {"gatelab": "2"}, "git": {"commit": "c" * 40, "modified": False}}
    for run in (r for e, r in folder.planned() if e["arm"] == "gated"):
        write_json(run.path / "environment.json", environment)
    page = page_of(lab.atlas([tmp_path]))
    assert page.count("refused: no pair of its runs is of one version") == 1
    own = page_of(lab.report(folder, lab.analyse(folder)))
    assert "Refused comparisons have no effect and no test" in own.partition("Verdicts</h2>")[0]


def test_sources_are_one_level_down_and_in_order(results):
    assert [s.path.name for s in sources_in([results])] == ["alpha", "folder.tar.gz"]
    assert [s.home.name for s in sources_in([results])] == ["alpha", "beta"]


def test_claims_are_on_the_page_where_their_files_are(tmp_path):
    study(tmp_path / "one", "one")
    seeds = tmp_path / "sinkless-seeds"
    seeds.mkdir()
    lines = ["arm,seed,first_token_mass,val_loss,value_drain,gate_mean"]
    for arm, mass in (("none", 0.8), ("sdpa-headwise", 0.1), ("sdpa-elementwise", 0.1)):
        lines += [f"{arm},{s},{mass + s / 1000},{2 + s / 10},{0.1 + s / 100},0.5" for s in range(8)]
    (seeds / "seeds.csv").write_text("\n".join(lines), encoding="utf-8")
    page = page_of(lab.atlas([tmp_path]))
    assert "Ledger of claims" in page and "8 of 8 seeds" in page
    assert "<b>not run</b>" in page and "of these not run" in page, "lines that wait for their runs are lines"
    assert "Planned, not run" in page and "gatelab run text-trend" in page
    (seeds / "seeds.csv").unlink()
    page = page_of(lab.atlas([tmp_path]))
    assert "Ledger of claims" not in page and "the ledger of claims</b>: left out" in page


def test_runs_that_have_not_ended_are_planned_with_the_command_that_takes_them_up(tmp_path):
    folder = study(tmp_path / "half", "half", unfinished=(2, 3, 4), seeds=5)
    made = study(tmp_path / "made" / "part", "part", unfinished=(0,), changes=LARGER)
    archive(made.path, tmp_path / "folder.tar.gz")
    shutil.rmtree(tmp_path / "made")
    page = page_of(lab.atlas([tmp_path]))
    assert "8 runs of 2 studies that are written down have no rows here" in page
    assert f"<b>half</b>: 6 of 10 runs. What? <code>gatelab run {folder.path}</code>" in page
    assert (
        "<b>part</b>: 2 of 6 runs. What? <code>gatelab run DIR (DIR: what folder.tar.gz holds, unpacked)</code>" in page
    )
