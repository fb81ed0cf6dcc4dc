"""Longer contexts: the stages, runs of another study that are taken up by their names, and the commands of the study's text."""

import shlex
import shutil
from pathlib import Path

import pytest
import tiny

from gatelab import lab
from gatelab.cli import _status
from gatelab.config import Execution, override
from gatelab.config.grid import parse_assignments
from gatelab.studies import paper_long_context, text_longer_context, text_rates, text_trend
from gatelab.studies.paper_long_context import FOLLOWS, stages
from gatelab.study.study import Arm, Study, load_study

ARMS = (Arm("none", {"model.gate": "none"}), Arm("gated", {"model.gate": "sdpa-headwise"}))


def commands() -> list[list[str]]:
    """The lines of the study's text that are commands of gatelab, with its shell variables put in."""
    lines = [line.strip() for line in text_longer_context.__doc__.splitlines() if line.startswith("    ")]
    shell = dict(line.split("=", 1) for line in lines if line.startswith(("ask=", "data=")))
    out = []
    for line in (line for line in lines if line.startswith("gatelab ")):
        for name, value in shell.items():
            line = line.replace(f"${name}", value.strip('"'))
        out.append(shlex.split(line))
    return out


def program() -> str:
    """What its text gives to `python -c`."""
    return text_longer_context.__doc__.partition('python -c "')[2].partition('"')[0].replace("\\\n", "")


def test_it_goes_on_from_the_rates_on_text_at_four_times_and_stretches_to_sixteen() -> None:
    study = text_longer_context.study
    short, long, stretched = study.cells.values()
    assert short == text_rates.study.cells["prose lr0.001"] and study.match_unit == text_rates.study.match_unit
    assert [a.name for a in study.arms] == ["none", "g1-headwise", "g1-elementwise"] and len(study.seed_values) == 3
    assert [run.train.seq_len for run in study.cells.values()] == [1024, 4096, 16_384]
    assert (short.model.rope_theta, long.model.rope_theta, stretched.train.tokens) == (1e4, 1e6, 0)
    assert long.train.tokens_per_step == short.train.tokens_per_step and long.train.tokens == short.train.tokens / 10
    yarn = stretched.model.rope_scaling
    assert (yarn.kind, yarn.factor, yarn.original_seq_len, stretched.model.rope_theta) == ("yarn", 4.0, 4096, 1e6)
    assert study.follows == {"long": "short", "stretched": "long"}
    other = text_longer_context.recipe(3e-4)
    assert other.cells["short"] == text_rates.study.cells["prose lr0.0003"] and other.cells[
        "long"
    ].optim.lr == pytest.approx(3e-5)


def test_the_papers_recipe_is_as_it_was() -> None:
    short, long, stretched = paper_long_context.study.cells.values()
    assert [run.train.seq_len for run in (short, long, stretched)] == [4096, 32_768, 131_072]
    assert (short.optim.lr, long.optim.lr, long.train.batch_size) == (4.5e-3, 4.5e-4, 256)
    assert stretched.model.rope_scaling.factor == 4 and stretched.train.tokens == 0


def test_the_trend_is_none_and_elementwise_at_126_million_weights_with_two_seeds() -> None:
    study = text_trend.study
    (run,) = study.cells.values()
    assert [a.name for a in study.arms] == ["none", "sdpa-elementwise"] and study.seeds == 2
    assert "a trend" in text_trend.__doc__ and run.train.tokens == text_rates.study.cells["prose lr0.001"].train.tokens


def test_its_run_command_is_one(tmp_path: Path) -> None:
    (words,) = [c[2:] for c in commands() if c[1] == "run"]
    study = load_study(words[0]).changed(parse_assignments(words[1:]))
    assert {run.data.paths for run in study.cells.values()} == {("a.bin.xz", "b.bin.xz")}
    assert {run.data.tokenizer for run in study.cells.values()} == {"tokenizer.json"}


def test_its_evaluations_are_of_every_stage_and_lack_nothing_but_the_run(tmp_path, capsys) -> None:
    pytest.importorskip("transformers")
    books = tmp_path / "books"
    books.mkdir()
    (books / "one.txt").write_text("a gate may close. " * 10)
    asked = [c for c in commands() if c[1] == "eval"]
    assert [c[c.index("--lengths") + 1] for c in asked] == ["1024", "1024,4096", "1024,4096,16384"]
    for words in asked:
        assert set(words[words.index("--tasks") + 1].split(",")) == {
            "gatelab/position_loss", "gatelab/needle", "gatelab/multikey", "gatelab/select",
        }  # fmt: skip
        words = [str(books) if w == "BOOKS" else w for w in words[1:]]
        assert _status(words) != 0
        said = capsys.readouterr().err
        assert "RUN" in said and not any(f"{flag}:" in said for flag in ("--tasks", "--lengths", "--text", "--limit"))


def test_the_plan_that_runs_are_copied_into_is_made_by_its_own_line(tmp_path, monkeypatch) -> None:
    made = {}
    monkeypatch.setattr(lab, "plan", lambda study, words: (study, words))
    monkeypatch.setattr(lab, "save_plan", lambda planned, out: made.update({out: planned}))
    monkeypatch.setattr("sys.argv", ["-c", "data.paths=a.bin.xz,b.bin.xz"])
    exec(program(), {})
    assert made == {
        "runs/text-longer-context": ("text-longer-context", parse_assignments(["data.paths=a.bin.xz,b.bin.xz"]))
    }


def test_runs_of_another_study_are_taken_up_and_gone_on_from(tmp_path: Path) -> None:
    base = tiny.run(model=tiny.model(positions="rope", max_seq_len=None))
    execution = Execution(device="cpu", slots=1)
    first, _ = lab.run(
        Study("rates", "?", {"a": base}, ARMS, seeds=1, match=None, execution=execution), tmp_path / "rates"
    )
    n = base.train.seq_len
    cells = stages(base, tokens=8 * n, lengths=(4, 16), batch_tokens=8 * n, lr=1e-4)
    cells = {name: override(run, {"probe.sequences": 1, "probe.eval_sequences": 1}) if name != "short" else run
             for name, run in cells.items()}  # fmt: skip
    longer = Study("longer", "?", cells, ARMS, seeds=1, match=None, follows=FOLLOWS, execution=execution)
    out = tmp_path / "longer"
    for _, run in lab.save_plan(lab.plan(longer), out).planned():
        if (first.path / "runs" / run.path.name).exists():
            shutil.copytree(first.path / "runs" / run.path.name, run.path, dirs_exist_ok=True)
    before = {run.path.name: run.rows_path.read_bytes() for _, run in first.planned()}
    folder, summary = lab.run(longer, out)
    assert summary.is_complete
    runs = {(e["cell"], e["arm"]): (e, run) for e, run in folder.planned()}
    for arm in ("none", "gated"):
        entry, run = runs["short", arm]
        assert run.rows_path.read_bytes() == before[run.path.name], "it was not run again"
        assert runs["long", arm][0]["init_from"] == entry["fingerprint"]
