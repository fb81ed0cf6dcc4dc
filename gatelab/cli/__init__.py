"""The command line: parsing only. Exit status 0: done; 1: something asked for could not be done; 2: usage.

Every command imports what it needs when it runs, so that `--help` and `status` answer at once.
"""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import CycloptsError, Parameter

from .base import Json, app, print_json, said, tell
from .bench import bench as bench_command
from .probe import probe as probe_command

app.command(bench_command)
app.command(probe_command)
_MOST_LINES = 20  # of one error; a grid can be wrong in thousands of cells


@app.command
def run(study: str, *assignments: str, out: str | None = None, executor: str = "local", json_: Json = False) -> int:
    """Carry out a study: everything that is not done yet. Started again, it continues.

    Parameters
    ----------
    study:
        A built-in study (quickstart) or a Python file that defines `study`.
    assignments:
        key=value words: model.gate=[none,sdpa-headwise] optim.lr=1e-3 seed=0..4 data.paths=FOLDER execution.slots=2
    out:
        The study's folder; runs/STUDY unless stated.
    executor:
        Where the runs are carried out: local.
    json_:
        One JSON record a line on stdout and nothing else.
    """
    from .. import lab
    from ..config import parse_assignments
    from ..study.drive import drive
    from ..terminal import LiveGrid, print_findings, print_status

    lab.check_executor(executor)
    planned = lab.plan(study, parse_assignments(assignments))
    execution = planned.study.execution
    folder = lab.save_plan(planned, out or f"runs/{planned.study.name}")
    entries = planned.entries(folder.path)
    tell(f"{planned.study.name}: {len(entries)} runs in {folder.path}; Ctrl-C is safe, the same command continues")
    with lab.open_executor(execution, executor) as workers, LiveGrid(folder, workers.slots) as grid:
        summary = drive(folder, workers, execution, entries=entries, on_event=grid)
    analysis = lab.analyse(folder)
    page = lab.report(folder, analysis)
    if json_:
        print_json([{"fingerprint": f, "state": s} for f, s in summary.states.items()] + [{"page": str(page)}])
    else:
        print_status(folder)
        print_findings(analysis.findings, all_metrics=False)
        print(f"\nthe page: {page}")
    if summary.halted:
        tell(summary.halted)
    if summary.elsewhere:
        tell(f"{len(summary.elsewhere)} runs are being carried out by another process; run again for the whole page")
    if not summary.is_complete:
        tell(
            f"some runs did not finish; `gatelab status {folder.path}` says why, `gatelab retry {folder.path}` tries again"
        )
    return 0 if summary.is_complete else 1


@app.command
def plan(study: str, *assignments: str, json_: Json = False) -> int:
    """Say what a study would do: runs, parameters, tokens, operations, memory. Nothing is started.

    Parameters
    ----------
    study:
        A built-in study or a Python file.
    assignments:
        key=value words, as for `run`.
    json_:
        One JSON record a run.
    """
    from .. import lab
    from ..config import parse_assignments
    from ..terminal import print_records

    planned = lab.plan(study, parse_assignments(assignments))
    entries = planned.entries(Path("runs") / planned.study.name)
    if json_:
        print_json(entries)
        return 0
    print(f"{planned.study.name}: {planned.study.question}")
    for cell, source in planned.sources.items():
        arms = {e["arm"]: _plan_record(e) for e in entries if e["cell"] == cell}
        print_records(list(arms.values()), f"\n{cell}: {source.description}")
    total = sum(e["flops"] for e in entries)
    print(
        f"\n{len(entries)} runs ({len(planned.study.seed_values)} seeds each), {total / 1e12:.3g} TFLOP of training; "
        "nothing was started"
    )
    return 0


def _plan_record(entry: dict[str, Any]) -> dict[str, Any]:
    """A run's row of the plan; `over` are its parameters minus the baseline's, `MiB` what its training state takes."""
    return {
        "arm": entry["arm"],
        "parameters": entry["n_parameters"],
        "over": entry["remainder"],
        "d_ff": entry["d_ff"],
        "steps": entry["steps"],
        "tokens": entry["tokens"],
        "MiB": round(entry["state_bytes"] / 2**20, 1),
        "GFLOP": round(entry["flops"] / 1e9),
    }


@app.command
def status(folder: Path, *, json_: Json = False) -> int:
    """Show how a study's runs stand.

    Parameters
    ----------
    folder:
        The study's folder.
    json_:
        One JSON record a run.
    """
    from ..store import StudyFolder
    from ..study.ledger import state_of

    there = StudyFolder.open(folder)
    if json_:
        print_json(
            [
                {k: e[k] for k in ("cell", "arm", "seed", "fingerprint")} | {"state": state_of(r)}
                for e, r in there.planned()
            ]
        )
        return 0
    from ..terminal import print_status

    print_status(there)
    return 0


@app.command
def logs(folder: Path, run_name: str) -> int:
    """Print what a run's workers printed.

    Parameters
    ----------
    folder:
        The study's folder.
    run_name:
        The run: the start of its fingerprint, or cell/arm/seed.
    """
    from ..store import StoreError, StudyFolder

    path = StudyFolder.open(folder).find(run_name).path / "log.txt"
    if not path.exists():
        raise StoreError(f"{run_name}: has no log yet; it has not been started")
    print(path.read_text(encoding="utf-8", errors="replace"), end="")
    return 0


@app.command
def retry(folder: Path, *, json_: Json = False) -> int:
    """Plan the runs that failed, ran out of memory, timed out or were lost again; `run` then resumes them.

    Parameters
    ----------
    folder:
        The study's folder.
    json_:
        One JSON record a run that was planned again.
    """
    from ..store import StudyFolder
    from ..study.drive import retry as plan_again

    there = StudyFolder.open(folder)
    again = plan_again(there)
    if json_:
        print_json([{"fingerprint": f, "state": "planned"} for f in again])
    elif again:
        print(f"{len(again)} runs are planned again: {', '.join(again)}; the same `gatelab run …` command starts them")
    else:
        print("no run has failed, run out of memory, timed out or been lost")
    return 0


@app.command
def find(
    folder: Path, *, all_: Annotated[bool, Parameter(name="--all", negative="")] = False, json_: Json = False
) -> int:
    """State a study's effects, with intervals and q-values.

    Parameters
    ----------
    folder:
        The study's folder.
    all_:
        The exploratory metrics too.
    json_:
        One JSON record an effect.
    """
    from dataclasses import asdict

    from .. import lab
    from ..store import StudyFolder
    from ..terminal import print_findings

    findings = lab.analyse(StudyFolder.open(folder)).findings
    if json_:
        print_json([asdict(f) for f in findings if f.primary or all_])
    else:
        print_findings(findings, all_metrics=all_)
    return 0


@app.command
def report(folder: Path) -> int:
    """Write the study's page (report.html) and its CSV files anew.

    Parameters
    ----------
    folder:
        The study's folder.
    """
    from .. import lab
    from ..store import StudyFolder

    there = StudyFolder.open(folder)
    print(lab.report(there, lab.analyse(there)))
    return 0


@app.command
def diff(left: Path, right: Path, *, json_: Json = False) -> int:
    """Show where two runs' configurations differ.

    Parameters
    ----------
    left:
        A run's folder.
    right:
        Another run's folder.
    json_:
        One JSON record a key.
    """
    from .. import lab
    from ..terminal import print_records

    a, b = (lab.flat(lab.find_run(p).config()) for p in (left, right))
    records = [{"key": k, "left": a.get(k), "right": b.get(k)} for k in sorted(a | b) if a.get(k) != b.get(k)]
    if json_:
        print_json(records)
    elif records:
        shown = [{k: json.dumps(v, ensure_ascii=False) if k != "key" else v for k, v in r.items()} for r in records]
        print_records(shown, f"left: {left}\nright: {right}")
    else:
        print("the two configurations are equal")
    return 0


@app.command
def train(*assignments: str, config: Path | None = None, out: str | None = None, json_: Json = False) -> int:
    """Train one run. Started again with the same words, it continues.

    Parameters
    ----------
    assignments:
        key=value words: model.gate=sdpa-headwise data.paths=FOLDER train.tokens=1000000
    config:
        A run.json to start from: the run of a study, to reproduce it.
    out:
        Where the run's folder goes; runs/train unless stated.
    json_:
        One JSON record a measurement at the last step.
    """
    from .. import lab
    from ..config import parse_assignments
    from ..study.drive import drive
    from ..terminal import LiveGrid, print_records

    planned = lab.plan(lab.single(parse_assignments(assignments), config))
    execution = planned.study.execution
    folder = lab.save_plan(planned, out or "runs/train", beside=config and config.parent.parent)
    entries = planned.entries(folder.path)
    fingerprint = entries[0]["fingerprint"]
    tell(f"{entries[0]['n_parameters']:,} parameters, {entries[0]['steps']} steps, in {folder.run(fingerprint).path}")
    with lab.open_executor(execution) as workers, LiveGrid(folder, workers.slots) as grid:
        summary = drive(folder, workers, execution, entries=entries, on_event=grid)
    rows = lab.final_rows(folder, fingerprint)
    if json_:
        print_json(rows)
    else:
        print_records(said(rows), f"{summary.states[fingerprint]}: {folder.run(fingerprint).path}")
    return 0 if summary.is_complete else 1


@app.command
def gates(name: str | None = None, /, *, json_: Json = False) -> int:
    """List the gates: sites, words, activations, sources, normalisers, presets, and what cannot be.

    Parameters
    ----------
    name:
        One of them in detail: a preset (qwen3-next), a gate (sdpa-headwise, or several joined by +), or any word listed.
    json_:
        One JSON record an entry, with its kind.
    """
    from .. import catalogue
    from ..terminal import print_records

    sections = catalogue.gate_catalogue() if name is None else {}
    records = [r for section in sections.values() for r in section] if name is None else catalogue.gate_detail(name)
    if json_:
        print_json(records)
        return 0
    if name is None:
        print(
            "y ⊙ act(z), z = x W_g: a gate is site-granularity, then words in any order, as in sdpa-elementwise-silu-add"
        )
        print("weights: a layer, with d = d_model, H heads, G key/value heads, K = head_dim; a number: 24 layers,")
        print("d = 2048, H = 32, G = 4, K = 128 (arXiv 2505.06708)")
        for title, section in sections.items():
            columns = [key for key in section[0] if key != "kind"]
            if section[0]["kind"] == "preset":
                columns = ["name", "formula", "adds", "weights"]
            shown = [{key: r[key] for key in columns} for r in section]
            if section[0]["kind"] == "preset":
                # Nine digits and their commas leave no room in 80 columns.
                shown = [r | {"weights": _short(r["weights"])} for r in shown]
            print_records(shown, f"\n{title}")
        known = [{key: r[key] for key in ("name", "results", "source")} for r in records if r["kind"] == "preset"]
        print_records(known, "\nwhat is printed of the presets, and where")
        print(
            "\none in detail: gatelab gates paper/g1-headwise; in a run: gatelab train model.preset=paper/g1-headwise"
        )
        return 0
    for record in records:
        shapes = record.pop("parameters", {})
        shown = {key: f"{v:,}" if isinstance(v, int) else str(v) for key, v in record.items() if v not in ("", None)}
        print_records([{"": key, " ": value} for key, value in shown.items()])
        if shapes:
            print_records([{"parameter": n, "shape": " × ".join(map(str, s))} for n, s in shapes.items()])
    return 0


@app.command
def probes(*, json_: Json = False) -> int:
    """List the probes and what they measure.

    Parameters
    ----------
    json_:
        One JSON record a metric.
    """
    from .. import catalogue
    from ..terminal import print_records

    records = catalogue.probe_records()
    print_json(records) if json_ else print_records(records, "docs/metrics.md defines each metric")
    return 0


@app.command
def interventions(*, json_: Json = False) -> int:
    """List the edits that `gatelab probe --intervene` makes: WORD[@key or site][=value][:l18h8,l19][~dose].

    Parameters
    ----------
    json_:
        One JSON record a kind.
    """
    from .. import catalogue
    from ..terminal import print_records

    records = catalogue.intervention_records()
    if json_:
        print_json(records)
    else:
        print_records(
            records, "WORD[@key or site][=value][:layers and heads][~dose], such as zero-value@first:l18h8~0.5"
        )
    return 0


@app.command
def sizes(name: str | None = None, /, *assignments: str, json_: Json = False) -> int:
    """List the ladder of model sizes, or show one, and what a change of it adds.

    Parameters
    ----------
    name:
        One size, such as paper/1.7b-28l.
    assignments:
        key=value words, to see what they add and the d_ff that takes it away again: model.gate=sdpa-elementwise
    json_:
        One JSON record a size, with all its numbers.
    """
    from .. import catalogue
    from ..config import ConfigError, parse_assignments
    from ..terminal import print_records

    given = parse_assignments(assignments)
    if many := [path for path, values in given.items() if len(values) > 1]:
        raise ConfigError([f"{path}: one size takes one value; ask once for each" for path in many])
    records = catalogue.size_records(name, {path: values[0] for path, values in given.items()})
    if json_:
        print_json(records)
        return 0
    rows = [_size_row(r) for r in records]
    print("GFLOP: of training, a token at the size's context; GiB: float32 weights, gradients and")
    print("AdamW's moments; act. and logits: GiB that one sequence keeps in bfloat16, an estimate")
    if name is None:
        words, counts, sizes_ = ("name", "arch", "layers"), ("weights", "active"), ("GFLOP", "GiB", "act.")
        print_records(
            [
                {k: r[k] for k in words} | {k: _short(r[k]) for k in counts} | {k: float(f"{r[k]:.3g}") for k in sizes_}
                for r in rows
            ]
        )
        print("all numbers of one: gatelab sizes paper/1.7b-28l; with a change: model.gate=sdpa-elementwise behind it")
    else:
        # A size a column: side by side, what a change of it does can be read in a line.
        keys = [key for key in rows[0] if key != "name"]
        print_records([{"": key} | {r["name"]: _number(r[key]) for r in rows} for key in keys])
        first = records[0]
        print(f"{first['what']} ({first['source']})")
        if printed := first["printed"]:
            active = f", {printed['n_active']:,.0f} active" if printed["n_active"] else ""
            beyond = "".join(f"; {what}: {n:+,}" for what, n in first["differences"].items())
            print(f"printed there: {printed['n_parameters']:,.0f}{active}{beyond}")
    return 0


def _short(n: int) -> str:
    """A count in four digits: 201.3M; below a million as it is."""
    return f"{n / 1e9:.4g}B" if n >= 10**9 else f"{n / 1e6:.4g}M" if n >= 10**6 else f"{n:,}"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else value


def _size_row(record: dict[str, Any]) -> dict[str, Any]:
    """A size as shown: heads as query/kv×channels; `over` are weights beyond the unchanged size's."""
    r, encoder = record, record["n_encoder_layers"]
    return {
        "name": r["name"],
        "arch": r["arch"],
        "layers": f"{encoder}+{r['n_layers']}" if encoder else str(r["n_layers"]),
        "width": r["d_model"],
        "heads": f"{r['n_heads']}/{r['n_kv_heads']}×{r['head_dim']}",
        "d_ff": r["d_ff"],
        "context": r["seq_len"],
        "weights": r["n_parameters"],
        "active": r["n_active"],
        "GFLOP": round(r["flops_per_token"] / 1e9, 3),
        "GiB": round(r["state_bytes"] / 2**30, 2),
        "act.": round(r["activation_bytes"] / 2**30, 2),
        "logits": round(r["logit_bytes"] / 2**30, 2),
        "over": r["over"],
    }


@app.command
def schema() -> int:
    """Print the JSON Schema of a run, for editors and checks."""
    from ..config import Run

    print(json.dumps(Run.model_json_schema(), indent=1))
    return 0


@app.command
def doctor(*, json_: Json = False) -> int:
    """Say what this machine can do: versions, devices, cores, memory, disk.

    Parameters
    ----------
    json_:
        One JSON record a fact.
    """
    from .. import catalogue
    from ..terminal import print_records

    records = catalogue.machine_records()
    print_json(records) if json_ else print_records(records)
    return 0


def main() -> None:
    """The `gatelab` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a mark gets a substitute, not an error.
        stream.reconfigure(errors="replace")
    status_ = _status(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        # What could not be written stays in the buffer, and the interpreter must not try it again on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status_ = 1 if isinstance(error, BrokenPipeError) else _fail(1, f"the output: {error.strerror}")
    sys.exit(status_)


def _status(words: list[str]) -> int:
    """Run one command; every mistake of a user ends as one message on stderr."""
    if not words:
        app.help_print([], console=_stderr())
        return 2
    try:
        result = app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _fail(2, str(error).strip() or type(error).__name__, "`gatelab --help` lists the commands")
    except KeyboardInterrupt:
        saved = "; the runs were saved, the same command continues" if words[0] in ("run", "train") else ""
        return _fail(130, f"stopped{saved}")
    except BrokenPipeError:
        return 1  # the reader of our output has gone, as in `| head`
    except (MemoryError, RuntimeError) as error:
        from ..study.worker import classify

        outcome, message = classify(error)
        if outcome != "oom":
            raise
        return _fail(1, message)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(1, "the disk is full; what was there is unharmed: free space and give the same command again")
        where = f"{error.filename}: " if error.filename else ""
        return _fail(1, f"{where}{error.strerror or error}")
    except ValueError as error:
        from ..config import ConfigError

        return _fail(2 if isinstance(error, ConfigError) else 1, str(error))
    return result if isinstance(result, int) else 0


def _fail(status_: int, *lines: str) -> int:
    said = "\n".join(lines).splitlines()
    for line in [*said[:_MOST_LINES], *([f"… and {len(said) - _MOST_LINES} more"] if len(said) > _MOST_LINES else [])]:
        print(f"gatelab: {line}", file=sys.stderr)
    return status_


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)
