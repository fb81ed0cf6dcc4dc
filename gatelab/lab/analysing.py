"""What the rows of a study's finished runs say: outcomes, and the effects, shares and pairing of them."""

from dataclasses import dataclass

from ..analysis import Outcome, PairingGain, Share, effects, pairing_gain, shares
from ..analysis.anomalies.gather import checked
from ..analysis.digest import digest
from ..analysis.tasks import final_values, task_rows
from ..record import Finding, Metric
from ..store import StudyFolder
from ..study.ledger import state_of
from ..study.metrics import STUDY_METRICS
from .declared import FDR, registration_of


@dataclass(frozen=True)
class Analysis:
    """What the rows of a study say. `fdr` is the false-discovery rate of the primary family."""

    findings: list[Finding]
    shares: list[Share]
    pairing: list[PairingGain]
    outcomes: list[Outcome]
    fdr: float


def analyse(folder: StudyFolder, *, fdr: float = FDR, confidence: float = 0.95) -> Analysis:
    """Effects, shares and the pairing check of a study's finished runs. Seeds that a confirmation keeps to itself are left
    out: only what looked odd was run on them.

    Raises:
        StoreError: when the folder holds no study, or one that was edited, or a confirmation that was.
    """
    study, kept = checked(folder), registration_of(folder)
    metrics = [Metric(**m) for m in study["metrics"]]
    arms = [a["name"] for a in study["arms"]]
    cells = [c["name"] for c in study["cells"]]
    read = outcomes(folder)
    found = read if kept is None else [o for o in read if o.seed not in kept.seeds]
    findings = effects(
        found, metrics, baseline=study["baseline"], arms=arms, cells=cells, confidence=confidence, fdr=fdr
    )
    gains = [
        gain
        for metric in metrics
        if metric.primary
        for gain in pairing_gain(found, metric, baseline=study["baseline"], arms=arms, cells=cells)
    ]
    return Analysis(findings, shares(found, metrics, arms=arms, cells=cells), gains, read, fdr)


def outcomes(folder: StudyFolder) -> list[Outcome]:
    """The final value of every study metric of every planned run, with the run's state; nan where there is none.

    A run with several stacks is judged by its decoder's self-attention, an encoder alone by its own.
    """
    connection = digest(folder)
    rows = connection.execute(
        """SELECT run, metric, threshold, value FROM main_rows
           WHERE list_contains($1, metric)
             AND layer IS NULL AND head IS NULL AND domain IS NULL AND intervention IS NULL AND bin IS NULL
             AND stage IS NULL AND (site IS NULL OR site = 'sdpa')
           QUALIFY step = max(step) OVER (PARTITION BY run, metric)""",
        [list(STUDY_METRICS)],
    )
    values = {(fingerprint, metric, threshold): value for fingerprint, metric, threshold, value in rows.fetchall()}
    measured = {fingerprint for (fingerprint,) in connection.execute("SELECT run FROM reached").fetchall()}
    asked = final_values(task_rows(folder))
    asked_cells = {cell for cell, *_ in asked}
    out = []
    for entry, folder_of_run in folder.planned():
        state = state_of(folder_of_run)
        for name, source in STUDY_METRICS.items():
            if source.of == "tasks" and entry["cell"] not in asked_cells:
                continue
            value = (
                asked.get((entry["cell"], entry["arm"], entry["seed"], name))
                if source.of == "tasks"
                else values.get((entry["fingerprint"], name, source.at))
            )
            if value is None and state == "done" and entry["fingerprint"] in measured:
                continue  # this kind of run does not have the metric: no gate, no gate mean
            out.append(
                Outcome(
                    entry["cell"], entry["arm"], entry["seed"], name, float("nan") if value is None else value, state
                )
            )
    return out
