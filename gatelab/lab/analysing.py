"""What the rows of a study's finished runs say: outcomes, and the effects, shares and pairing of them."""

from dataclasses import dataclass, replace
from math import nan

from ..analysis import Outcome, PairingGain, Share, effects, pairing_gain, shares
from ..analysis.anomalies.gather import checked
from ..analysis.digest import digest
from ..analysis.digest_parts import WHOLE_MODEL
from ..analysis.lacking import lacks, notes
from ..analysis.lost import lost_cells
from ..analysis.paired import Outcomes
from ..analysis.refusals import Refusals, refusals
from ..analysis.short import NO_ROWS, TASKS, short_rows
from ..analysis.tasks import final_values, task_rows
from ..record import Finding, Metric
from ..store import StudyFolder
from ..study.ledger import state_of
from ..study.metrics import STUDY_METRICS
from .declared import FDR, registration_of

FIRST_ANSWER = "task_accuracy@1x"  # which stands for all answers where they are cut


@dataclass(frozen=True)
class Analysis:
    """What the rows of a study say. `outcomes` are those of all seeds, `fdr` is the false-discovery rate of the primary family,
    `refusals` are of the seeds that the findings are of."""

    findings: list[Finding]
    shares: list[Share]
    pairing: list[PairingGain]
    outcomes: list[Outcome]
    fdr: float
    refusals: Refusals


def analyse(folder: StudyFolder, *, fdr: float = FDR, confidence: float = 0.95) -> Analysis:
    """Effects, shares and the pairing check of a study's finished runs. Seeds that a confirmation keeps to itself are left
    out: only what looked odd was run on them.

    Raises:
        StoreError: when the folder holds no study, or one that was edited, or a confirmation that was.
    """
    folder.refresh(None)
    study, kept = checked(folder), registration_of(folder)
    metrics = [Metric(**m) for m in study["metrics"]]
    arms = [a["name"] for a in study["arms"]]
    cells = [c["name"] for c in study["cells"]]
    baseline, seeds = study["baseline"], () if kept is None else kept.seeds
    runs = [(entry, run, state_of(run)) for entry, run in folder.planned() if entry["seed"] not in seeds]
    refusal = refusals(runs, baseline)
    read = refusal.marked(outcomes(folder))
    found = [o for o in read if o.seed not in seeds]
    short = short_rows(digest(folder)).notes((entry, state) for entry, _, state in runs)
    grouped = Outcomes(found)
    holes = notes(lacks(grouped, metrics, baseline=baseline, arms=arms, cells=cells))
    refusal = replace(refusal, notes=[*refusal.notes, *short, *holes])
    findings = effects(
        found, metrics, baseline=baseline, arms=arms, cells=cells, confidence=confidence, fdr=fdr,
        refused=refusal.refused, lost=lost_cells(digest(folder), runs),
    )  # fmt: skip
    gains = [
        gain
        for metric in metrics
        if metric.primary
        for gain in pairing_gain(grouped, metric, baseline=baseline, arms=arms, cells=cells, refused=refusal.refused)
    ]
    return Analysis(findings, shares(found, metrics, arms=arms, cells=cells), gains, read, fdr, refusal)


def outcomes(folder: StudyFolder) -> list[Outcome]:
    """The final value of every study metric of every planned run, with the run's state; nan where there is none.

    A run with several stacks is judged by its decoder's self-attention, an encoder alone by its own. A finished run whose rows end
    before its last step has none, and says so.
    """
    connection = digest(folder)
    short = short_rows(connection)
    rows = connection.execute(
        f"""SELECT run, metric, threshold, value FROM main_rows WHERE list_contains($1, metric) AND {WHOLE_MODEL}
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
            cut = ""
            if value is None and state == "done":
                run = entry["fingerprint"]
                is_answer = source.of == "tasks"
                cut = short.why(run, TASKS if is_answer else name, source.at) if run in measured else NO_ROWS
                if not cut or (is_answer and name != FIRST_ANSWER):
                    continue  # this kind of run does not have the metric: no gate, no gate mean
            where = (entry["cell"], entry["arm"], entry["seed"])
            out.append(Outcome(*where, name, nan if value is None else value, state, cut=cut))
    return out
