"""The causes of an anomaly: edits of finished runs, and the verdict cards that their rows and the study's give."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from ..analysis.anomalies import Alarm
from ..analysis.anomalies.evidence import Comparison
from ..analysis.anomalies.gather import Gathered, checked
from ..analysis.cause_tests import FILE
from ..analysis.causes import LOSS, MASS, Card, Ledger, cards
from ..analysis.hypotheses import HYPOTHESES, edits_of
from ..analysis.onsets import courses
from ..analysis.registration import Claim
from ..analysis.to_run import Recipe, recipe_of, together
from ..config import nearest
from ..record import Row
from ..store import RunFolder, StoreError, StudyFolder
from ..study.checkpoints import WEIGHTS
from ..study.ledger import state_of
from .declared import registration_of
from .finding import hunt, screened
from .looking import intervene
from .reproducing import words_of
from .sources import refuse_archive

Question = tuple[str, str, str]  # arm, hypothesis, reading


def own_cards(folder: StudyFolder, cell: str, arms: Sequence[str] = ()) -> Callable[[Collection[Question]], list[Card]]:
    """What makes a verdict card a hypothesis and gate of a cell, of these arms alone where any are named, from the rows there are;
    those that explain a reading on the held-out loss, on the first-token mass, and on what a registered claim (where nothing is
    registered, an anomaly) of that gate is about. It is given the questions that others answer, which have no card where the study
    has no rows of them.

    Raises:
        StoreError: no such cell or gated arm; as `hunt` does.
    """
    study = _check_cell(folder, cell)
    _check_arms(study, arms)
    gathered = screened(folder)
    kept = registration_of(folder)
    readings = readings_of(hunt(folder, gathered).screened.anomalies if kept is None else kept.claims)
    of = [(cell, arm) for arm in gathered.evidence.arms if arm in arms or not arms]
    return partial(cards_of, folder, gathered, of, readings, recipe=_recipe(study, of), only=arms)


def edit(
    folder: StudyFolder,
    cell: str,
    seeds: list[int] | None = None,
    *,
    arms: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> int:
    """Make the rows of edits that a cell's cards lack, of its finished runs with these seeds (None: all of the screen) and of these
    gates with the baseline (none: all), in `causes.jsonl`, run by run; returns how many gave rows. It needs the runs' weights,
    and neither their rows nor a database.

    Raises:
        StoreError: no such cell or gated arm, no finished run of these seeds; runs that lack rows, of which none gave any; a study
            or a file that was edited.
    """
    if find_spec("scipy") is None:
        raise StoreError(
            "--edit: the intervals of edits need SciPy, which this machine does not have; install it, or take the runs' folders"
            " with their weights to one that has it"
        )
    refuse_archive(folder, "--edit")
    folder.refresh(lambda name: name == WEIGHTS)
    study = _check_cell(folder, cell)
    _check_arms(study, arms)
    gated = {a["name"]: a["name"] != study["baseline"] for a in study["arms"] if not a["control"]}
    gated = {name: it for name, it in gated.items() if not (arms and it) or name in arms}
    registration, path = registration_of(folder), folder.path / FILE
    kept = [] if registration is None else registration.seeds
    runs = [
        (e, run)
        for e, run in folder.planned()
        if e["cell"] == cell and e["arm"] in gated and (e["seed"] in seeds if seeds else e["seed"] not in kept)
        and state_of(run) == "done"
    ]  # fmt: skip
    if not runs:
        raise StoreError(
            f"--explain {cell}: no finished run of it here to edit; `gatelab status {folder.address}` lists them"
        )
    there = {(name, word) for name, word, _ in edits_in(path)}
    asked = [(e, run, edits_of(run.config()["model"], gated=gated[e["arm"]])) for e, run in runs]
    asked = [
        (e, run, lacks) for e, run, words in asked if (lacks := [w for w in words if (run.fingerprint, w) not in there])
    ]
    stored = [(e, run, words) for e, run, words in asked if (run.path / WEIGHTS).exists()]
    if asked and not stored:
        raise StoreError(
            f"--explain {cell} --edit: no run was edited, since none of the {len(asked)} that lack rows has its weights"
            f" ({WEIGHTS}) in {folder.address}; `gatelab find {folder.address} --explain {cell}` says how to make them anew"
        )
    if len(stored) < len(asked):
        tell(f"{len(asked) - len(stored)} of {len(asked)} runs have no weights here ({WEIGHTS}) and are left out")
    n_edited, whys = 0, []
    for i, (e, run, words) in enumerate(stored, 1):
        rows, refused = _edited(run, words)
        tell("; ".join([f"{i} of {len(stored)}: {e['arm']} seed {e['seed']}, {len(rows)} rows", *refused]))
        whys += refused
        if rows:
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row.as_dict()) + "\n" for row in rows)
            n_edited += 1
            folder.push()
    # Of runs that have rows what is tried again are edits that these models cannot have.
    if stored and not n_edited and not {run.fingerprint for _, run, _ in stored} & {name for name, _ in there}:
        raise StoreError(
            f"--explain {cell} --edit: none of {len(stored)} runs gave rows{f'; of the first, {whys[0]}' if whys else ''}"
        )
    return n_edited


def _edited(run: RunFolder, words: list[str]) -> tuple[list[Row], list[str]]:
    """The rows of the edits, and why one could not be made of this run."""
    try:
        return intervene(run.path, words).rows(run.fingerprint), []
    except StoreError:
        raise
    except ValueError as error:
        if len(words) == 1:
            return [], [f"{words[0]}: {error}"]
        parts = [_edited(run, [word]) for word in words]
        return [row for rows, _ in parts for row in rows], [why for _, refused in parts for why in refused]


def _check_cell(folder: StudyFolder, cell: str) -> dict[str, Any]:
    """What study.json says of a study that has the cell."""
    study = checked(folder)
    cells = [c["name"] for c in study["cells"]]
    if cell not in cells:
        raise StoreError(f"--explain {cell}: no such cell; expected {', '.join(cells)}{nearest(cell, cells)}")
    return study


def _check_arms(study: dict[str, Any], arms: Sequence[str]) -> None:
    gates = [a["name"] for a in study["arms"] if a["name"] != study["baseline"] and not a["control"]]
    for arm in arms:
        if arm not in gates:
            raise StoreError(f"--arm {arm}: no such gate to explain; expected {', '.join(gates)}{nearest(arm, gates)}")


def _recipe(study: dict[str, Any], of: Sequence[Comparison]) -> Recipe:
    """How the study's runs are planned again; of a built-in that does not say with which words it was, those that make this very
    cell of it."""
    recipe = recipe_of(study)
    if not recipe.is_sure and recipe.study and of:
        cell, words = of[0][0], words_of(study, *of[0])
        if words is not None:
            own = [w for w in words if not w.startswith(("cell=", "arm="))]
            return replace(recipe, cells={**recipe.cells, cell: (cell, own)}, is_sure=True)
    return recipe


def readings_of(claims: Iterable[Claim | Alarm]) -> dict[Comparison, list[str]]:
    """What the claims of a cell and arm are about."""
    out: dict[Comparison, list[str]] = {}
    for claim in claims:
        out.setdefault((claim.cell, claim.arm), []).append(claim.reading)
    return out


def cards_of(
    folder: StudyFolder,
    gathered: Gathered,
    of: Sequence[Comparison],
    readings: Mapping[Comparison, Iterable[str]],
    answered: Collection[Question] = (),
    *,
    recipe: Recipe | None = None,
    only: Sequence[str] = (),
) -> list[Card]:
    """The cards of these cells' gated arms, hypothesis by hypothesis, on their readings besides loss and sink, without
    those of `answered` questions that have no rows; with the recipe, and the arms that are asked for, for the commands that they
    print."""
    evidence, cells = gathered.evidence, list(dict.fromkeys(cell for cell, _ in of))
    # Of a study at an address weights are fetched by the edits alone.
    unstored = {
        name for (cell, _), seeds in gathered.runs.items() if cell in cells and folder.objects is None
        for name in seeds.values() if not (folder.run(name).path / WEIGHTS).exists()
    }  # fmt: skip
    ledger = Ledger(
        evidence, gathered.factors, gathered.runs, gathered.models, gathered.bases, edits_in(folder.path / FILE),
        folder.address, folder.study()["name"], courses(folder, cells), recipe=recipe, only=only, unstored=unstored,
    )  # fmt: skip
    return together(ledger, [
        card for cell, arm in of
        for card in cards(
            ledger, HYPOTHESES, cell, arm, list(dict.fromkeys([LOSS, MASS, *readings.get((cell, arm), ())]))
        )
        if card.verdict != "not run" or (arm, card.hypothesis, card.reading) not in answered
    ])  # fmt: skip


def edits_in(path: Path) -> dict[tuple[str, str, float], float]:
    """{(run, intervention, dose): change in loss} of the rows of `gatelab probe --intervene … --json`, the last one counting."""
    out = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            if row["metric"] == "loss_change" and isfinite(value := float(row["value"])):
                out[row["run"], row["intervention"], float(row["dose"])] = value
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            raise StoreError(
                f"{path}, line {number}: no row of `gatelab probe --intervene … --json`; remove that line"
            ) from None
    return out
