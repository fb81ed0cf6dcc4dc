"""What other studies say of the causes of what one study confirmed: which are meant for it, and their verdicts.

A companion's comparison is one of the study's own where its runs are the same beside their seeds and looks (`settings`), whatever
its cells and arms are called. It is looked for in the folder beside the study's, and in an atlas among the studies of that.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..analysis.anomalies.evidence import Comparison
from ..analysis.atlas import Sheet
from ..analysis.causes import Card
from ..analysis.confirmed import Anomaly, Companion
from ..analysis.looked import with_rows
from ..analysis.sights import setting, settings, sights
from ..config import canonical
from ..store import StoreError, StudyFolder
from ..store.study import ALONE
from ..study.plan import make_plan
from ..study.study import built_in, load_study
from .explaining import cards_of, own_cards
from .finding import screened
from .sources import Source, opened, reading

# A study -> those that were made to test causes of what it confirms.
EXPLAINED_BY: dict[str, tuple[str, ...]] = {
    "backcopy-phases": ("backcopy-causes", "backcopy-rates"),
    "gates-on-tasks": ("citing-causes",),
    "tasks-by-architecture": ("tasks-causes", "tasks-rates"),
}

Settings = Mapping[Comparison, str]
_DECIDED = ("supported", "refuted")


@dataclass(frozen=True, slots=True)
class Asked:
    """A cell and gate with the readings whose causes are asked for; `own` (hypothesis, reading) of its study's cards with rows."""

    cell: str
    arm: str
    readings: list[str]
    own: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Told:
    """What companions say of what was asked, and which of them have planned its runs and made none."""

    elsewhere: list[Companion] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)


def explain(
    folder: StudyFolder, cell: str, arms: Sequence[str] = (), *, tell: Callable[[str], None] = lambda _: None
) -> list[Card]:
    """The verdict cards of a cell, of these gates alone where any are named: the study's own, and behind them those of the studies
    beside it that were made for its causes, which stand in the place of its own without rows. `tell` is told what cannot be read,
    and what waits for its runs.

    Raises:
        StoreError: no such cell or gated arm; as `hunt` does.
    """
    made = own_cards(folder, cell, arms)
    own, study = made(()), folder.study()
    if study["name"] not in EXPLAINED_BY:
        return own
    asked = [
        Asked(
            cell, arm, list(dict.fromkeys(c.reading for c in of if c.reading)),
            frozenset((c.hypothesis, c.reading) for c in with_rows(of)),
        )
        for arm in dict.fromkeys(c.arm for c in own) if (of := [c for c in own if c.arm == arm])
    ]  # fmt: skip
    with ExitStack() as stack:
        there, unread = _beside(folder, stack)
        told, more = _told(study["name"], study["baseline"], settings(folder), asked, there)
    for why in (*unread, *more):
        tell(f"note: {why}")
    for name in dict.fromkeys(name for t in told for name in t.waiting):
        tell(f"note: planned to test causes of this, and not run: gatelab run {name}")
    others = [
        (a.arm, replace(card, study=of.study))
        for a, t in zip(asked, told, strict=True)
        for of in t.elsewhere
        for card in of.cards
    ]
    if not others:
        return own
    return [*made({(arm, c.hypothesis, c.reading) for arm, c in others}), *(card for _, card in others)]


def beside(folder: StudyFolder, found: Sequence[Anomaly]) -> tuple[list[Anomaly], list[str]]:
    """The anomalies with what the companions say whose folders or packs lie where the study's does, under their names; and a
    sentence for each of these that cannot be read."""
    study = folder.study()
    if study["name"] not in EXPLAINED_BY or not found:
        return list(found), []
    with ExitStack() as stack:
        there, unread = _beside(folder, stack)
        told, more = explained(study["name"], study["baseline"], settings(folder), found, there)
    return told, [*unread, *more]


def _beside(folder: StudyFolder, stack: ExitStack) -> tuple[dict[str, StudyFolder], list[str]]:
    """The companions in the folder beside the study's, open until the stack is left; and why some cannot be read."""
    there, unread, home = {}, [], folder.home.parent
    for name in EXPLAINED_BY[folder.study()["name"]]:
        if (home / name / "study.json").is_file() or (home / name / ALONE).is_file():
            try:
                there[name] = stack.enter_context(reading(home / name))
            except StoreError as error:
                unread.append(_unread(name, error, home))
    return there, unread


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


def _unread(name: str, error: StoreError, home: Path | None, folder: StudyFolder | None = None) -> str:
    """`home` is the folder that the companion lies in, which a page does not name; nor that of an archive's copy."""
    why = str(error) if folder is None else str(error).replace(str(folder.path), folder.address)
    why = why if home is None else why.replace(f"{home}{os.sep}", "")
    return f"what {name} says of causes is left out, since it cannot be read: {why}"


def explained(
    name: str, baseline: str, own: Settings, found: Sequence[Anomaly], there: Mapping[str, StudyFolder]
) -> tuple[list[Anomaly], list[str]]:
    """The anomalies of the study of this name with what its companions say; of those that are not `there`, or have no finished runs
    of these settings, the names of the ones that have planned them. A companion that cannot be read says nothing, and has a
    sentence that says so."""
    asked = [
        Asked(a.cell, a.arm, [h.claim.reading for h in a.held], frozenset((c.hypothesis, c.reading) for c in a.causes))
        for a in found
    ]
    told, unread = _told(name, baseline, own, asked, there)
    return [replace(a, elsewhere=t.elsewhere, waiting=t.waiting) for a, t in zip(found, told, strict=True)], unread


def _told(
    name: str, baseline: str, own: Settings, asked: Sequence[Asked], there: Mapping[str, StudyFolder]
) -> tuple[list[Told], list[str]]:
    """As `explained`, of what is asked."""
    out, unread = [Told() for _ in asked], []
    for companion in EXPLAINED_BY.get(name, ()):
        folder = there.get(companion)
        try:
            theirs = {} if folder is None else settings(folder)  # of what has begun
            theirs |= {where: what for where, what in planned_settings(companion).items() if where not in theirs}
            at = [_same(own, (a.cell, baseline), (a.cell, a.arm), theirs) for a in asked]
            said = {} if folder is None else _said(folder, asked, at, baseline)
        except StoreError as error:
            unread.append(_unread(companion, error, None if folder is None else folder.home.parent, folder))
            continue
        for a, t, where in zip(asked, out, at, strict=True):
            _add(t, a, companion, where, said)
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
    folder: StudyFolder, asked: Sequence[Asked], at: Sequence[Comparison | None], baseline: str
) -> dict[Comparison, Companion]:
    """{(cell, arm) there: its cards that have rows}, on what the claims here are about; `baseline` is its name here."""
    if not any(at):
        return {}
    gathered = screened(folder)
    here = {where: a.arm for a, where in zip(asked, at, strict=True) if where is not None and gathered.runs.get(where)}
    readings = {where: a.readings for a, where in zip(asked, at, strict=True) if where in here}
    cards = with_rows(cards_of(folder, gathered, [*here], readings))
    study, theirs = folder.study()["name"], gathered.evidence.baseline
    runs = {(c, a, seed) for (c, a), of in gathered.runs.items() if any(c == cell for cell, _ in here) for seed in of}
    seen = sights(folder, runs)
    out = {}
    for where, arm in here.items():
        cell, seeds = where[0], sorted(gathered.runs[where])
        sides = {name: seen[key] for name, key in ((baseline, (cell, theirs)), (arm, where)) if key in seen}
        out[where] = Companion(study, cell, seeds, [c for c in cards if (c.cell, c.arm) == where], sides)
    return out


def _add(told: Told, a: Asked, name: str, where: Comparison | None, said: Mapping[Comparison, Companion]) -> None:
    """Beside what the study's own cards say: what is decided, and what they have no rows of."""
    if where is None:
        return
    companion = said.get(where)
    cards = [] if companion is None else [
        c for c in companion.cards
        if (c.reading in a.readings and ((c.hypothesis, c.reading) not in a.own or c.verdict in _DECIDED))
        or (not c.reading and c.verdict in _DECIDED)
    ]  # fmt: skip
    if cards:
        told.elsewhere.append(replace(companion, cards=cards))
    elif companion is None:
        told.waiting.append(name)
