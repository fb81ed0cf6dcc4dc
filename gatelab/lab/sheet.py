"""A study as a sheet of the atlas: its comparisons, where they lie, what was confirmed and is drawn, what is to be flagged."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..analysis.arithmetic import beside_baseline
from ..analysis.atlas import Place, Sheet, arm_name, place
from ..analysis.atlas_views import RATE, Views, along, by_length, courses, ladders, stated
from ..analysis.looked import Looked
from ..analysis.phases import phases
from ..analysis.planned import otherwise
from ..analysis.recommend import Advice
from ..analysis.refusals import UNKNOWN
from ..analysis.registration import EFFECT
from ..analysis.sights import settings, sights
from ..analysis.varied import varied
from ..store import RunFolder, StoreError, StudyFolder
from ..study.ledger import FINISHED, state_of
from .analysing import Analysis, analyse
from .declared import registration_of
from .finding import screened
from .recommending import try_recommend
from .reporting import look_for_anomalies, with_anomalies

Planned = list[tuple[dict[str, Any], RunFolder, str]]  # a plan's entry, its folder, its state


def sheet(
    folder: StudyFolder, letter: str, flags: list[str], pages: dict[str, str], names: Mapping[str, str] | None = None
) -> Sheet:
    """Of a study; `flags`, `pages` and `names` {file: what text it is} are what its surroundings say.

    Raises:
        StoreError: a study that was edited, or rows that cannot be read.
    """
    analysis = analyse(folder)
    looked = look_for_anomalies(folder, analysis.outcomes)
    advice = try_recommend(folder, analysis, looked)
    study, registration = folder.study(), registration_of(folder)
    kept = [] if registration is None else registration.seeds
    planned = [(entry, run, state_of(run)) for entry, run in folder.planned()]
    arms = _arms(study, planned)
    own = [a for a in study["arms"] if a["name"] in arms]
    return Sheet(
        letter=letter,
        name=study["name"],
        question=study.get("question", ""),
        seeds=[s for s in study["seeds"] if s not in kept],
        n_runs=len(planned),
        n_done=sum(state == "done" for *_, state in planned),
        versions=looked.hunt.gathered.versions if looked else _versions(folder, analysis),
        arms=arms,
        labels={arms[a["name"]]: a.get("label", a["name"]) for a in own},
        controls={arms[a["name"]] for a in own if a["control"]},
        places=_places(study, planned, advice, names or {}),
        runs=_finished(planned, kept),
        advice=advice,
        registered=[] if registration is None else registration.claims,
        verdicts=[] if looked is None else looked.verdicts,
        flags=[*flags, *_flags(planned, advice, [] if looked is None else looked.hunt.notes)],
        pages=pages,
        views=_views(folder, analysis, looked, planned, kept, advice),
        plan={(entry["cell"], entry["arm"], entry["seed"]): entry["steps"] for entry, *_ in planned},
        n_open=sum(state not in FINISHED for *_, state in planned),
        otherwise=otherwise(study),
        arithmetic={arms[n]: x for n, x in beside_baseline(study["plan"], study["baseline"]).items() if n in arms},
    )


def _arms(study: dict[str, Any], planned: Planned) -> dict[str, str]:
    """{an arm's name: what it is}, without the baseline; two that are told apart by their names alone keep them."""
    models: dict[str, dict[str, Any]] = {}
    for entry, run, _ in planned:
        if entry["arm"] not in models and (config := run.config_if_whole()) is not None:
            models[entry["arm"]] = config["model"]
    control = models.get(study["baseline"])
    named = {
        a["name"]: arm_name(a.get("changes", {}), models.get(a["name"]), control, a["name"])
        for a in study["arms"]
        if a["name"] != study["baseline"]
    }
    words = list(named.values())
    return {name: word if words.count(word) == 1 else f"{word} ({name})" for name, word in named.items()}


def _places(
    study: dict[str, Any], planned: Planned, advice: Advice | str, names: Mapping[str, str]
) -> dict[str, Place]:
    bases = {c["name"]: c.get("base", {}) for c in study["cells"]}
    sizes = {entry["cell"]: entry["n_parameters"] for entry, *_ in planned if entry["arm"] == study["baseline"]}
    cells = {c: c for c in bases}
    if not isinstance(advice, str):
        cells = {s.name: next(iter(s.cells.values())) for s in advice.at_best.settings}
    return {name: place(bases[cell], sizes.get(cell, 0), names) for name, cell in cells.items()}


def _finished(planned: Planned, kept: list[int]) -> dict[tuple[str, str], frozenset[str]]:
    """{(cell, arm): runs} that are done, without the seeds that a confirmation keeps to itself."""
    done: dict[tuple[str, str], set[str]] = {}
    for entry, run, state in planned:
        if state == "done" and entry["seed"] not in kept:
            done.setdefault((entry["cell"], entry["arm"]), set()).add(run.fingerprint)
    return {key: frozenset(names) for key, names in done.items()}


def _flags(planned: Planned, advice: Advice | str, notes: list[str]) -> list[str]:
    """`notes` are those of the search for anomalies; the comparisons that it refuses are among those of the advice."""
    n_open = sum(state != "done" for *_, state in planned)
    own = [f"no comparison is made: {advice}"] if isinstance(advice, str) else advice.notes
    others = notes if isinstance(advice, str) else [n for n in notes if ": refused: " not in n and n != UNKNOWN]
    return [
        *own,
        *([f"{n_open} of {len(planned)} runs are not done; they are in no number"] if n_open else []),
        *others,
    ]


def _versions(folder: StudyFolder, analysis: Analysis) -> set[str]:
    try:
        return screened(folder, analysis.outcomes).versions
    except StoreError:
        return set()


def _views(
    folder: StudyFolder,
    analysis: Analysis,
    looked: Looked | None,
    planned: Planned,
    kept: list[int],
    advice: Advice | str,
) -> Views:
    """What is drawn, of the screen's seeds."""
    study = folder.study()
    states = {(e["cell"], e["arm"], e["seed"]): state for e, _, state in planned if e["seed"] not in kept}
    runs = {key for key, state in states.items() if state == "done"}
    found, n_looks = courses(folder, runs)
    confirmed = [] if looked is None else with_anomalies(folder, looked).confirmed
    return Views(
        study=stated(study, [s for s in study["seeds"] if s not in kept]),
        phases=along(phases(study, analysis.findings, [asdict(s) for s in analysis.shares], states), RATE),
        ladders=[]
        if isinstance(advice, str)
        else ladders(advice.at_best.settings, analysis.findings, analysis.outcomes),
        courses=found,
        n_looks=n_looks,
        tasks=by_length(folder, runs),
        anomalies=[a for a in confirmed if any(h.claim.rule != EFFECT for h in a.held)],
        effects=[a for a in confirmed if any(h.claim.rule == EFFECT for h in a.held)],
        varied=None if looked is None else varied(looked.hunt),
        sights=sights(folder, {(e["cell"], e["arm"], e["seed"]) for e, _, state in planned if state == "done"}),
        settings=settings(folder),
    )
