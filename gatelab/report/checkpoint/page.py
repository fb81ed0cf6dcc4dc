"""The page of a probed checkpoint: one HTML file that asks nothing of the network, and its rows as CSV beside it."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from ... import __version__
from ...record import Row
from ...store import write_text
from ..document import document
from ..markup import Html, join, tag
from ..parts import contents, footer, glossary
from ..tables import csv_text
from .activations import activations
from .along import positions
from .anywhere import anywhere
from .gates import gates
from .head_maps import maps
from .header import header
from .interventions import interventions
from .script import SWITCH
from .seen import Seen, Table
from .sheet import Sheet
from .stylesheet import MORE_CSS
from .switches import switches

_PLAIN = "The charts and the thresholds need JavaScript. The tables and the CSV file do not."
_WORDS = {
    "First-token mass": "Share of attention on the first token, mean over the queries after it. Read it beside what uniform"
    " attention would give, which falls with length.",
    "Importance": "Of a key: its mean share of the attention of the queries that see it. The strongest key is the one with the"
    " largest, among those that enough queries see.",
    "Value drain": "Norm of a key's value over the median of the others'; below 0.3 is called drained: attending there writes"
    " little.",
    "Logit gap": "How far the first token's logit is above what all others make together; 0 is half of the mass.",
    "Gate openness": "What of a head's output the gate on it lets through, weighed by energy.",
    "Massive activation": "A single entry of the residual stream that is far larger than the median |entry|.",
    "Averages": "Over queries first, then over sequences, then over heads, then over layers, unless a caption says otherwise.",
    "Heads and layers": "Counted from 0, layers within their stack. Key/value heads are fewer than heads where several heads"
    " share one.",
    "A gap": "Nothing was measured there. It is never a zero.",
}


def write_checkpoint_page(path: Path, look: Seen) -> Path:
    """Write the page, and every row and effect in full as CSV beside it, under the same name; returns the page's path.

    Same look in, same bytes out. Sections of probes that have no rows are left out. Each file is replaced at once or not at
    all; the folder has to be there.

    Raises:
        ValueError: for a path that does not end in .html or cannot be a file, or rows of which two are of the same place.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(
            f"the page {str(path)!r} does not end in .html: its CSV file is named after it; give such a path"
        )
    if not path.parent.is_dir() or path.is_dir():
        what = "is a folder" if path.is_dir() else f"is to stand in {str(path.parent)!r}, which is no folder"
        raise ValueError(f"the page {str(path)!r} {what}: give a file in a folder that is there")
    sheet = Sheet(look, Table(look.rows))
    beside = path.with_suffix(".csv")
    body = _body(sheet, beside.name)
    write_text(beside, _rows_csv([*look.rows, *look.effects]))
    write_text(path, document(look.name, body, sheet.charts, plain=_PLAIN, css=MORE_CSS, script=SWITCH))
    return path


def _body(sheet: Sheet, beside: str) -> Html:
    parts = {
        "maps": ("Heads", maps(sheet)),
        "switches": ("Off-switches", switches(sheet)),
        "anywhere": ("Sinks", anywhere(sheet)),
        "gates": ("Gates", gates(sheet)),
        "activations": ("Activations", activations(sheet)),
        "positions": ("Positions", positions(sheet)),
        "interventions": ("Interventions", interventions(sheet)),
        "how": ("How to read this page", glossary(_WORDS.items())),
    }
    there = {anchor: (word, part) for anchor, (word, part) in parts.items() if part is not None}
    nav = contents({anchor: word for anchor, (word, _) in there.items()})
    main = tag("main", [part for _, part in there.values()])
    return join([header(sheet.seen, nav), main, footer(__version__, beside)])


def _rows_csv(rows: Iterable[Row]) -> str:
    """Every field of every row; what a row does not have is empty."""
    names = [f.name for f in fields(Row)]
    return csv_text(names, ({name: getattr(row, name) for name in names} for row in rows))
