"""The page of a study, and what it shows of anomalies."""

from dataclasses import asdict
from pathlib import Path

from ..analysis import Outcome
from ..analysis.cause_tests import FILE
from ..analysis.looked import Looked, with_rows
from ..analysis.task_study import task_study
from ..report import write_report
from ..store import StoreError, StudyFolder
from ..study.ledger import state_of
from .analysing import Analysis
from .declared import registration_of
from .explaining import cards_of, edits_in
from .finding import confirm, hunt, screened
from .recommending import try_recommend


def report(folder: StudyFolder, analysis: Analysis) -> Path:
    """Write the page and its CSV files; returns the page's path."""
    states = {r.fingerprint: state_of(r) for _, r in folder.planned()}
    done = {(e["cell"], e["arm"], e["seed"]) for e, r in folder.planned() if states[r.fingerprint] == "done"}
    looked = look_for_anomalies(folder, analysis.outcomes)
    return write_report(
        folder,
        analysis.findings,
        shares=[asdict(s) for s in analysis.shares],
        pairing=[asdict(g) for g in analysis.pairing],
        tasks=task_study(folder, done),
        looked=looked,
        advice=try_recommend(folder, analysis, looked),
        state=lambda run: states[run.fingerprint],
    )


def look_for_anomalies(folder: StudyFolder, read: list[Outcome] | None = None) -> Looked | None:
    """What the page shows of anomalies; None of a study without a control or a gate, and where nothing was tested."""
    try:
        gathered = screened(folder, read)
        found, registration = hunt(folder, gathered), registration_of(folder)
    except StoreError:
        return None  # `gatelab find` says why
    if not found.screened.alarms:
        return None
    try:
        verdicts = [] if registration is None else confirm(folder, read)
    except StoreError:
        verdicts = []  # its runs have not ended
    try:
        edited = {name for name, *_ in edits_in(folder.path / FILE)}
    except StoreError:
        edited = set()
    odd = {a.cell for a in found.screened.anomalies}
    odd |= {cell for (cell, _), seeds in gathered.runs.items() if edited.intersection(seeds.values())}
    explained = cards_of(folder, gathered, [c for c in gathered.evidence.cells if c in odd]) if edited else []
    return Looked(found, registration, verdicts, with_rows(explained))
