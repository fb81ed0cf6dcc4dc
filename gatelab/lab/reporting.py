"""The page of a study, and what it shows of anomalies."""

import errno
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

from ..analysis import Outcome
from ..analysis.anomalies import RULES
from ..analysis.cause_tests import FILE
from ..analysis.confirmed import Seen, anomalies, is_about, seen_in
from ..analysis.looked import Looked, with_rows
from ..analysis.refusals import Refusals
from ..analysis.task_study import task_study
from ..analysis.varied import varied
from ..report import write_report
from ..report.anomaly_cards import MOST_CARDS
from ..report.seeds import seeds_files
from ..store import StoreError, StudyFolder
from ..study.ledger import DAMAGED, state_of
from .analysing import Analysis
from .companions import beside
from .declared import registration_of
from .explaining import cards_of, edits_in, readings_of
from .finding import confirm_with, hunt, screened
from .recommending import try_recommend
from .reproducing import again

_MOST_NAMED = 10  # damaged runs in a note


def report(folder: StudyFolder, analysis: Analysis, *, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Write the page and its CSV files; returns the page's path. What is left out since it cannot be read, a study beside this one
    that was made for its causes, is named there, and `tell` is told.

    Raises:
        StoreError: a folder that cannot be written; a file that was edited.
    """
    states = {r.fingerprint: state_of(r) for _, r in folder.planned()}
    done = {(e["cell"], e["arm"], e["seed"]) for e, r in folder.planned() if states[r.fingerprint] == "done"}
    looked = look_for_anomalies(folder, analysis.outcomes)
    looked = None if looked is None else with_anomalies(folder, looked)
    unread = [] if looked is None else looked.unread
    for why in unread:
        tell(f"{folder.path}: {why}")
    unscreened = [] if looked is not None else _unscreened(folder, analysis.outcomes)
    for why in unscreened:
        tell(why)
    advice = try_recommend(folder, analysis, looked)
    registration = registration_of(folder)
    kept = () if registration is None else registration.seeds
    notes = (
        _sentences(unscreened),
        _damaged(folder, states),
        _refused(analysis.refusals),
        _sentences(unread),
    )
    try:
        return write_report(
            folder,
            analysis.findings,
            shares=[asdict(s) for s in analysis.shares],
            pairing=[asdict(g) for g in analysis.pairing],
            tasks=task_study(folder, done),
            looked=looked,
            advice=advice,
            varied=None if looked is None else varied(looked.hunt),
            note=" ".join(filter(None, notes)),
            state=lambda run: states[run.fingerprint],
            beside=seeds_files(analysis.outcomes, folder.study()["metrics"], kept),
        )
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise StoreError(
            f"{folder.path}: its page cannot be written there ({error.strerror}); copy the folder to where it can be, and"
            " `gatelab report` the copy"
        ) from None


def _unscreened(folder: StudyFolder, read: list[Outcome]) -> list[str]:
    """Why there are no anomalies: the study has no control or no gate, or what its plan declared of them cannot be read."""
    try:
        hunt(folder, screened(folder, read))
    except StoreError as error:
        return [f"no anomalies were looked for: {str(error).removeprefix(f'{folder.path}: ')}"]
    return []


def _damaged(folder: StudyFolder, states: dict[str, str]) -> str:
    """Which runs are left out since a file of theirs is damaged, and what to do."""
    of = {r.fingerprint: (e, r) for e, r in folder.planned() if states[r.fingerprint] == DAMAGED}
    if not of:
        return ""
    named = [f"{e['cell']}/{e['arm']}/{e['seed']} ({r.fingerprint})" for e, r in of.values()]
    some = ", ".join(named[:_MOST_NAMED]) + (f" and {len(of) - _MOST_NAMED} more" if len(of) > _MOST_NAMED else "")
    is_one = len(of) == 1
    return (
        f"{len(of)} run{'' if is_one else 's'} {'is' if is_one else 'are'} left out, since a file of "
        f"{'it' if is_one else 'each'} is damaged: {some}; `gatelab status` says which, and what to do."
    )


def _refused(found: Refusals) -> str:
    """What a reader of verdicts must know of comparisons that may not be made, and of versions; empty where there is nothing."""
    named = [f"{arm} in {cell} is {why}" for (cell, arm), why in found.refused.items()]
    words = "Refused comparisons have no effect and no test, and no part in any q, anomaly or recommendation"
    refused = [f"{words}: {'; '.join(named)}."] if named else []
    return " ".join([*refused, *filter(None, [_sentences(found.notes)])])


def _sentences(notes: Iterable[str]) -> str:
    return " ".join(f"{note[:1].upper()}{note[1:]}." for note in notes)


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
        verdicts, fresh = ([], None) if registration is None else confirm_with(folder, read, gathered)
    except StoreError:
        verdicts, fresh = [], None  # its runs have not ended
    try:
        edited = {name for name, *_ in edits_in(folder.path / FILE)}
    except StoreError:
        edited = set()
    odd = {a.cell for a in found.screened.anomalies}
    odd |= {cell for (cell, _), seeds in gathered.runs.items() if edited.intersection(seeds.values())}
    of = [(cell, arm) for cell in gathered.evidence.cells if cell in odd for arm in gathered.evidence.arms]
    claims = found.screened.anomalies if registration is None else registration.claims
    explained = cards_of(folder, gathered, of, readings_of(claims)) if edited else []
    return Looked(found, registration, verdicts, with_rows(explained), fresh)


def with_anomalies(folder: StudyFolder, looked: Looked) -> Looked:
    """The same with what a page shows of each confirmed anomaly, causes of those that have a card."""
    if looked.fresh is None or all(v.verdict != "confirmed" for v in looked.verdicts):
        return looked
    hunt, study, seeds = looked.hunt, folder.study(), looked.registration.seeds
    gathered = hunt.gathered
    found = anomalies(looked.verdicts, gathered.evidence, hunt.screened.alarms, looked.fresh, RULES, gathered.factors)
    seen = seen_in(folder, {a.cell for a in found[:MOST_CARDS]})
    try:
        of = [(a.cell, a.arm) for a in found[:MOST_CARDS]]
        claims = readings_of(h.claim for a in found for h in a.held)
        causes = with_rows(cards_of(folder, gathered, of, claims))
    except StoreError:
        causes = []  # `gatelab find --explain` says which line is wrong
    told, unread = beside(folder, [
        replace(
            a, seen=seen.get(a.cell, Seen()), causes=[c for c in causes if is_about(c, a)],
            commands=again(study, a.cell, a.arm, seeds),
        )
        for a in found
    ])  # fmt: skip
    return replace(looked, confirmed=told, unread=unread)
