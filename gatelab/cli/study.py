"""gatelab run and plan: carry a study out, or say what it would do."""

from pathlib import Path
from typing import Any

from .base import Json, print_json, tell


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
