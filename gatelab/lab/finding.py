"""The anomalies of a study, from the screen to the verdicts of a confirmation on fresh seeds."""

import shlex
from dataclasses import replace

from ..analysis import Outcome, stages
from ..analysis.anomalies import RULES, Evidence
from ..analysis.anomalies.gather import Gathered, gather
from ..analysis.hunt import Hunt
from ..analysis.hunt import hunt as hunted
from ..analysis.registration import Claim, Registration, Verdict, declaration, departures
from ..config import ConfigError
from ..store import StoreError, StudyFolder, read_json, write_json
from ..study.fresh import with_sources
from ..study.ledger import state_of
from .analysing import outcomes
from .declared import CONFIRMATION, FDR, SCREEN, registration_of
from .sources import refuse_archive


def screened(folder: StudyFolder, found: list[Outcome] | None = None) -> Gathered:
    """The evidence of a study without the seeds that a confirmation keeps to itself; `found` are its outcomes where they have
    been read. What follows takes it too: of thousands of runs the reading is the longer part.

    Raises:
        StoreError: a study that was edited, without an ungated baseline, or without a gate.
    """
    kept = registration_of(folder)
    read = outcomes(folder) if found is None else found
    return gather(folder, read, without=() if kept is None else kept.seeds)


def hunt(folder: StudyFolder, gathered: Gathered | None = None) -> Hunt:
    """The anomalies of a study's finished runs, and what its effects depend on; runs of a registered confirmation are not
    looked at.

    Raises:
        StoreError: as `screened` does.
    """
    gathered = gathered or screened(folder)
    return hunted(gathered, RULES, fdr=FDR, notes=departed(folder))


def departed(folder: StudyFolder) -> list[str]:
    """Where the screen of today is another than was declared with the plan.

    Raises:
        StoreError: a declaration that cannot be read.
    """
    declared, study = folder.path / SCREEN, folder.study()
    if not declared.exists():
        return []
    kept = registration_of(folder)
    if kept is not None:
        study["seeds"] = [s for s in study["seeds"] if s not in kept.seeds]
    there, now = read_json(declared), declaration(RULES, study, FDR)
    if not isinstance(there, dict) or any(type(there.get(k, [])) is not type(v) for k, v in now.items()):
        raise StoreError(f"{declared}: is not what was declared with the plan; was it edited?")
    return departures(there, now)


def register(
    folder: StudyFolder,
    seeds: list[int] | None = None,
    *,
    choose: dict[str, list[str]] | None = None,
    gathered: Gathered | None = None,
) -> Registration:
    """Write down what the screen found, to be confirmed on fresh seeds (five more unless given), before they are run; of all
    claims those that `choose` (rules, cells, arms; see `stages.chosen`), of claims with one test one.

    Raises:
        ConfigError: a word of `choose` that no claim has.
        StoreError: nothing found; a seed that was in the screen; a confirmation whose runs have begun; as `hunt` does.
    """
    refuse_archive(folder, "--register")
    there = registration_of(folder)
    if there is not None and any(e["seed"] in there.seeds and state_of(r) != "planned" for e, r in folder.planned()):
        raise StoreError(
            f"{folder.path / CONFIRMATION}: its runs have begun; `gatelab find {folder.address} --confirm` reads it"
        )
    gathered = gathered or screened(folder)
    used = {o.seed for o in gathered.evidence.outcomes if o.status != "planned"}
    fresh = seeds or [max(used, default=-1) + 1 + i for i in range(5)]
    try:
        claims = stages.chosen(hunt(folder, gathered).claims, **(choose or {}))
        claims, equal = stages.distinct(claims, gathered.evidence, RULES)
        registration = stages.register(gathered.evidence, claims, fresh, fdr=FDR)
        needs = stages.comparisons_needed(registration, gathered.evidence, RULES)
        registration = replace(registration, needs=needs, equal=equal)
    except ConfigError:
        raise
    except ValueError as error:
        raise StoreError(f"{folder.address}: {error}") from None
    write_json(folder.path / CONFIRMATION, registration.as_json())
    folder.push()
    return registration


def confirm(folder: StudyFolder, found: list[Outcome] | None = None) -> list[Verdict]:
    """The verdict on every registered claim, once all runs of its seeds have ended; `found` are the study's outcomes.

    Raises:
        StoreError: nothing was registered; runs that have not ended, since a confirmation is read once.
    """
    return confirm_with(folder, found)[0]


def confirm_with(
    folder: StudyFolder, found: list[Outcome] | None = None, before: Gathered | None = None
) -> tuple[list[Verdict], Evidence]:
    """The same and the evidence of the fresh seeds, of what the screen gathered `before`, where it has been.

    Raises:
        StoreError: as `confirm` does.
    """
    registration = registration_of(folder)
    if registration is None:
        raise StoreError(
            f"{folder.address}: no claims are registered; `gatelab find {folder.address} --register` writes them down"
        )
    states = {(e["cell"], e["arm"], e["seed"]): state_of(r) for e, r in folder.planned()}
    found = outcomes(folder) if found is None else found
    before = before or gather(folder, found, without=registration.seeds)
    pairs = registration.needs or stages.comparisons_needed(registration, before.evidence, RULES)
    wanted = [(*where, seed) for where in pairs for seed in registration.seeds]
    open_ = [w for w in wanted if states.get(w, "planned") not in ("done", "diverged")]
    if open_:
        raise StoreError(
            f"{folder.address}: {len(open_)} of the {len(wanted)} runs of this confirmation have not ended (such as"
            f" {'/'.join(map(str, open_[0]))}), and it is read once; first {confirming(folder)}"
        )
    fresh = gather(folder, found, only=registration.seeds)
    if fresh.refusals.made != before.refusals.made:
        # The spread that another version's pairs had says nothing of these.
        registration = replace(registration, priors=[])
    return stages.confirm(registration, fresh.evidence, RULES), stages.on_fresh(registration, fresh.evidence)


def confirmation_notes(folder: StudyFolder) -> list[str]:
    """What to know of a registration before its verdicts."""
    registration = registration_of(folder)
    return [] if registration is None else registration.notes


def confirming(folder: StudyFolder) -> str:
    """The command that carries out a confirmation's runs, and no others."""
    return f"gatelab run {shlex.quote(folder.address)}"


def confirmation(folder: StudyFolder, registration: Registration) -> list[tuple[str, str]]:
    """(cell, arm) that a confirmation needs runs of: the claims', the baseline, the cells that a rule compares them with, and
    what their runs start from."""
    needs = registration.needs or stages.comparisons_needed(registration, screened(folder).evidence, RULES)
    return with_sources(folder, needs)


def out_of_reach(
    folder: StudyFolder, registration: Registration, gathered: Gathered | None = None
) -> list[tuple[Claim, int]]:
    """The claims that the registered seeds cannot confirm whatever they show, each with how many could."""
    return stages.out_of_reach(registration, (gathered or screened(folder)).evidence)
