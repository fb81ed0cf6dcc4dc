"""The power plan of a study: what so many seeds could see, by its own pairs or by those of a pilot."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..analysis.anomalies import Evidence
from ..analysis.anomalies.gather import Gathered
from ..analysis.foresight import SEEDS, Foresight, foresee
from ..analysis.hunt import READINGS
from ..analysis.lost_runs import lost_runs
from ..store import StoreError, StudyFolder
from ..study.plan import Plan
from .declared import FDR
from .finding import screened


def foresight(
    folder: StudyFolder, *, n_claims: int = 5, gathered: Gathered | None = None
) -> tuple[list[Foresight], list[str]]:
    """What how many seeds could see, by the pairs that the study has of runs that are not lost, and what to know of it. A
    confirmation is taken to be of `n_claims`.

    Raises:
        StoreError: as `hunt` does.
    """
    gathered = gathered or screened(folder)
    readings = [r for r in READINGS if r in gathered.primary] or READINGS
    evidence, notes = _without_lost(folder, gathered.evidence)
    return foresee(evidence, readings, n_claims=n_claims, fdr=FDR), notes


def pilot(folder: StudyFolder, plan: Plan) -> tuple[list[Foresight], list[str]]:
    """What the plan could see in its cells and seeds, by the pairs that a pilot has of its arms and cells, and what to know of it.

    Raises:
        StoreError: a pilot that has no gate, or no cell, of the plan's; as `hunt` does.
    """
    study, gathered = plan.study, screened(folder)
    evidence, notes = gathered.evidence, []
    gates = [a.name for a in study.arms[1:] if not a.control]
    arms = _shared(folder, "gate", evidence.arms, gates, "and that have no line", notes)
    cells = _shared(
        folder, "cell", evidence.cells, list(study.cells), "and that are taken to spread as the others do", notes
    )
    if evidence.baseline != study.baseline.name:
        notes.append(f"the pilot's pairs are with {evidence.baseline}, those of the study with {study.baseline.name}")
    evidence, lost = _without_lost(folder, replace(evidence, arms=arms, cells=cells))
    readings = [r for r in READINGS if r in study.primary] or READINGS
    seeds = sorted({*SEEDS, max(2, len(study.seed_values))})
    found = foresee(evidence, readings, seeds=seeds, n_cells=len(study.cells), n_arms=len(gates), fdr=FDR)
    return found, [*notes, *lost]


def _shared(
    folder: StudyFolder, word: str, of_pilot: Sequence[str], of_study: Sequence[str], then: str, notes: list[str]
) -> list[str]:
    """The pilot's that the study has too; those that one of them lacks are noted, `then` what is done about the study's.

    Raises:
        StoreError: where there are none.
    """
    both = [x for x in of_pilot if x in of_study]
    if not both:
        raise StoreError(
            f"{folder.address}: as a pilot it has no {word} of the study's: {_some(of_pilot)} there, {_some(of_study)} here;"
            f" name a study that has run some of these {word}s, by the same names"
        )
    if more := [x for x in of_pilot if x not in both]:
        notes.append(f"{word}s of the pilot that the study lacks, and that are left out: {_some(more)}")
    if more := [x for x in of_study if x not in both]:
        notes.append(f"{word}s of the study that the pilot lacks, {then}: {_some(more)}")
    return both


def _without_lost(folder: StudyFolder, evidence: Evidence) -> tuple[Evidence, list[str]]:
    """The evidence without lost runs, whose losses say nothing of how others spread, and which these are."""
    looked, notes, arms = lost_runs(folder), [], (evidence.baseline, *evidence.arms)
    runs = {(o.cell, o.arm, o.seed) for o in evidence.outcomes if o.status == "done" and o.arm in arms}
    of = Counter(cell for cell, *_ in runs)
    lost, unknown = (Counter(cell for cell, *_ in runs & which) for which in (looked.lost, looked.unknown))
    if places := [f"{c}: {lost[c]} of {of[c]}" for c in evidence.cells if lost[c]]:
        n, some = sum(lost[c] for c in evidence.cells), _some(places)
        notes.append(
            f"left out: {n} lost runs, which end with a held-out loss above that of their untrained weights ({some})"
        )
    if n := sum(unknown[c] for c in evidence.cells):
        notes.append(
            f"whether {n} runs are lost is not known, since no row has their held-out loss at step 0; they are in"
        )
    return replace(evidence, outcomes=looked.without(evidence.outcomes)), notes


def _some(words: Sequence[str]) -> str:
    return ", ".join([*words[:5], *([f"{len(words) - 5} more"] if len(words) > 5 else [])])
