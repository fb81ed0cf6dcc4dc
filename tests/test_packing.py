"""gatelab pack and unpack: what a pack holds, what is read from it, and what is refused."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from tiny import toy

from gatelab import lab
from gatelab.analysis import packed
from gatelab.analysis.archived import kept
from gatelab.cli import _status
from gatelab.lab.sources import Source, opened, sources_in
from gatelab.record import Item, Row
from gatelab.store import Appender, StoreError, StudyFolder, query, read_json, write_json, write_lines
from gatelab.study.ledger import state_of
from gatelab.study.leftovers import clear_done
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

TOY = toy(tokens=64)
# No decimal of seven digits, one that single precision has not, a whole number that it has not, no numbers.
VALUES = {"third": 1 / 3, "tenths": 0.95, "steps": 16_777_216.0, "lost": float("nan"), "high": float("-inf")}


def study(out: Path, *, unfinished=(), more=()) -> StudyFolder:
    """A folder of two arms and two seeds, with looks at steps 0, 2 and 4 and training at each step."""
    arms = (Arm("none", {}, "no gate"), Arm("gated", {"model.gate": "paper/g1-headwise"}, "a gate"))
    folder = lab.save_plan(make_plan(Study("toy", "What's new?", {"a 'cell'": TOY}, arms, seeds=2)), out)
    for entry, run in folder.planned():
        rows = Appender(run.rows_path)
        for step in range(5):
            at = (run.fingerprint, step)
            rows.write([Row(*at, "train", "loss", 4 - step / 10 + entry["seed"], "nats")])
            if step % 2 == 0:
                rows.write([Row(*at, "eval", "val_loss", 3 - step / 10, "nats")])
                rows.write([Row(*at, "sinks", "first_token_mass", 0.1 * h, "share", layer=0, head=h) for h in (1, 2)])
                rows.write([Row(*at, "rank", "effective_rank", 3.5, "1", layer=0, stage="é\u2028")])
        rows.write([Row(run.fingerprint, 4, "x", name, value, "1", threshold=0.1) for name, value in VALUES.items()])
        rows.write([Row(run.fingerprint, 4, "x", name, value, "1") for name, value in more])
        rows.close()
        write_json(run.path / "environment.json", {"device": "cpu", "made": "at /home/me/gate lab/x.py"})
        run.path.joinpath("attempts").mkdir(exist_ok=True)
        attempt = {"number": 1, "host": "secret", "owner": "x", "outcome": "done", "started": "2026", "ended": "2027"}
        write_json(run.path / "attempts" / "0001.json", attempt)
        item = Item(run.fingerprint, 4, "needle", 0, True, 0.5, "/etc/hosts", "b\u2028", {"length": 8})
        write_lines(run.items_path, [item])
        if entry["seed"] not in unfinished:
            run.mark_done("done", {"steps": 4})
    (folder.path / "causes.jsonl").write_text('{"run": "r", "value": 0.12345678901234567}\n', encoding="utf-8")
    return folder


def records(folder: StudyFolder) -> list[dict]:
    found = query(folder, "SELECT * FROM rows ORDER BY ALL")
    return [{k: str(v) if v != v else v for k, v in row.items()} for row in found]


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    return study(tmp_path / "toy")


def packed_of(folder: StudyFolder, looks="all", name="folder.parquet") -> Path:
    return lab.pack(folder.path, folder.path.parent / name, looks)


def test_anyone_opens_a_pack_without_us(folder):
    path = packed_of(folder)
    sql = f"SELECT arm, seed, value FROM '{path}' WHERE metric = 'val_loss' AND step = 4 ORDER BY ALL"
    found = duckdb.sql(sql).fetchall()
    assert found == [(arm, seed, pytest.approx(2.6)) for arm in ("gated", "none") for seed in (0, 1)]
    said = dict(duckdb.sql(f"SELECT decode(key), decode(value) FROM parquet_kv_metadata('{path}')").fetchall())
    facts = json.loads(said["gatelab"])
    assert facts["question"] == "What's new?" and facts["arms"] == {"none": "no gate", "gated": "a gate"}
    assert facts["looks"] == "all" and list(facts["cells"]) == ["a 'cell'"]


def test_a_study_comes_back_as_it_was_to_seven_digits(folder, tmp_path):
    there = lab.unpack(packed_of(folder), tmp_path / "back")
    assert there.study()["cells"] == folder.study()["cells"]
    before, after = records(folder), records(there)
    assert len(before) == len(after) == 4 * (5 + 3 * 4 + len(VALUES))
    for old, new in zip(before, after, strict=True):
        assert {k: v for k, v in old.items() if k != "value"} == {k: v for k, v in new.items() if k != "value"}
        assert new["value"] == (old["value"] if old["metric"] != "third" else 0.33333334)
    for _, run in there.planned():
        old = folder.run(run.fingerprint)
        # Its rows are written anew, so that their bytes are others.
        assert run.config() == old.config() and run.done() | {"rows_bytes": old.rows_path.stat().st_size} == old.done()
        assert state_of(run) == "done"
        clear_done(run)  # as a driver does, though of attempts less is there
        assert list(run.items()) == list(old.items()), "answers are as they were"
        assert "null" not in run.rows_path.read_text() and '"value":"nan"' in run.rows_path.read_text()
    again = lab.pack(there.path, tmp_path / "again.parquet", "all")
    assert replace(packed.read_pack(again), path=None) == replace(
        packed.read_pack(tmp_path / "folder.parquet"), path=None
    )


def test_nothing_of_the_machine_is_stored(folder, tmp_path):
    path = tmp_path / "study.json"
    stored = read_json(folder.path / "study.json")
    stored["cells"][0]["base"]["data"]["paths"] = "/mnt/me/corpus/a.bin,~/b.txt"
    write_json(folder.path / path.name, stored)
    pack = packed.read_pack(packed_of(folder))
    text = json.dumps([pack.study, [{k: v for k, v in r.items() if k != "items.jsonl"} for r in pack.runs.values()]])
    assert str(tmp_path) not in text and "/mnt" not in text and "/home" not in text and "secret" not in text
    run = next(iter(pack.runs))
    commands = [entry["command"] for entry in pack.study["study.json"]["plan"]]
    assert f"gatelab train --config runs/toy/runs/{run}/run.json --out runs/reproduced" in commands
    assert pack.study["study.json"]["cells"][0]["base"]["data"]["paths"] == "a.bin,b.txt"
    assert pack.runs[run]["attempts/0001.json"] == {
        "number": 1,
        "outcome": "done",
        "started": "2026",
        "ended": "2027",
    }
    assert pack.study["causes.jsonl"] == [{"run": "r", "value": 0.12345679}]
    assert str(tmp_path).encode() not in path.parent.joinpath("folder.parquet").read_bytes()


@pytest.mark.parametrize(
    ("looks", "steps"),
    [
        ("all", {"loss": [0, 1, 2, 3, 4], "val_loss": [0, 2, 4], "effective_rank": [0, 2, 4], "first_token_mass": [0, 2, 4]}),
        ("drawn", {"loss": [0, 2, 4], "val_loss": [0, 2, 4], "effective_rank": [4], "first_token_mass": [0, 2, 4]}),
        ("last", {"loss": [0, 2, 4], "val_loss": [0, 2, 4], "effective_rank": [4], "first_token_mass": [4]}),
    ],
)  # fmt: skip
def test_the_looks_that_are_kept(folder, looks, steps):
    path = packed_of(folder, looks)
    assert packed.read_pack(lab.pack(path, path.with_name("again.parquet"), "all")).facts["looks"] == looks
    found = duckdb.sql(f"SELECT metric, list(DISTINCT step ORDER BY step) FROM '{path}' GROUP BY metric").fetchall()
    assert {metric: at for metric, at in found if metric in steps} == steps


def test_double_precision_is_kept_where_single_loses_a_number(tmp_path):
    for name, value, kind in (("count", 16_777_217.0, "DOUBLE"), ("huge", 1e39, "DOUBLE"), ("tiny", 3e-41, "FLOAT")):
        path = packed_of(study(tmp_path / name, more=[(name, value)]), name=f"{name}.parquet")
        assert duckdb.sql(f"SELECT any_value(typeof(value)) FROM '{path}'").fetchall() == [(kind,)]
        found = duckdb.sql(f"SELECT DISTINCT value FROM '{path}' WHERE metric = '{name}'").fetchall()
        assert found == [(pytest.approx(value, rel=1e-3),)]


def test_runs_that_have_not_ended_are_in_the_plan_alone(tmp_path):
    folder = study(tmp_path / "half", unfinished=(1,))
    said = []
    path = lab.pack(folder.path, tmp_path / "half.parquet", tell=said.append)
    assert said == ["2 of 4 runs have not ended: they are in the plan alone"]
    ended = next(run for entry, run in folder.planned() if entry["seed"] == 0)
    (ended.path / "done.json").write_text("{")
    lab.pack(folder.path, tmp_path / "damaged.parquet", tell=said.append)
    assert said[1] == "3 of 4 runs have not ended or are damaged (1): they are in the plan alone"
    assert duckdb.sql(f"SELECT DISTINCT seed FROM '{path}'").fetchall() == [(0,)]
    with opened(Source(path)) as there:
        assert [run.done() is not None for _, run in there.planned()] == [True, False, True, False]
    page = lab.atlas([path], tmp_path / "atlas.html").read_text(encoding="utf-8")
    assert f"gatelab unpack {path} --out DIR" in page
    none = study(tmp_path / "none", unfinished=(0, 1))
    with pytest.raises(StoreError, match="no run has ended"):
        lab.pack(none.path, path)


def test_a_run_that_stands_in_two_cells_is_stored_once(folder, tmp_path):
    stored = read_json(folder.path / "study.json")
    stored["plan"].append(stored["plan"][0] | {"cell": "another"})
    write_json(folder.path / "study.json", stored)
    path = packed_of(folder)
    assert duckdb.sql(f"SELECT DISTINCT cell FROM '{path}'").fetchall() == [("a 'cell'",)]
    there = lab.unpack(path, tmp_path / "back")
    assert len(records(there)) == len(records(folder))


def test_the_atlas_of_packs_is_that_of_folders(folder, tmp_path):
    (tmp_path / "packs" / "toy").mkdir(parents=True)
    shutil.move(packed_of(folder), tmp_path / "packs" / "toy" / "folder.parquet")
    duckdb.sql(f"COPY (SELECT 1 AS x) TO '{tmp_path}/packs/toy/other.parquet' (FORMAT parquet)")
    assert [s.path.name for s in sources_in([tmp_path / "packs"])] == ["folder.parquet"], "other tables may lie beside"
    lab.atlas([folder.path], tmp_path / "a.html")
    lab.atlas([tmp_path / "packs"], tmp_path / "b.html")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_claims_read_a_pack_as_they_read_an_archive(folder, tmp_path):
    for _, run in folder.planned():
        at = (run.fingerprint, 4, "x")
        rows = Appender(run.rows_path, run.rows_path.stat().st_size)
        rows.write([Row(*at, "val_loss", 9.0, "nats", domain="a"), Row(*at, "gate_mean", 0.5, "share", layer=0)])
        rows.write(
            [
                Row(*at, "gate_below", v, "share", site=site, threshold=0.1)
                for v, site in ((0.7, "value"), (0.2, "sdpa"))
            ]
        )
        rows.write(
            [Row(*at, "gate_hoyer", v, "1", stack=s, site="sdpa") for v, s in ((0.3, "encoder"), (0.4, "cross"))]
        )
        rows.write([Row(*at, "exact_match", v, "share", length=8, intervention=i, bin=b)
                    for v, i, b in ((0.9, None, None), (0.8, "yarn", None), (0.1, "zero", None), (0.6, None, 3))])  # fmt: skip
        rows.close()
    archive = tmp_path / "old"
    archive.mkdir()
    with tarfile.open(archive / "folder.tar.gz", "w:gz") as tar:
        tar.add(folder.path, "toy")
    found = kept(packed_of(folder).parent)
    assert found == kept(archive)
    assert [(k.cell, k.arm, k.seed, k.status) for k in found[:2]] == [("a 'cell'", "none", s, "done") for s in (0, 1)]
    assert found[0].looks["val_loss",] == {0: 3.0, 2: 2.8, 4: 2.6} and found[0].config["train"]["seq_len"] == 8
    assert found[0].last("gate_below", 0.1) == 0.2 and found[0].last("exact_match", "yarn", 8, None) == 0.8


def other_metadata(path: Path, to: Path, **changes: str | None) -> Path:
    """The same rows with other metadata; None takes one away."""
    said = dict(duckdb.sql(f"SELECT decode(key), decode(value) FROM parquet_kv_metadata('{path}')").fetchall())
    said |= {key.replace("_", "."): text for key, text in changes.items()}
    pairs = ", ".join(f"'{k}': '{v.replace(chr(39), chr(39) * 2)}'" for k, v in said.items() if v is not None)
    duckdb.sql(f"COPY (FROM '{path}') TO '{to}' (FORMAT parquet, KV_METADATA {{{pairs}}})")
    return to


def files(**runs: dict) -> str:
    return packed.write_files({"study": {"study.json": {"schema": 1, "name": "x", "plan": []}}, "runs": runs})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gatelab": None}, "is a Parquet file, but no packed study; `gatelab pack"),
        ({"gatelab_files": None}, "is a Parquet file, but no packed study"),
        ({"gatelab": "{}"}, "what it says of itself cannot be read"),
        ({"gatelab": '{"pack": 2, "schema": 1, "version": "9.9"}'}, r"was packed by Gatelab 9\.9 \(pack 2, schema 1"),
        ({"gatelab": '{"pack": 1, "schema": 7, "version": "9.9"}'}, r"this one reads pack 1, schema 1\)"),
        ({"gatelab_files": "no base64!"}, "the study's files in it cannot be read"),
        ({"gatelab_files": files()[:-40]}, "the study's files in it cannot be read"),
        ({"gatelab_files": packed.write_files({"study": {}, "runs": {}})}, "the study's files in it cannot be read"),
        ({"gatelab_files": packed.write_files([])}, "the study's files in it cannot be read"),
        ({"gatelab_files": files(**{"../../evil": {}})}, r"holds what no study does \('\.\./\.\./evil'\)"),
        ({"gatelab_files": files(abc={"../x.json": {}})}, r"holds what no study does \('\.\./x\.json'\)"),
        ({"gatelab_files": files(abc={"attempts/../../x.json": {}})}, "holds what no study does"),
        ({"gatelab_files": files(abc={"weights.safetensors": {}})}, "holds what no study does"),
        ({"gatelab_files": files(abc={"items.jsonl": 3})}, r"cannot be read \(items\.jsonl is no such file\)"),
        ({"gatelab_files": files(abc={"run.json": [1]})}, r"cannot be read \(run\.json is no such file\)"),
    ],
)
def test_what_is_no_pack_is_refused_in_a_sentence(folder, tmp_path, capsys, changes, why):
    path = other_metadata(packed_of(folder), tmp_path / "bad.parquet", **changes)
    with pytest.raises(StoreError, match=why) as error, opened(Source(path)):
        pass
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert _status(["report", str(path), "--out", str(tmp_path / "atlas.html")]) == 1
    assert "bad.parquet" in capsys.readouterr().err
    assert not list(tmp_path.rglob("x.json")) and not list(tmp_path.rglob("evil"))


def test_claims_of_a_pack_without_a_plan_name_it(folder, tmp_path):
    (tmp_path / "x").mkdir()
    text = packed.write_files({"study": {"study.json": {"plan": [{"cell": "a"}]}}, "runs": {}})
    path = other_metadata(packed_of(folder), tmp_path / "x" / "folder.parquet", gatelab_files=text)
    with pytest.raises(StoreError, match="has no plan of runs"):
        kept(path.parent)


def test_a_damaged_pack_is_named(folder, tmp_path):
    whole = packed_of(folder)
    text = whole.read_bytes()
    broken = text[:200] + bytes(byte ^ 0x55 for byte in text[200:2000]) + text[2000:]
    for name, content, why in (("cut", text[:-100], "cannot be read as Parquet"), ("broken", broken, "its rows cannot be read"),
                               ("text", b"no parquet", "cannot be read as Parquet")):  # fmt: skip
        path = tmp_path / name / "folder.parquet"
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(StoreError, match=why) as error, opened(Source(path)):
            pass
        assert str(error.value).startswith(f"{path}: ") and "gatelab-study-" not in str(error.value)
        with pytest.raises(StoreError, match=why):
            kept(path.parent)
        assert [s.path for s in sources_in([path.parent])] == [path], "found, so that it is named"
    duckdb.sql(f"COPY (SELECT 1 AS x) TO '{tmp_path}/other.parquet' (FORMAT parquet)")
    no_rows = tmp_path / "no-rows.parquet"
    pairs = dict(duckdb.sql(f"SELECT decode(key), decode(value) FROM parquet_kv_metadata('{whole}')").fetchall())
    said = ", ".join(f"'{k}': '{v.replace(chr(39), chr(39) * 2)}'" for k, v in pairs.items())
    duckdb.sql(f"COPY (SELECT 1 AS x) TO '{no_rows}' (FORMAT parquet, KV_METADATA {{{said}}})")
    with pytest.raises(StoreError, match="its rows cannot be read"), opened(Source(no_rows)):
        pass


def test_files_and_rows_without_end_are_refused(folder, tmp_path, monkeypatch):
    path = packed_of(folder)
    monkeypatch.setattr(packed, "_MOST_ROWS", 10)
    with pytest.raises(StoreError, match="more than 10 rows"):
        packed.unpack(path, tmp_path / "x")
    monkeypatch.setattr(packed, "_MOST", 100)
    with pytest.raises(StoreError, match="more than 100 bytes"):
        packed.read_pack(path)


def test_runs_without_their_rows_are_not_packed_as_empty(folder, tmp_path, capsys):
    runs = [run for _, run in folder.planned()]
    out = tmp_path / "toy.parquet"
    runs[0].rows_path.unlink()
    assert _status(["pack", str(folder.path), "--out", str(out)]) == 1
    assert f"{folder.path}: an ended run has no rows here; bring rows.jsonl" in capsys.readouterr().err
    for run in runs[1:]:
        run.rows_path.unlink()
    assert _status(["pack", str(folder.path), "--out", str(out)]) == 1 and not out.exists()
    assert f"{len(runs)} ended runs have no rows here" in capsys.readouterr().err


def test_a_plan_that_find_would_refuse_is_not_packed(folder, tmp_path, capsys):
    content = read_json(folder.path / "study.json")
    del content["arms"]
    write_json(folder.path / "study.json", content)
    assert _status(["pack", str(folder.path), "--out", str(tmp_path / "toy.parquet")]) == 1
    assert "study.json: arms missing; was it edited?" in capsys.readouterr().err
    assert not (tmp_path / "toy.parquet").exists()


def test_a_full_disk_is_said_as_everywhere(folder, tmp_path, capsys, monkeypatch):
    class Full:
        def execute(self, sql: str, *_: object) -> "Full":
            if sql.startswith("COPY"):
                raise duckdb.IOException('Async write failed for range [offset=17] {"x"}: No space left on device')
            return self

        def fetchone(self) -> tuple[bool]:
            return (True,)

    monkeypatch.setattr(StudyFolder, "connect", lambda _: Full())
    assert _status(["pack", str(folder.path), "--out", str(tmp_path / "toy.parquet")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("gatelab: the disk is full; what was there is unharmed")


def test_the_commands(folder, tmp_path, capsys):
    out = tmp_path / "toy.parquet"
    assert _status(["pack", str(folder.path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out} (")
    assert _status(["unpack", str(out), "--out", str(tmp_path / "back")]) == 0
    assert _status(["status", str(tmp_path / "back")]) == 0
    capsys.readouterr()
    for words, why, expected in (
        (["unpack", out, "--out", tmp_path / "back"], "holds something and is left alone", 1),
        (["unpack", tmp_path / "none.parquet", "--out", tmp_path / "new"], "no such file", 1),
        (["unpack", folder.path / "study.json", "--out", tmp_path / "new"], "is no pack", 1),
        (["unpack", folder.path, "--out", tmp_path / "new"], "is a folder; name a pack", 1),
        (["pack", out, "--out", out, "--looks", "last"], "is the pack that is read, and could lose rows", 2),
        (["pack", folder.path, "--out", tmp_path / "toy.tar.xz"], "name a file that ends in .parquet", 2),
        (["pack", folder.path, "--out", tmp_path / "none" / "a.parquet"], "in a folder that there is", 2),
        (["pack", tmp_path / "missing", "--out", out], "no such folder or archive", 1),
        (["pack", tmp_path, "--out", tmp_path / "all.parquet"], "studies; name one", 1),
    ):
        assert _status([str(word) for word in words]) == expected
        assert why in capsys.readouterr().err


def test_a_folder_whose_name_looks_like_a_pattern_is_read_itself(tmp_path):
    """DuckDB takes `st[1]` for a pattern, which `st1` beside it fits."""
    import duckdb

    from gatelab.store import quoted, to_read

    for name, value in (("st[1]", 1), ("st1", 2), ("s*?", 3)):
        (tmp_path / name).mkdir()
        duckdb.sql(f"COPY (SELECT {value} AS v) TO {quoted(tmp_path / name / 'x.parquet')} (FORMAT parquet)")
    read = [
        duckdb.sql(f"SELECT v FROM read_parquet({to_read(tmp_path / n / 'x.parquet')})").fetchall()
        for n in ("st[1]", "st1", "s*?")
    ]
    assert read == [[(1,)], [(2,)], [(3,)]]
