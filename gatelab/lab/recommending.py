"""What a study's rows recommend for which use."""

from dataclasses import replace

from ..analysis.anomalies.gather import Gathered
from ..analysis.looked import Looked
from ..analysis.recommend import Advice, advise
from ..record import Metric
from ..store import StoreError, StudyFolder
from .analysing import Analysis
from .declared import registration_of
from .finding import screened


def recommend(folder: StudyFolder, analysis: Analysis, looked: Looked | None = None) -> Advice:
    """Which arm for which use, by a study's runs without the seeds that a confirmation keeps to itself; `looked` is what the search
    for anomalies found, where it has been made.

    Raises:
        StoreError: as `screened` does: a study without an ungated baseline has no pairs to recommend from.
    """
    gathered: Gathered = screened(folder, analysis.outcomes) if looked is None else looked.hunt.gathered
    study, kept, evidence = folder.study(), registration_of(folder), gathered.evidence
    alone = evidence.not_pooled or (
        "pairs are left out whose runs are of two versions" if gathered.refusals.unpaired else ""
    )
    seeds = () if kept is None else kept.seeds
    told = advise(
        [o for o in analysis.outcomes if o.seed not in seeds],
        analysis.findings,
        [Metric(**m) for m in study["metrics"]],
        baseline=study["baseline"],
        arms=[a["name"] for a in study["arms"]],
        bases=gathered.bases,
        # Cells of several versions of the code each stand for themselves, and so do those of a study with pairs of two.
        rates={} if alone else evidence.rates,
        refused=evidence.refused,
        verdicts=() if looked is None else looked.verdicts,
        fdr=analysis.fdr,
    )
    return replace(told, notes=[*told.notes, *([f"each cell is a setting of its own: {alone}"] if alone else [])])


def try_recommend(folder: StudyFolder, analysis: Analysis, looked: Looked | None) -> Advice | str:
    """The same, or why there is none."""
    try:
        return recommend(folder, analysis, looked)
    except StoreError as error:
        return str(error).removeprefix(f"{folder.path}: ")
