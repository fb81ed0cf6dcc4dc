"""The page of a study on tasks shows what was planted, and of a study that asks nothing it shows nothing."""

import csv
import json
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import planted_tasks as planted
import pytest
from reading import Page
from synthetic import analysed, make_study

from gatelab.analysis.task_study import task_study
from gatelab.report import write_report
from gatelab.report.style import RAMP
from gatelab.report.tasks.items import marked, named
from gatelab.report.tasks.strips import png
from gatelab.store import StudyFolder
from gatelab.tasks.text import TextItem

DONE = {(planted.CELL, arm, seed) for arm in planted.ARMS for seed in planted.SEEDS}
SECTIONS = ["lengths", "learning", "depths", "citations", "items"]


def written(folder: StudyFolder, done: set) -> Page:
    return Page(write_report(folder, [], shares=[], pairing=[], tasks=task_study(folder, done)))


def ids(page: Page) -> list[str]:
    return [a["id"] for tag, a in page.elements if tag == "section"]


def chart(page: Page, words: str) -> dict:
    (found,) = [c for c in page.charts if words in c["spec"]["description"]]
    return found["spec"]


def values(spec: dict) -> list[dict]:
    """Every record of every layer."""
    layers = [spec, *spec.get("layer", [])]
    return [v for layer in layers for v in layer.get("data", {}).get("values", [])]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = planted.make_study(tmp_path_factory.mktemp("tasks") / "planted")
    return SimpleNamespace(folder=folder, page=written(folder, DONE))


def test_the_sections_stand_behind_the_verdicts_in_order(reported):
    assert ids(reported.page)[:7] == ["verdicts", *SECTIONS, "loss"]
    links = [a["href"] for tag, a in reported.page.elements if tag == "a"]
    assert [f"#{name}" for name in SECTIONS] == [link for link in links if link[1:] in SECTIONS]


def test_every_seed_is_drawn_over_the_lengths_and_the_thick_line_is_a_median(reported):
    spec = chart(reported.page, "Accuracy of cite by length, as trained")
    curves = [v for v in values(spec) if isinstance(v.get("x"), list)]
    seeds = {(v["arm"], v["seed"]): v["y"] for v in curves if "seed" in v}
    assert seeds == {key: [last, last / 2] for key, (_, last) in planted.LEARNED.items()}
    thick = {v["arm"]: v["y"] for v in curves if "seed" not in v}
    assert thick == {"none": [0.2, 0.1], "sdpa-headwise": [0.95, 0.475]}
    assert all(v["x"] == [1, 2] for v in curves)


def test_scores_stand_beside_chance_copying_and_the_untrained_model(reported):
    grey = [v for v in values(chart(reported.page, "Accuracy of cite by length, as trained")) if "arm" not in v]
    assert sorted((v["x"], v["y"]) for v in grey) == [(1, 0), (1, 0.001), (1, 0.125), (2, 0), (2, 0.001), (2, 0.125)]
    assert "At 1×: copying 0.12, chance 0.0010, untrained 0." in reported.page.text


def test_stretched_positions_have_a_figure_of_their_own_from_the_same_start(reported):
    spec = chart(reported.page, "Accuracy of cite by length, with YaRN")
    seeds = {(v["arm"], v["seed"]): v["y"] for v in values(spec) if isinstance(v.get("x"), list) and "seed" in v}
    assert seeds == {key: [last, last] for key, (_, last) in planted.LEARNED.items()}


def test_solved_seeds_are_counted_with_exact_intervals(reported):
    rows = reported.page.rows
    assert ["cite at 1×", "1 of 3 (1% to 91%)", "3 of 3 (29% to 100%)"] in rows
    assert ["cite at 2×", "0 of 3 (0% to 71%)", "0 of 3 (0% to 71%)"] in rows
    assert ["cite at 2×, with YaRN", "1 of 3 (1% to 91%)", "3 of 3 (29% to 100%)"] in rows


def test_what_else_answers_are_worth_and_how_far_seeds_reach_is_told_by_arm(tmp_path: Path):
    folder = planted.make_study(tmp_path / "study")
    for entry, run in folder.planned():
        lines = [json.loads(line) for line in run.rows_path.read_text().splitlines()]
        (first,) = [
            r for r in lines if (r["metric"], r["step"], r["length"]) == ("exact_match", 100, 64) and "bin" not in r
        ]
        copied = 0.1 * entry["seed"] + (0.5 if entry["arm"] == "none" else 0)
        first["value"] = 1.0
        more = [
            *(
                first | {"metric": name, "value": v}
                for name, v in (("copied_from_start", copied), ("edit_similarity", 0.75))
            ),
            *(first | {"metric": "sentence_recall", "value": v, "bin": b} for b, v in enumerate((0.25, 1.0))),
            first | {"length": 256, "value": 0.9 if entry["seed"] else 0.2},
        ]
        run.rows_path.write_text("".join(json.dumps(r) + "\n" for r in [*lines, *more]))
    page = written(folder, DONE)
    at = [r for r in page.rows if r[0].endswith(" at 1×") and len(r) == 5]
    assert at == [
        ["no gate at 1×", "0.60", "0.75", "0.25", "1.00"],
        ["headwise gate at 1×", "0.10", "0.75", "0.25", "1.00"],
    ]
    # Of 0.475 at twice the length and 0.9 at four times: seeds 1 and 2 reach as far, seed 0 not.
    assert ["cite", "1×, 4×, 4×", "1×, 4×, 4×"] in page.rows
    with open(folder.path / "tasks.csv", encoding="utf-8", newline="") as file:
        assert {"copied_from_start", "edit_similarity", "sentence_recall"} <= {
            r["metric"] for r in csv.DictReader(file)
        }


def test_steps_of_seeds_that_never_got_there_are_told_as_beyond_the_last(reported):
    rows = reported.page.rows
    assert ["cite, no gate", "1 of 3 (1% to 91%)", "> 100", "100, > 100, > 100", "–"] in rows
    assert [
        "cite, headwise gate", "3 of 3 (29% to 100%)", "50", "50, 100, 50", "3 sooner, 0 later, 0 neither (p = 0.25)"
    ] in rows  # fmt: skip


def test_maps_are_medians_by_length_and_depth(reported):
    spec = chart(reported.page, "Accuracy of cite by length and depth, no gate")
    found = {(v["t"], v["d"]): v["v"] for v in values(spec)}
    assert len(found) == 22 and found["1×", 0] == 0.2 and found["1×", 50] == 0 and found["2×", 100] == 0.1
    assert "median of 3 seeds; lowest 0.00 at 1×, 40%" in reported.page.text


def test_curves_over_depth_have_bands_and_their_ends_a_table(reported):
    spec = chart(reported.page, "Accuracy of cite by depth at 1×")
    bands = [v for v in values(spec) if "low" in v]
    assert len(bands) == 22 and {(v["low"], v["high"]) for v in bands if v["arm"] == "none" and v["x"] == 0.5} == {
        (0, 0)
    }
    (none,) = [r for r in reported.page.rows if r[0] == "1×, no gate" and "1.00 (1.00 to 1.00)" in r]
    assert none == ["1×, no gate", *["1.00 (1.00 to 1.00)"] * 3, "0.00 (0.00 to 0.00)"]
    # Where nothing is right at twice the length, the margin still has a curve, and at every length that was asked.
    for words in ("Accuracy of cite by depth at 2×", "Margin of cite by depth at 1×", "Margin of cite by depth at 2×"):
        assert {v["arm"] for v in values(chart(reported.page, words)) if "low" in v} == set(planted.ARMS)
    # 1 at the ends; −1 in the middle but for item 5, which has −2: a mean of −1 − 1/6.
    assert any(r[:2] == ["1×, no gate", "2.17 (2.00 to 2.33)"] for r in reported.page.rows)


def test_the_margin_is_drawn_over_the_lengths_beside_the_untrained_models(reported):
    spec = chart(reported.page, "Margin of cite by length, as trained")
    curves = [v for v in values(spec) if isinstance(v.get("x"), list)]
    seeds = {(v["arm"], v["seed"]): v["y"] for v in curves if "seed" in v}
    assert seeds == {key: pytest.approx([4 * last - 2, 2 * last - 2]) for key, (_, last) in planted.LEARNED.items()}
    assert sorted((v["x"], v["y"]) for v in values(spec) if "arm" not in v) == [(1, -2), (2, -2)]


def test_parts_of_answers_stand_beside_guesses_and_pairs_are_told_apart(tmp_path: Path):
    folder = planted.make_study(tmp_path / "study")
    for _, run in folder.planned():
        lines = [json.loads(line) for line in run.rows_path.read_text().splitlines()]
        first = next(
            r for r in lines if (r["metric"], r["step"], r["length"]) == ("exact_match", 100, 64) and "bin" not in r
        )
        scores = {"citation_f1": 0.5, "citation_f1_chance": 0.001, "citation_f1_floor": 0.125, "query_accuracy": 0.3}
        pairs = {"query_accuracy": 0.75, "query_accuracy_floor": 0.25}
        more = [
            *(first | {"metric": metric, "value": v} for metric, v in scores.items()),
            *(first | {"metric": metric, "value": v, "bin": 4} for metric, v in pairs.items()),
            first | {"metric": "citation_f1", "value": 0.125, "step": 0},
        ]
        run.rows_path.write_text("".join(json.dumps(r) + "\n" for r in [*lines, *more]))
    page = written(folder, DONE)
    assert [r for r in page.rows if r[0] in ("headwise gate at 1×", "copying, 1×", "chance, 1×", "untrained, 1×")] == [
        ["headwise gate at 1×", "0.50", "0.30", "0.75"], ["copying, 1×", "0.125", "–", "0.250"],
        ["chance, 1×", "0.001", "–", "–"], ["untrained, 1×", "0.125", "–", "–"],
    ]  # fmt: skip
    spec = chart(page, "Accuracy at each key of cite by length, as trained")
    assert {tuple(v["y"]) for v in values(spec) if isinstance(v.get("x"), list)} == {(0.3,)}


def test_what_was_seen_inside_is_joined_with_being_right(tmp_path: Path):
    folder = planted.make_study(tmp_path / "study")
    for entry, run in folder.planned():
        lines = [json.loads(line) for line in run.items_path.read_text().splitlines()]
        for line in lines:
            gold = [int(t) for t in line["answer"].split()][1:]
            scores = {"evidence": [0.75, 0.25], "asked": [0.5, 0.5], "all": [0.5, 0.5]}
            line["factors"]["inside"] = {
                "evidence": [0.5, 0.25] if line["correct"] else [0.25, 0.25], "distractors": [0.25, 0.25],
                "first": [0.125, 0.125], "gates": {} if entry["arm"] == "none" else {"sdpa": scores},
                "even": 0.125, "attended": gold,
            }  # fmt: skip
        run.items_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = written(folder, DONE)
    assert ids(page)[1:7] == ["lengths", "learning", "depths", "citations", "evidence", "items"]
    rows = [r for r in page.rows if r[0] == "1×, no gate" and len(r) == 5]
    assert ["1×, no gate", "0.375 (48)", "0.250 (18)", "0.125 (0.125 to 0.125)", "0.125"] in rows
    assert ["2×, no gate", "–", "0.250 (66)", "–", "0.125"] in page.rows
    # One item in 22 is wrong in a seed of the gated arm, which is too few to compare.
    assert ["1×, headwise gate", "0.500 (63)", "0.500 (3)", "–"] in page.rows
    assert "gate scores at the evidence, sdpa" in page.text
    (found,) = [r for r in page.rows if r[0] == "2×, no gate" and len(r) == 6]
    assert found[1:4] == ["0.00 (0.00 to 0.00)", "1.00 (1.00 to 1.00)", "0.00 (0.00 to 0.00)"]


def test_answers_and_citations_are_in_a_table_of_four(reported):
    assert ["no gate", "0.73", "0.05", "0.00", "0.23"] in reported.page.rows
    assert ["headwise gate", "0.95", "0.05", "0.00", "0.00"] in reported.page.rows


def test_the_worst_item_can_be_opened_and_read(reported):
    text = reported.page.text
    assert "cite, item 5 at 64 tokens, evidence at 50%: wrong in 6 of 6 runs, mean margin −2.0" in text
    asked = planted.item("r", "none", 5, 1)
    right, said = (named(tuple(map(int, words.split()))) for words in (asked.answer, asked.given))
    assert any(row[1:] == [said] * 3 for row in reported.page.rows)
    value, document = right.split()
    assert f"Document {document}: the code of" in text and f"is {value}" in text
    marks = [tag for tag, _ in reported.page.elements if tag == "mark"]
    assert len(marks) == 3, "of each of the three items the one document"


def test_evidence_and_answer_are_set_apart_and_nothing_is_lost():
    text = TextItem("t", 0, "ab <cd> ef gh", ((10, 13),), ((3, 7),), (), 0.5)
    parts = marked(text)
    assert parts == ["ab ", "<mark>&lt;cd&gt;</mark>", " ef", "<b> gh</b>", ""]
    assert named((2048, 1)) == "baba ⟨1⟩"


def test_an_item_has_its_strips_where_a_run_kept_some(tmp_path: Path):
    folder = planted.make_study(tmp_path / "study")
    run = next(run for e, run in folder.planned() if (e["arm"], e["seed"]) == ("sdpa-headwise", 1))
    lines = [json.loads(line) for line in run.items_path.read_text().splitlines()]
    start, end = planted.open_task("cite").item(planted.Knobs(64, 0.5, 3), 5).evidence[0]
    paid = [[100 if start <= t < end else 1 for t in range(64)], [0] * 64]
    strips = {"attention": paid, "gates": {"sdpa": [[250] * 64] * 2}}
    for line in lines:
        if (line["item"], line["factors"]["length"]) == (5, 64):
            line["factors"]["strips"] = strips
    run.items_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = written(folder, DONE)
    pictures = [a for tag, a in page.elements if tag == "img"]
    assert len(pictures) == 2 and all(a["src"].startswith("data:image/png;base64,") for a in pictures)
    assert f"{(end - start) / 20:.2f} of it on the evidence, mean over layers and heads; brightest 0.1." in page.text
    assert "Gate scores at sdpa: mean 0.25; brightest 1, open." in page.text and "headwise gate, seed 1" in page.text


def test_a_picture_holds_what_was_put_into_it():
    rows = [[0, 249, 250], [251, 252, 7]]
    data = png(rows)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + length
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (3, 2, 8, 3, 0, 0, 0)
    assert zlib.decompress(chunks[b"IDAT"]) == b"".join(b"\0" + bytes(row) for row in rows)
    assert chunks[b"PLTE"][:3].hex() == RAMP[0][1:] and chunks[b"PLTE"][3 * 249 : 3 * 250].hex() == RAMP[-1][1:]
    assert len(chunks[b"PLTE"]) == 3 * 253 and chunks[b"tRNS"][249:] == b"\xff\0\xff\xff"


def test_all_numbers_are_in_a_file(reported):
    with open(reported.folder.path / "tasks.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    one = [
        r
        for r in rows
        if (r["arm"], r["seed"], r["step"], r["metric"], r["times"]) == ("none", "0", "100", "exact_match", "1")
    ]
    assert {(r["bin"], float(r["value"])) for r in one if r["bin"] in ("", "5")} == {("", 0.95), ("5", 0.0)}
    assert "tasks.csv" in reported.page.text


def test_runs_that_are_not_done_are_left_out_and_named(tmp_path: Path):
    folder = planted.make_study(tmp_path / "study")
    for entry, run in folder.planned():
        if entry["seed"] == 2:
            (run.path / "done.json").unlink()
    page = written(folder, {key for key in DONE if key[2] != 2})
    assert ["cite at 1×", "1 of 2 (1% to 99%)", "2 of 2 (16% to 100%)"] in page.rows
    assert "Not done: no gate seed 2 (not finished, up to step 100)" in page.text
    drawn = values(chart(page, "Accuracy of cite by length, as trained"))
    assert {v["seed"] for v in drawn if "seed" in v} == {0, 1}


def test_rows_without_depths_and_citations_leave_those_sections_out(tmp_path: Path):
    folder = planted.make_study(tmp_path / "study")
    for _, run in folder.planned():
        lines = [json.loads(line) for line in run.rows_path.read_text().splitlines()]
        run.rows_path.write_text("".join(json.dumps(r) + "\n" for r in lines if "bin" not in r))
        run.items_path.unlink()
    assert [name for name in ids(written(folder, DONE)) if name in SECTIONS] == ["lengths", "learning"]


def test_a_study_that_asks_nothing_has_no_such_section(tmp_path: Path):
    folder = make_study(tmp_path / "study")
    findings, shares, pairing = analysed(folder)
    assert task_study(folder, set()) is None
    page = Page(write_report(folder, findings, shares=shares, pairing=pairing, tasks=None))
    assert not set(ids(page)) & set(SECTIONS) and not (folder.path / "tasks.csv").exists()
