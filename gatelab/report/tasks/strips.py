"""Attention and gate scores along one item as pictures: a row a layer, a column a token, the evidence marked above.

Notable: a picture of 128 by 4 points is a PNG of some hundred bytes, and the browser makes it large; drawn as a chart it would be
five hundred records.
"""

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..markup import Html, decimal, tag
from ..style import RAMP

if TYPE_CHECKING:
    from ...tasks import TaskItem

_SHADES = 250  # of the ramp; those behind it are for the marks
_NOTHING, _EVIDENCE, _ASKED = _SHADES, _SHADES + 1, _SHADES + 2
_MARKS = ("#00000000", "#d55e00ff", "#0072b2ff")
_CSS = "display:block;width:100%;max-width:46rem;image-rendering:pixelated"


def strip_figure(title: Html, strips: dict[str, Any], item: "TaskItem") -> Html:
    """Attention of the token before the answer, and each gate's scores, under a line that marks evidence and question."""
    attention = strips["attention"]
    top = max((v for row in attention for v in row), default=0) or 1
    paid = _on_evidence(attention, item)
    said = f"Attention of the token before the answer: {decimal(paid, 2)} of it on the evidence, mean over layers and heads"
    pictures = [_picture(attention, top, item, f"{said}; brightest {top / 1000:g}.")]
    for site, scores in strips["gates"].items():
        mean = sum(v for row in scores for v in row) / max(1, sum(map(len, scores))) / 1000
        pictures.append(
            _picture(scores, 1000, item, f"Gate scores at {site}: mean {decimal(mean, 2)}; brightest 1, open.")
        )
    marks = "Rows: layers, the first on top. Columns: tokens. Line above: evidence orange, the token before the answer blue."
    return tag("figure", tag("p", title, class_="title"), pictures, tag("figcaption", marks))


def _on_evidence(attention: Sequence[Sequence[int]], item: "TaskItem") -> float:
    inside = [t for start, end in item.evidence for t in range(start, end)]
    return sum(row[t] for row in attention for t in inside) / 1000 / max(1, len(attention))


def _picture(rows: Sequence[Sequence[int]], top: int, item: "TaskItem", words: str) -> Html:
    mark = [_NOTHING] * len(item.tokens)
    for start, end in item.evidence:
        mark[start:end] = [_EVIDENCE] * (end - start)
    mark[item.asked[0]] = _ASKED
    shades = [[min(_SHADES - 1, max(0, v * (_SHADES - 1) // top)) for v in row] for row in rows]
    data = b64encode(png([mark, *shades])).decode()
    height = f"height:{12 * (1 + len(rows))}px"
    image = tag("img", src=f"data:image/png;base64,{data}", alt=words, style=f"{_CSS};{height}")
    return tag("div", image, tag("p", words, class_="about"))


def png(indices: Sequence[Sequence[int]]) -> bytes:
    """Rows of numbers of the palette as a picture (PNG, ISO/IEC 15948: palette, 8 bits, no interlace)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    palette = [*(f"{c}ff" for c in _ramp()), *_MARKS]
    colours = [bytes.fromhex(c[1:]) for c in palette]
    header = struct.pack(">IIBBBBB", len(indices[0]), len(indices), 8, 3, 0, 0, 0)
    raw = b"".join(b"\0" + bytes(row) for row in indices)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"PLTE", b"".join(c[:3] for c in colours)),
            chunk(b"tRNS", bytes(c[3] for c in colours)),
            chunk(b"IDAT", zlib.compress(raw, 9)),
            chunk(b"IEND", b""),
        ]
    )


def _ramp() -> list[str]:
    """The page's ramp in as many shades, between its colours straight."""
    stops = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in RAMP]
    out = []
    for shade in range(_SHADES):
        place = shade / (_SHADES - 1) * (len(stops) - 1)
        i = min(int(place), len(stops) - 2)
        mixed = (round(a + (b - a) * (place - i)) for a, b in zip(stops[i], stops[i + 1], strict=True))
        out.append("#" + "".join(f"{v:02x}" for v in mixed))
    return out
