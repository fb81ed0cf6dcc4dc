"""The causes of an anomaly: edits of finished runs, and the verdict cards that their rows and the study's give."""

import json
from collections.abc import Callable, Iterable, Sequence
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
from ..analysis.stages import Claim
from ..config import nearest
from ..record import Row
from ..store import RunFolder, StoreError, StudyFolder
from ..study.checkpoints import WEIGHTS
from ..study.ledger import state_of
from .declared import registration_of
from .finding import hunt, screened
from .looking import intervene


def explain(folder: StudyFolder, cell: str) -> list[Card]:
    """A verdict card a hypothesis and gate of a cell, from the rows there are; those that explain a reading on the held-out loss,
    on the first-token mass, and on what a registered claim (where nothing is registered, an anomaly) of that gate is about.

    Raises:
        StoreError: no such cell; as `hunt` does.
    """
    _check_cell(folder, cell)
    gathered = screened(folder)
    kept = registration_of(folder)
    claims = hunt(folder, gathered).screened.anomalies if kept is None else kept.claims
    return cards_of(folder, gathered, [(cell, arm) for arm in gathered.evidence.arms], claims)


def edit(
    folder: StudyFolder, cell: str, seeds: list[int] | None = None, *, tell: Callable[[str], None] = lambda _: None
) -> int:
    """Make the rows of edits that a cell's cards lack, of its finished runs with these seeds (None: all of the screen), in
    `causes.jsonl`, run by run; returns of how many. It needs the runs' weights, and neither their rows nor a database.

    Raises:
        StoreError: no such cell, no finished run of these seeds; a study or a file that was edited.
    """
    if find_spec("scipy") is None:
        raise StoreError(
            "--edit: the intervals of edits need SciPy, which this machine does not have; install it, or take the runs' folders"
            " with their weights to one that has it"
        )
    folder.refresh(lambda name: name == WEIGHTS)
    study = _check_cell(folder, cell)
    gated = {a["name"]: a["name"] != study["baseline"] for a in study["arms"] if not a["control"]}
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
    there, n_edited = {(name, word) for name, word, _ in edits_in(path)}, 0
    for i, (e, run) in enumerate(runs, 1):
        asked = edits_of(run.config()["model"], gated=gated[e["arm"]])
        words = [w for w in asked if (run.fingerprint, w) not in there]
        if not words:
            continue
        rows, refused = _edited(run, words)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row.as_dict()) + "\n" for row in rows)
        n_edited += 1
        folder.push()
        tell("; ".join([f"{i} of {len(runs)}: {e['arm']} seed {e['seed']}, {len(rows)} rows", *refused]))
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


def cards_of(
    folder: StudyFolder, gathered: Gathered, of: Sequence[Comparison], claims: Iterable[Claim | Alarm]
) -> list[Card]:
    """The cards of these cells' gated arms, hypothesis by hypothesis, on the readings of their claims besides loss and sink."""
    evidence, cells = gathered.evidence, list(dict.fromkeys(cell for cell, _ in of))
    ledger = Ledger(
        evidence, gathered.factors, gathered.runs, gathered.models, gathered.bases, edits_in(folder.path / FILE),
        folder.address, folder.study()["name"], courses(folder, cells),
    )  # fmt: skip
    asked = {where: [LOSS, MASS] for where in of}
    for claim in claims:
        asked.get((claim.cell, claim.arm), []).append(claim.reading)
    return [
        card for (cell, arm), readings in asked.items()
        for card in cards(ledger, HYPOTHESES, cell, arm, list(dict.fromkeys(readings)))
    ]  # fmt: skip


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
