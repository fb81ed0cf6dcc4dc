"""What other studies say of the causes of what one study confirmed: which are meant for it, and their verdicts.

A companion's comparison is one of the study's own where its runs are the same beside their seeds and looks (`settings`), whatever
its cells and arms are called. It is looked for in the folder beside the study's, and in an atlas among the studies of that.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ..analysis.anomalies.evidence import Comparison
from ..analysis.atlas import Sheet
from ..analysis.confirmed import Anomaly, Companion
from ..analysis.looked import with_rows
from ..analysis.sights import setting, settings, sights
from ..config import canonical
from ..store import StoreError, StudyFolder
from ..study.plan import make_plan
from ..study.study import built_in, load_study
from .explaining import cards_of
from .finding import screened
from .sources import Source, opened

# A study -> those that were made to test causes of what it confirms.
EXPLAINED_BY: dict[str, tuple[str, ...]] = {
    "backcopy-phases": ("backcopy-causes", "backcopy-rates"),
    "tasks-by-architecture": ("tasks-causes", "tasks-rates"),
}

Settings = Mapping[Comparison, str]
_DECIDED = ("supported", "refuted")


def beside(folder: StudyFolder, found: Sequence[Anomaly]) -> tuple[list[Anomaly], list[str]]:
    """The anomalies with what the companions say whose folders lie where the study's does, under their names; and a sentence for
    each of these that cannot be read."""
    study, home = folder.study(), folder.path.parent
    if study["name"] not in EXPLAINED_BY or not found:
        return list(found), []
    there, unread = {}, []
    for name in EXPLAINED_BY[study["name"]]:
        if (home / name / "study.json").is_file():
            try:
                there[name] = StudyFolder.open(home / name)
            except StoreError as error:
                unread.append(_unread(name, error, home))
    told, more = explained(study["name"], study["baseline"], settings(folder), found, there)
    return told, [*unread, *more]


def among(
    sheets: Sequence[Sheet], sources: Mapping[str, Source], tell: Callable[[str], None] = lambda _: None
) -> list[Sheet]:
    """The sheets of an atlas with what the companions among them say; `sources` are where they lie, by letter. One that cannot be
    read is a flag of the study that it would explain, and `tell` is told."""
    at = {s.name: sources[s.letter] for s in sheets}
    return [_in_atlas(s, at, tell) if s.views is not None and s.name in EXPLAINED_BY else s for s in sheets]


def _in_atlas(s: Sheet, at: Mapping[str, Source], tell: Callable[[str], None]) -> Sheet:
    found = {(a.cell, a.arm): a for a in (*s.views.anomalies, *s.views.effects)}
    if not found:
        return s
    unread = []
    with ExitStack() as stack:
        there = {}
        for name in (n for n in EXPLAINED_BY[s.name] if n in at):
            try:
                there[name] = stack.enter_context(opened(at[name]))
            except StoreError as error:
                unread.append(_unread(name, error, at[name].path.parent))
        told, more = explained(s.name, s.views.study["baseline"], s.views.settings, [*found.values()], there)
    unread += more
    for flag in unread:
        tell(f"{s.letter} {s.name}: {flag}")
    of = {(a.cell, a.arm): a for a in told}
    shown = {
        kind: [of[a.cell, a.arm] for a in anomalies]
        for kind, anomalies in (("anomalies", s.views.anomalies), ("effects", s.views.effects))
    }
    return replace(s, flags=[*s.flags, *unread], views=replace(s.views, **shown))


def _unread(name: str, error: StoreError, home: Path | None) -> str:
    """`home` is the folder that the companion lies in, which a page does not name."""
    why = str(error) if home is None else str(error).replace(f"{home}{os.sep}", "")
    return f"what {name} says of causes is left out, since it cannot be read: {why}"


def explained(
    name: str, baseline: str, own: Settings, found: Sequence[Anomaly], there: Mapping[str, StudyFolder]
) -> tuple[list[Anomaly], list[str]]:
    """The anomalies of the study of this name with what its companions say; of those that are not `there`, or have no finished runs
    of these settings, the names of the ones that have planned them. A companion that cannot be read says nothing, and has a
    sentence that says so."""
    out, unread = [replace(a, elsewhere=[], waiting=[]) for a in found], []
    for companion in EXPLAINED_BY.get(name, ()):
        folder = there.get(companion)
        try:
            theirs = {} if folder is None else settings(folder)  # of what has begun
            theirs |= {where: what for where, what in planned_settings(companion).items() if where not in theirs}
            at = [_same(own, (a.cell, baseline), (a.cell, a.arm), theirs) for a in out]
            said = {} if folder is None else _said(folder, out, at, baseline)
        except StoreError as error:
            unread.append(_unread(companion, error, None if folder is None else folder.path.parent))
            continue
        out = [_with(a, companion, where, said) for a, where in zip(out, at, strict=True)]
    return out, unread


def planned_settings(name: str) -> dict[Comparison, str]:
    """{(cell, arm): what its runs are} of a built-in study; of any other nothing."""
    if name not in built_in():
        return {}
    out: dict[Comparison, str] = {}
    for planned in make_plan(load_study(name)).runs:
        where = (planned.cell, planned.arm)
        if where not in out and (found := setting(canonical(planned.run))) is not None:
            out[where] = found
    return out


def _same(own: Settings, base: Comparison, gate: Comparison, theirs: Settings) -> Comparison | None:
    """The cell and arm of the other study that are this gate, where that cell has this baseline too."""
    wanted = own.get(base)
    return next(
        (
            (cell, arm)
            for (cell, arm), found in theirs.items()
            if wanted is not None and found == own.get(gate)
            and any(c == cell and other == wanted for (c, _), other in theirs.items())
        ),
        None,
    )  # fmt: skip


def _said(
    folder: StudyFolder, found: Sequence[Anomaly], at: Sequence[Comparison | None], baseline: str
) -> dict[Comparison, Companion]:
    """{(cell, arm) there: its cards that have rows}, on what the claims here are about; `baseline` is its name here."""
    if not any(at):
        return {}
    gathered = screened(folder)
    here = {where: a.arm for a, where in zip(found, at, strict=True) if where is not None and gathered.runs.get(where)}
    claims = [
        replace(h.claim, cell=where[0], arm=where[1])
        for a, where in zip(found, at, strict=True) if where in here
        for h in a.held
    ]  # fmt: skip
    cards = with_rows(cards_of(folder, gathered, [*here], claims))
    study, theirs = folder.study()["name"], gathered.evidence.baseline
    runs = {(c, a, seed) for (c, a), of in gathered.runs.items() if any(c == cell for cell, _ in here) for seed in of}
    seen = sights(folder, runs)
    out = {}
    for where, arm in here.items():
        cell, seeds = where[0], sorted(gathered.runs[where])
        sides = {name: seen[key] for name, key in ((baseline, (cell, theirs)), (arm, where)) if key in seen}
        out[where] = Companion(study, cell, seeds, [c for c in cards if (c.cell, c.arm) == where], sides)
    return out


def _with(a: Anomaly, name: str, where: Comparison | None, said: Mapping[Comparison, Companion]) -> Anomaly:
    """Beside what the study's own cards say: what is decided, and what they have no rows of."""
    if where is None:
        return a
    companion = said.get(where)
    own, readings = {(c.hypothesis, c.reading) for c in a.causes}, {h.claim.reading for h in a.held}
    cards = [] if companion is None else [
        c for c in companion.cards
        if (c.reading in readings and ((c.hypothesis, c.reading) not in own or c.verdict in _DECIDED))
        or (not c.reading and c.verdict in _DECIDED)
    ]  # fmt: skip
    if not cards:
        return a if companion is not None else replace(a, waiting=[*a.waiting, name])
    return replace(a, elsewhere=[*a.elsewhere, replace(companion, cards=cards)])
