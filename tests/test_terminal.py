"""What a person sees: the live grid where there is a terminal, plain lines where there is none, lists that fit."""

import io
import re
from pathlib import Path

import pytest

from gatelab.record import Finding
from gatelab.store import StudyFolder, write_json
from gatelab.study.drive import Event
from gatelab.study.ledger import claim, end
from gatelab.terminal import STATES, LiveGrid, duration, print_findings, print_records, print_status


def plain(text: str) -> str:
    """Without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    plan = [
        {"cell": "toy", "arm": arm, "seed": seed, "fingerprint": f"{i}{seed:011d}", "flops": 1.0}
        for i, arm in enumerate(("none", "[b]gated"))
        for seed in (0, 1)
    ]
    folder = StudyFolder.create(tmp_path, {"name": "fake", "plan": plan})
    for _, run in folder.planned():
        run.create({})
    return folder


def test_the_live_grid_is_drawn_in_a_terminal(folder, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    first = next(folder.planned())[1]
    with LiveGrid(folder, slots=1) as grid:
        write_json(first.path / "progress.json", {"step": 3, "steps": 4, "seconds": 1.0, "first_step": 1})
        grid(Event("submitted", first.fingerprint, "running"))
    drawn = plain(capsys.readouterr().err)
    assert "0 of 4 runs done" in drawn and "75%" in drawn and "seed 1" in drawn and "[b]gated" in drawn


def test_lines_are_printed_where_there_is_no_terminal(folder, capsys):
    first = next(folder.planned())[1]
    with LiveGrid(folder, slots=1) as grid:
        grid(Event("submitted", first.fingerprint, "running"))
        grid(Event("ended", first.fingerprint, "failed", "it broke"))
    out, err = capsys.readouterr()
    assert out == "" and "toy / none / seed 0: failed (it broke)" in err


def test_a_run_that_was_left_unstarted_is_told_with_the_reason(folder, capsys):
    first = next(folder.planned())[1]
    with LiveGrid(folder, slots=1) as grid:
        grid(Event("left", first.fingerprint, "planned", "not started: it starts from run x, which is failed"))
    assert "toy / none / seed 0: planned (not started: it starts from run x" in capsys.readouterr().err


def test_the_status_says_what_waits_for_a_run_that_failed(tmp_path, capsys):
    entries = [
        {"cell": cell, "arm": "none", "seed": 0, "fingerprint": f"{i:012d}", "flops": 1.0, "init_from": source}
        for i, (cell, source) in enumerate((("first", None), ("later", f"{0:012d}")))
    ]
    folder = StudyFolder.create(tmp_path, {"name": "fake", "plan": entries})
    for _, run in folder.planned():
        run.create({})
    print_status(folder)
    assert "not started" not in capsys.readouterr().out
    attempt = claim(folder.run(f"{0:012d}"), "someone")
    assert attempt is not None
    end(folder.run(f"{0:012d}"), attempt, "failed", message="it broke")
    print_status(folder)
    assert f"later/none/0: not started: it starts from run {0:012d}, which is failed" in capsys.readouterr().out


def test_every_state_has_its_own_mark():
    from gatelab.study.ledger import STATES as POSSIBLE

    assert set(STATES) == set(POSSIBLE)
    assert len({mark for mark, _ in STATES.values()}) == len(STATES)


def test_the_status_counts_the_runs_in_each_state(folder, capsys):
    next(folder.planned())[1].mark_done("diverged", {})
    assert print_status(folder) == {"planned": 3, "diverged": 1}
    assert "· planned: 3  ≁ diverged: 1" in capsys.readouterr().out


def test_a_table_in_a_narrow_terminal_breaks_between_words(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    print_records([{"word": "elementwise", "n": 1_234_567, "about": "the attention output of each query head"}])
    lines = plain(capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 40 and len(lines) > 3
    assert " ".join(line[24:].strip() for line in lines[1:]) == "the attention output of each query head"
    assert "elementwise" in lines[1] and "1,234,567" in lines[1]


def test_a_table_in_a_file_has_whole_rows(capsys):
    print_records([{"a": "word " * 60, "b": 0.1234567891, "c": None}], "a title [with brackets]")
    title, head, row = capsys.readouterr().out.splitlines()
    assert title == "a title [with brackets]" and head.split() == ["a", "b", "c"]
    assert row.split() == ["word"] * 60 + ["0.123457"]


def test_no_records_are_no_table(capsys):
    print_records([])
    assert capsys.readouterr().out.strip() == ""


def test_secondary_findings_are_called_exploratory(capsys):
    finding = Finding(
        "toy", "a", "none", "val_loss", "nats", True, "neutral", 1, 0, 0, 0, 0, 0, 0.95, 0, 0, None, None, 0,
        "unclear", "[b]It[/b] may be.",
    )  # fmt: skip
    other = Finding(**{f: getattr(finding, f) for f in finding.__slots__} | {"primary": False, "verdict": "higher"})
    print_findings([finding, other], all_metrics=False)
    assert capsys.readouterr().out.split("\n")[1:3] == ["toy", "  unclear     [b]It[/b] may be."]
    print_findings([finding, other], all_metrics=True)
    assert "  higher      (exploratory) [b]It[/b] may be." in capsys.readouterr().out
    print_findings([finding] * 3 + [other], all_metrics=True, most=2)
    out = capsys.readouterr().out
    assert "effects: 1 of 4 are named; of the others 3 unclear (--all" in out and out.count("may be.") == 1
    print_findings([finding] * 3, all_metrics=False, most=3)
    assert capsys.readouterr().out.count("may be.") == 3


@pytest.mark.parametrize(
    "seconds, words",
    [
        (-3, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90_061, "25 h 1 min"),
    ],
)
def test_durations_are_words(seconds: float, words: str):
    assert duration(seconds) == words


def test_a_terminal_that_cannot_show_a_mark_gets_a_substitute(monkeypatch):
    import sys

    from gatelab import cli

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "argv", ["gatelab", "gates"])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert b"sdpa-headwise" in out.buffer.getvalue() and b"?" in out.buffer.getvalue()
