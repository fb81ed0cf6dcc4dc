"""The command line: a study from the first word to the page, and one clear message for whatever goes wrong."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from command import gatelab as called

from gatelab.cli.base import refusing
from gatelab.config import ConfigError
from gatelab.store import StudyFolder, read_json, write_json

STUDY = """
from gatelab import Arm, BigramBackcopy, ModelConfig, OptimConfig, ProbeConfig, Run, Study, TrainConfig

toy = Run(
    model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu", positions="learned"),
    data=BigramBackcopy(vocab_size=16),
    optim=OptimConfig(lr=1e-2),
    train=TrainConfig(tokens=2 * 16 * 12, batch_size=2, seq_len=16),
    probe=ProbeConfig(times=2, sequences=4, eval_sequences=8),
)
study = Study(
    name="tiny",
    question="Does it run?",
    cells={"toy": toy},
    arms=(Arm("none", {"model.gate": "none"}, "no gate"), Arm("sdpa-headwise", {"model.gate": "sdpa-headwise"})),
    seeds=2,
)
"""


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of `--json`: stdout has one JSON record a line, and nothing else."""
        return [json.loads(line, parse_constant=pytest.fail) for line in self.out.splitlines()]


def gatelab(*words: object) -> Said:
    return Said(*called(*words))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.py"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def first(study: Path) -> tuple[Said, Path]:
    """What `gatelab run` said, and the folder it filled; tests that change one take a copy."""
    out = study.parent / "runs of it"
    return gatelab("run", study, "--out", out, "execution.slots=1"), out


@pytest.fixture
def copy(first: tuple[Said, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(first[1], tmp_path / "copy"))


def runs_in(folder: Path) -> dict[str, Path]:
    return {f"{e['arm']}/{e['seed']}": run.path for e, run in StudyFolder.open(folder).planned()}


def stamps(folder: Path) -> dict[str, int]:
    names = ("done.json", "rows.jsonl", "run.json", "weights.safetensors")
    return {str(p): p.stat().st_mtime_ns for p in folder.glob("runs/*/*") if p.name in names}


def test_a_study_runs_to_its_page(first):
    said, out = first
    assert said.status == 0, said
    assert (out / "report.html").stat().st_size > 10_000
    assert f"the page: {out / 'report.html'}" in said.out
    assert "toy / sdpa-headwise / seed 1: done" in said.err
    assert len(list((out / "runs").iterdir())) == 4


def test_running_again_does_nothing_new(first, study):
    _, out = first
    before = stamps(out)
    said = gatelab("run", study, "--out", out, "--json")
    assert said.status == 0 and stamps(out) == before
    assert [r.get("state") for r in said.records] == ["done"] * 4 + [None]
    assert said.records[-1] == {"page": str(out / "report.html")}
    assert all(len(list((run / "attempts").glob("*.json"))) == 1 for run in runs_in(out).values())


def test_growing_the_grid_runs_only_the_new_cells(copy, study):
    before = stamps(copy)
    said = gatelab("run", study, "seed=0..2", "--out", copy, "execution.slots=1")
    assert said.status == 0, said
    assert {path: stamps(copy)[path] for path in before} == before
    assert sorted(runs_in(copy)) == [f"{arm}/{seed}" for arm in ("none", "sdpa-headwise") for seed in (0, 1, 2)]
    assert said.err.count(": done\n") == 2
    assert {f["n_pairs"] for f in gatelab("find", copy, "--json").records} == {3}


def test_a_run_is_reproduced_by_its_configuration(first, tmp_path):
    _, out = first
    original = runs_in(out)["sdpa-headwise/1"]
    said = gatelab("train", "--config", original / "run.json", "--out", tmp_path / "again", "--json")
    assert said.status == 0, said
    again = tmp_path / "again" / "runs" / original.name
    assert (again / "rows.jsonl").read_bytes() == (original / "rows.jsonl").read_bytes()
    state, *measured = said.records
    assert (state["fingerprint"], state["state"]) == (original.name, "done")
    assert {r["metric"] for r in measured} >= {"val_loss", "first_token_mass", "gate_mean", "loss"}


def test_the_command_in_the_plan_is_one_that_parses(first):
    _, out = first
    command = read_json(out / "study.json")["plan"][0]["command"]
    assert (
        command == f"gatelab train --config '{out}/runs/{runs_in(out)['none/0'].name}/run.json' --out runs/reproduced"
    )


def test_status_shows_every_run(first):
    _, out = first
    shown = gatelab("status", out).out
    assert "✓ done: 4" in shown and "4 runs, each alone" in shown
    records = gatelab("status", out, "--json").records
    assert [(r["arm"], r["seed"], r["state"]) for r in records] == [
        ("none", 0, "done"), ("none", 1, "done"), ("sdpa-headwise", 0, "done"), ("sdpa-headwise", 1, "done"),
    ]  # fmt: skip
    assert all((r["runs_in_group"], r["stacked"]) == (1, False) for r in records)


def test_find_states_the_primary_effects_and_all_on_request(first):
    _, out = first
    primary, everything = gatelab("find", out, "--json").records, gatelab("find", out, "--all", "--json").records
    assert [f["metric"] for f in primary] == ["val_loss", "first_token_mass", "value_drain", "massive_max"]
    assert len(everything) > len(primary) == 4
    assert "(exploratory)" in gatelab("find", out, "--all").out


def test_report_says_where_the_page_is(copy):
    (copy / "report.html").unlink()
    said = gatelab("report", copy)
    assert said.status == 0 and said.out.strip() == str(copy / "report.html")
    assert (copy / "report.html").exists()


def test_logs_prints_what_the_worker_printed(copy):
    (runs_in(copy)["none/1"] / "log.txt").write_text("a line\n")
    assert gatelab("logs", copy, "toy/none/1").out == "a line\n"
    (runs_in(copy)["none/1"] / "log.txt").unlink()
    said = gatelab("logs", copy, "toy/none/1")
    assert said.status == 1 and "has no log yet" in said.err


def test_diff_shows_where_two_runs_differ(first):
    _, out = first
    runs = runs_in(out)
    (record,) = gatelab("diff", runs["none/0"], runs["none/1"], "--json").records
    assert record == {"key": "seed", "left": 0, "right": 1}
    assert "model.gate" in gatelab("diff", runs["none/0"], runs["sdpa-headwise/0"]).out
    assert "are equal" in gatelab("diff", runs["none/0"], runs["none/0"]).out


def test_probe_sees_what_the_last_look_of_the_run_saw(first):
    _, out = first
    run = runs_in(out)["sdpa-headwise/0"]
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    last = [r for r in rows if r["step"] == 12 and r["source"] != "train"]
    probed = gatelab("probe", run, "--json").records
    assert probed == last


def test_retry_plans_a_failed_run_again(copy):
    run = runs_in(copy)["none/1"]
    (run / "done.json").unlink()
    attempt = run / "attempts" / "0001.json"
    write_json(attempt, read_json(attempt) | {"outcome": "failed", "message": "it broke"})
    assert "toy/none/1" in gatelab("status", copy).out and "it broke" in gatelab("status", copy).out
    assert gatelab("retry", copy, "--json").records == [{"fingerprint": run.name, "state": "planned"}]
    assert "no run has failed" in gatelab("retry", copy).out


def test_probe_refuses_a_run_that_has_not_finished(copy):
    run = runs_in(copy)["none/1"]
    (run / "done.json").unlink()
    said = gatelab("probe", run)
    assert said.status == 1 and "has not finished" in said.err


def test_a_plan_is_shown_and_nothing_is_started(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = gatelab("plan", study)
    assert said.status == 0 and "4 runs" in said.out and "nothing was started" in said.out
    assert all(word in said.out for word in ("toy:", "sdpa-headwise", "parameters", "GFLOP"))
    assert not list(tmp_path.iterdir())
    records = gatelab("plan", study, "--json").records
    assert [r["seed"] for r in records] == [0, 1, 0, 1]


def test_rows_of_a_plan_are_whole_lines_where_stdout_is_no_terminal(tmp_path):
    long = tmp_path / "long.py"
    long.write_text(STUDY.replace('Arm("sdpa-headwise"', f'Arm("{"long-" * 30}"'))
    assert any(line.startswith("long-" * 30 + " ") for line in gatelab("plan", long).out.splitlines())


def test_names_with_brackets_are_shown_as_they_are(tmp_path):
    odd = tmp_path / "odd.py"
    odd.write_text(STUDY.replace('{"toy": toy}', '{"[/b] [red]toy": toy}'))
    assert "[/b] [red]toy" in gatelab("plan", odd).out
    plan = gatelab("plan", odd, "--json").records
    StudyFolder.create(tmp_path / "x", {"name": "odd", "plan": plan})
    assert "[/b] [red]toy" in gatelab("status", tmp_path / "x").out


@pytest.mark.parametrize("command", ["gates", "sizes", "probes", "doctor"])
def test_lists_are_records_too(command):
    said = gatelab(command, "--json")
    assert said.status == 0 and len(said.records) > 5
    shown = gatelab(command).out
    assert all(str(next(iter(r.values()))) in shown for r in said.records)


def test_schema_is_json():
    assert set(json.loads(gatelab("schema").out)["properties"]) >= {"model", "data", "optim", "train", "probe", "seed"}


def test_no_finished_run_is_a_page_that_says_so(copy):
    for run in runs_in(copy).values():
        shutil.rmtree(run)
    assert gatelab("report", copy).status == 0
    assert "no pair of runs finished" in gatelab("find", copy).out


@pytest.fixture(scope="module")
def mess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that a user may name by mistake."""
    folder = tmp_path_factory.mktemp("mess")
    (folder / "latin.txt").write_bytes(b"caf\xe9 not utf-8 \xff\xfe")
    (folder / "empty.txt").touch()
    (folder / "short.txt").write_text("two words")
    (folder / "noise.bin").write_bytes(bytes(range(256)) * 9)
    (folder / "list.json").write_text("[1]")
    (folder / "cut.json").write_text('{"model": ')
    (folder / "syntax.py").write_text("def broken(:\n")
    (folder / "nothing.py").write_text("import os\n")
    (folder / "exits.py").write_text("import sys\nsys.exit()\n")
    (folder / "equal.py").write_text(STUDY.replace('"model.gate": "sdpa-headwise"', '"model.gate": "none"'))
    (folder / "typo.py").write_text(STUDY.replace("n_layers", "n_layer"))
    (folder / "follows.py").write_text(STUDY.replace("seeds=2", 'seeds=2, follows=["toy"]'))
    (folder / "circle.py").write_text(STUDY.replace("seeds=2", 'seeds=2, follows={"toy": "toy"}'))
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("precious")
    return folder


MISTAKES = {
    "nonsense": "Unknown command",
    "run": "requires an argument",
    "run no-such-study": "quickstart, sinkless-seeds, sinks-on-text",
    "run {mess}/none.py": "no such file",
    "run {mess}/syntax.py": "line 1: invalid syntax",
    "run {mess}/nothing.py": "defines no `study",
    "run {mess}/exits.py": "calls sys.exit()",
    "run {mess}/equal.py": "is the same run as arm none",
    "run {mess}/typo.py": "did you mean 'n_layers'?",
    "run {study} --out {mess}/full": "is left alone",
    "run {study} --out {mess}/list.json": "is a file",
    "run {study} --out {mess}/list.json/x": "cannot be written",
    "run {study} --out /proc/x": "cannot be written",
    "run {study} --out {mess}/a --executor mars": "expected one of local, ray",
    "run {study} --out {mess}/a --executor slurm": "gatelab submit STUDY --to slurm",
    "run {study} --out {mess}/a --ray-address head:6379": "is for --executor ray",
    "submit {study} --out {mess}/a --to slrm": "expected slurm",
    "submit {study} --out {mess}/a --to slurm --time 1": "--time 1: too short",
    "submit {study} --out {mess}/a --to slurm --gpus 0": "--gpus 0: expected 1 or more",
    "submit {study} --out {mess}/a --to slurm --gpus 1 execution.processes=2": "take --gpus 2",
    "submit {study} --out s3://bucket/x --to slurm --dry-run": "--out s3://bucket/x: Slurm's tasks share a folder",
    "submit s3://bucket/x --to slurm": "gatelab: s3://bucket/x: Slurm's tasks share a folder",
    "submit {finished} --out {mess}/a --to slurm": "leave --out out",
    "submit {finished} --to slurm optim.lr=1": "only execution.* may be set",
    "submit {finished} --to slurm execution.device=cuda": "add --gpus 1",
    "run {study} --out memory://x": "--out memory://x: is no place that several processes share",
    "run {study} --out file:///x": "--out file:///x: is a folder of this machine; name it as one, /x",
    "run {study} --out {mess}/a execution.device=cuda": "no NVIDIA GPU is visible here",
    "run {study} --out {mess}/a --executor ray execution.device=cuda": "no NVIDIA GPU is visible here|Ray is not installed",
    "run {study} --out {mess}/a execution.parallel.tp=2 execution.processes=3": "gatelab: execution.parallel: tp=2 does not make 3",
    "run {study} --out {mess}/a execution.parallel.tp=0": "execution.parallel.tp=0",
    "train data=bigram-backcopy --out {mess}/a execution.device=cuda": "no NVIDIA GPU is visible here",
    "run {study} --out {mess}/a optim.lrr=1": "did you mean 'optim.lr'?",
    "run {study} --out {mess}/a optim.lr=fast": "optim.lr='fast'",
    "run {study} --out {mess}/a optim.lr=-1": "greater than 0",
    "run {study} --out {mess}/a optim.lr=nan": "optim.lr='nan'",
    "run {study} --out {mess}/a optim.lr=1e999": "optim.lr=inf",
    "run {study} --out {mess}/a optim.lr=[1e-3,nan]": "finite",
    "run {study} --out {mess}/a optim.lr=💥": "optim.lr='💥'",
    "run {study} --out {mess}/a optim.lr=[]": "a list needs values",
    "run {study} --out {mess}/a optim.lr=": "the value is missing",
    "run {study} --out {mess}/a optim.lr": "expected key=value",
    "run {study} --out {mess}/a lr=1e-3": "did you mean 'optim.lr'?",
    "run {study} --out {mess}/a optim.betas=[0.9,0.95]": "as in (a,b)",
    "run {study} --out {mess}/a model.gate=spda-headwise": "did you mean 'sdpa'?",
    "run {study} --out {mess}/a model.gate=out-headwise": "impossible",
    "run {study} --out {mess}/a model.gate=None": "did you mean 'none'?",
    "run {study} --out {mess}/a model.n_heads=3 model.n_kv_heads=2": "does not divide",
    "run {study} --out {mess}/a model.n_layers=1000000": "less than or equal to 10000",
    "run {study} --out {mess}/a train.tokens=1e30": "too large",
    "run {study} --out {mess}/a train.batch_size=1000000000": "less than one step",
    "run {study} --out {mess}/a seed=-1": "seed=-1",
    "run {study} --out {mess}/a seed=0..-3": "runs backwards",
    "run {study} --out {mess}/a seed=1-3": "write a range as 1..3, or a list as [1,3]",
    "run {study} --out {mess}/a seed=1...3": "write a range as 1..3",
    "run {study} --out {mess}/a seed=0,1": "seed=0,1: write a list as [0,1], or a range as 0..1",
    "run {study} --out {mess}/a seed=(0,2,3)": "seed=(0,2,3): write a list as [0,2,3]",
    "run {study} --out {mess}/a cell=zz": "as in 'cell=toy*'",
    "run {mess}/list.json": "is no Python file",
    "run {study} --out {mess}/a seed=0..99999999": "at most 10000",
    "run {study} --out {mess}/a seed=[1,1]": "there twice",
    "run {study} --out {mess}/a execution.slots=[1,2]": "no axis",
    "run {study} --out {mess}/a execution.processes=3": "gatelab: 2 of 2 arms: train.batch_size=2 has fewer sequences than 3",
    "run {study} --out {mess}/a execution.parallel.tp=3": "gatelab: 2 of 2 arms: execution.parallel.tp=3 does not divide",
    "run {study} --out {mess}/a execution.parallel.ep=2": "2 of 2 arms: execution.parallel.ep=2 shares experts",
    "run {study} --out {mess}/a execution.parallel.tpp=2": "did you mean 'parallel.tp'?",
    "submit {study} --to slurm --out {mess}/a execution.parallel.tp=3": "gatelab: 2 of 2 arms: execution.parallel.tp=3",
    "run {study} --out {mess}/a data.paths={mess}/none.txt": "no such key",
    "run {study} --out {mess}/a data=text data.paths={mess}/none.txt": "no such file",
    "run {study} --out {mess}/a data=text data.paths={mess}/latin.txt": "UTF-8",
    "run {study} --out {mess}/a data=text data.paths={mess}/empty.txt": "no text",
    "run {study} --out {mess}/a data=text data.paths={mess}/short.txt": "give more text",
    "run {study} --out {mess}/a data=text data.paths={mess}/noise.bin": "noise.bin",
    "run {study} --out {mess}/a data=text data.paths={mess}/short.txt data.tokenizer={mess}/list.json": "not a tokenizer.json",
    "plan {study} --out {mess}/a": "Unknown option",
    "plan {mess}/syntax.py": "line 1: invalid syntax",
    "train model.d_model=0": "model.d_model=0",
    "train model.gate=[none,sdpa-headwise]": "one run takes one value",
    "train optim.lr=fast seed=-3 execution.slots=-1": "execution.slots=-1",
    "train model.gate=out-headwise": "gatelab: model.gate: out-headwise is impossible",
    "train model.kv_experts=v-2top8": "gatelab: model.kv_experts='v-2top8': 8 of 2 experts",
    "train model.moe.n_experts=4 model.moe.d_expert=8": "model.moe.top_k: required",
    "train model.moe.n_experts=4 model.moe.top_k=9 model.moe.d_expert=8": "take top_k from 1 to 4",
    "train model.preset=qwen3-nxt": "did you mean 'qwen3-next'?",
    "train model.preset=paper/more-experts": "this model has none",
    "train model.arch=encoder objective=continuation": "which takes 'masked'",
    "train model.n_encoder_layers=2": "belongs to arch=encoder-decoder",
    "train model.gate=sdpa-headwise-first:9999": "take fewer",
    "train model.rope_scaling=yarn": "yarn without factor",
    "train model.window=0": "model.window=0",
    "train model.registers=4 data.document_mask=true": "leave one of the two out",
    "train optim.qk_clip=100 model.qk_norm=rms": "leave one of the two out",
    "train data=bigram-backcopy train.tokens=0 init_from=abcdefabcdef": "holds no finished run of this name",
    "sizes paper/1.7": "did you mean 'paper/1.7b-",
    "sizes 1m model.gate=[none,sdpa-headwise]": "one size takes one value",
    "gates headwise/g1": "neither a preset",
    "gates paper/g1": "paper/g1-headwise",
    "plan {mess}/follows.py": "follows=['toy']: expected cells",
    "plan {mess}/circle.py": "goes on from itself",
    "train --config {mess}/none.json": "no such file",
    "train --config {mess}/cut.json": "not readable as JSON",
    "train --config {mess}/list.json": "holds a list",
    "train --config {mess}/full": "is a folder; name a run.json",
    "train --config {finished}/study.json": "is a whole study's; name a run.json",
    "status {mess}/none": "no such folder",
    "status {mess}/full": "holds no study",
    "status {mess}/list.json": "holds no study",
    "report {mess}/full": "holds no study",
    "find {mess}/none": "no such folder",
    "retry {mess}/none": "no such folder",
    "logs {mess}/full x": "holds no study",
    "logs {finished}": "`gatelab logs --help` says what it takes",
    "logs {finished} x": "names 0 runs",
    "logs {finished} toy/none/9": "such as toy/none/0",
    "diff x y": "no such folder",
    "diff {finished} {finished}": "is a whole study",
    "probe {mess}/none": "no such folder",
    "probe {mess}/full": "holds no run",
    "probe {finished}": "is a whole study",
    "probe {run} --length 0": "train.seq_len=0",
    "probe {run} --length many": "many",
    "probe {run} --length 17": "learned positions",
    "evaluate {mess}/full --tasks hellaswag": "Unknown command",
}  # fmt: skip


def test_an_error_that_names_no_file_is_told_in_its_own_words() -> None:
    with pytest.raises(ConfigError, match=r"^Access Denied$"), refusing():
        raise PermissionError("Access Denied")


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_in_one_message(line: str, mess: Path, study: Path, first, monkeypatch):
    monkeypatch.chdir(mess)
    monkeypatch.setenv("GATELAB_CACHE", str(mess / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = {"mess": mess, "study": study, "finished": first[1], "run": runs_in(first[1])["none/0"]}
    said = gatelab(*(word.format(**names) for word in line.split(" ")))
    # What plans refuses before anything starts: with one status, whichever part finds it.
    starts = line.split(" ")[0] in ("run", "submit", "train", "plan")
    assert said.status in ((2,) if starts else (1, 2)) and said.out == ""
    assert any(part in said.err for part in MISTAKES[line].split("|")), said.err
    assert all(text.startswith("gatelab: ") for text in said.err.splitlines()) and len(said.err.splitlines()) < 5
    assert not {"a", "runs", "s3:", "memory:"} & set(os.listdir(mess))
    assert (mess / "full" / "thesis.txt").read_text() == "precious"


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path, Path], None]] = {
    "study.json: not readable": lambda folder, run: half(folder / "study.json"),
    "study.json: missing": lambda folder, run: write_json(folder / "study.json", {"schema": 1, "name": "tiny"}),
    "metrics, arms, cells": lambda folder, run: write_json(
        folder / "study.json", {"schema": 1, "name": "tiny", "plan": []}
    ),
    "another version": lambda folder, run: write_json(
        folder / "study.json", read_json(folder / "study.json") | {"schema": 2}
    ),
}


@pytest.mark.parametrize("says", DAMAGE)
def test_a_damaged_study_is_named_and_left_as_it_is(says: str, copy: Path, study: Path):
    DAMAGE[says](copy, runs_in(copy)["none/0"])
    # A cache is made again from what is there; nothing else is.
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "rows.parquet"}
    for command in ("find", "report"):
        said = gatelab(command, copy)
        assert said.status == 1 and says in said.err and len(said.err.splitlines()) == 1
    if says != "metrics, arms, cells":
        assert (gatelab("status", copy).status, gatelab("run", study, "--out", copy).status) == (1, 2)
    assert {p: p.read_bytes() for p in before} == before


# What is done to one finished run: words of what is then said, and the file whose removal mends it.
OF_A_RUN: dict[str, tuple[Callable[[Path], object], str]] = {
    "done.json: not readable": (lambda run: half(run / "done.json"), "done.json"),
    "run.json: not readable": (lambda run: half(run / "run.json"), ""),
    "run.json: is missing": (lambda run: (run / "run.json").unlink(), ""),
    "rows.jsonl: has": (lambda run: half(run / "rows.jsonl"), "done.json"),
}


@pytest.mark.parametrize("says", OF_A_RUN)
def test_a_damaged_run_is_left_out_and_named_and_the_others_go_on(says: str, copy: Path, study: Path):
    run, other = (runs_in(copy)[name] for name in ("none/0", "none/1"))
    rows = (run / "rows.jsonl").read_bytes()
    damage, to_remove = OF_A_RUN[says]
    damage(run)
    assert "is damaged" in str(gatelab("find", copy, "--json").records[0]["notes"])
    (other / "done.json").unlink()
    said = gatelab("run", copy)
    assert said.status == 1 and "Traceback" not in said.err and (other / "done.json").exists()
    page = (copy / "report.html").read_text()
    assert f"1 run is left out, since a file of it is damaged: toy/none/0 ({run.name})" in page
    for shown in (said, gatelab("status", copy)):
        assert "! damaged: 1" in shown.out and f"none/0 ({run.name}): damaged: {run}" in shown.out and says in shown.out
    assert {r["fingerprint"]: r["state"] for r in gatelab("status", copy, "--json").records}[run.name] == "damaged"
    said = gatelab("retry", copy)
    assert said.status == 0 and "no run has failed" in said.out
    # As the message says: without a file, or with the study itself.
    if to_remove:
        (run / to_remove).unlink()
    assert gatelab("run", study, "--out", copy).status == 0
    assert (run / "rows.jsonl").read_bytes() == rows and "damaged" not in gatelab("status", copy).out


def test_an_attempt_of_a_newer_gatelab_is_one_sentence_before_anything_starts(copy: Path, study: Path):
    run, other = (runs_in(copy)[name] for name in ("none/0", "none/1"))
    for path in (run, other):
        (path / "done.json").unlink()
    write_json(run / "attempts/0001.json", read_json(run / "attempts/0001.json") | {"outcome": "preempted"})
    for words, status in (
        (("status", copy), 1),
        (("run", copy), 2),
        (("run", study, "--out", copy), 2),
        (("retry", copy), 1),
    ):
        said = gatelab(*words)
        assert said.status == status and len(said.err.splitlines()) == 1, said.err
        assert (
            "0001.json: ended as 'preempted', which this version of Gatelab does not know; go on with the version"
            in said.err
        )
    assert not (other / "done.json").exists()


def test_a_configuration_that_was_edited_does_not_fit_its_weights(copy):
    run = runs_in(copy)["none/0"]
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"d_model": 16', '"d_model": 32'))
    said = gatelab("probe", run)
    assert said.status == 1 and "belongs to another model" in said.err
    half(run / "run.json")
    said = gatelab("probe", run)
    assert said.status == 1 and "run.json: not readable as JSON" in said.err


@pytest.mark.parametrize("damage", [half, Path.unlink])
def test_weights_that_are_cut_or_gone_are_named(copy, damage):
    run = runs_in(copy)["none/0"]
    damage(run / "weights.safetensors")
    said = gatelab("probe", run)
    assert said.status == 1 and "weights.safetensors" in said.err and len(said.err.splitlines()) == 1


def test_garbage_among_the_rows_is_skipped(copy):
    before = gatelab("find", copy, "--json").records
    with open(runs_in(copy)["none/0"] / "rows.jsonl", "ab") as f:
        f.write(b'garbage\n\xff\xfe\n[1]\n{"run": 1}\n{"run": "')
    assert gatelab("find", copy, "--json").records == before


def test_a_run_whose_rows_are_gone_is_named_in_the_findings(copy):
    for name in ("rows.jsonl", "rows.parquet"):
        (runs_in(copy)["none/0"] / name).unlink(missing_ok=True)
    assert "seed 0 of none" in str(gatelab("find", copy, "--json").records[0]["notes"])


def test_an_interrupt_is_answered_with_how_to_continue(monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gatelab.lab.plan", interrupt)
    said = gatelab("run", "quickstart", "--out", "nowhere")
    assert said.status == 130 and "the same command continues" in said.err


def test_a_thousand_mistakes_are_not_a_thousand_lines(study):
    said = gatelab("plan", study, "train.seq_len=100..999")
    assert said.status == 2 and len(said.err.splitlines()) == 21 and said.err.rstrip().endswith("more")


def process(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gatelab.cli", *map(str, words)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, check=False, **options)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    real = metadata.requires("gatelab")
    names = {"duckdb": "duckdb", "vl_convert": "vl-convert-python", "lm_eval": "lm-eval"}
    assert all(any(line.startswith(name) for line in real) for name in names.values())
    for module, package in names.items():

        def lacks(*_, module=module, **__):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

        monkeypatch.setattr("gatelab.cli.app", lacks)
        said = gatelab("find", "x")
        assert (said.status, said.out) == (1, "")
        assert said.err == f"gatelab: {module} is not installed here, and this needs it: pip install {package}\n"
    for of_one_that_is_there in ("gatelab.none", "duckdb.none"):
        monkeypatch.setattr(
            "gatelab.cli.app", lambda *_, name=of_one_that_is_there, **__: importlib.import_module(name)
        )
        with pytest.raises(ModuleNotFoundError):
            gatelab("find", "x")


def test_where_nothing_says_what_the_package_needs_the_module_that_is_not_there_is_told_as_it_is(monkeypatch):
    def nothing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    def lacks(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'duckdb'", name="duckdb")

    monkeypatch.setattr(metadata, "requires", nothing)
    monkeypatch.setattr("gatelab.cli.app", lacks)
    with pytest.raises(ModuleNotFoundError, match="duckdb") as told:
        gatelab("find", "x")
    assert not isinstance(told.value, metadata.PackageNotFoundError) and told.value.__context__ is None


@pytest.mark.parametrize("module", ["gatelab", "gatelab.cli"])
def test_the_package_is_run_as_the_command(module: str):
    done = subprocess.run([sys.executable, "-m", module, "gates", "nope"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr.startswith("gatelab: 'nope': neither a preset")


def test_the_command_ends_with_its_status_and_no_traceback():
    done = process("run", "quikstart", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gatelab: no study 'quikstart'") and len(done.stderr.splitlines()) == 1


def test_no_words_show_the_commands():
    done = process(stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "") and "Usage: gatelab" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_behind_stdout_is_said():
    with open("/dev/full", "w") as full:
        done = process("schema", stdout=full)
    assert done.returncode == 1
    assert (len(done.stderr.splitlines()) == 1 and "disk is full" in done.stderr) or "No space left" in done.stderr


def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = process("schema", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
