"""HTML that cannot be broken by what is put into it, and numbers as a reader wants them.

Every string child or attribute of `tag` is escaped; only what `tag` (or `Html`, around text of our own) made goes in as
it is. So a study called `<script>` is a title like any other.
"""

from collections.abc import Iterable
from html import escape
from math import floor, isfinite, log10
from typing import Any

NONE = "–"
_VOID = ("meta", "link", "br", "input", "img")


class Html(str):
    """Text that is markup already."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """`<name attributes>children</name>`, children escaped unless they are `Html`, lists flattened, None left out.

    A trailing underscore is dropped from an attribute's name and other underscores become hyphens (`class_`,
    `aria_label`); True stands for an attribute without a value, None and False for none.
    """
    pairs = [(k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items() if v is not None and v is not False]
    words = [key if value is True else f'{key}="{escape(str(value))}"' for key, value in pairs]
    head = " ".join([name, *words])
    return Html(f"<{head}>" if name in _VOID else f"<{head}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """The children one after another."""
    return Html("".join(_markup(child) for child in children))


def _markup(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return escape(str(child), quote=False)


def number(x: float | None, digits: int = 3) -> str:
    """`x` with so many significant digits, a true minus sign, thousands kept whole: −0.0312, 12.3, 1,234, 5.2e−7."""
    if x is None or not isfinite(x):
        return NONE
    return decimal(x, places(x, digits))


def places(x: float, digits: int = 3) -> int:
    """Decimals that show `digits` significant digits of `x`."""
    return max(0, digits - 1 - floor(log10(abs(x)))) if x else 0


def decimal(x: float | None, decimals: int) -> str:
    """`x` with so many decimals and a true minus sign; in powers of ten where most of them would be zeros."""
    if x is None or not isfinite(x):
        return NONE
    text = f"{x:z,.{decimals}f}" if decimals <= 6 else f"{x:.1e}"
    return text.replace("-", "−")


def probability(p: float | None) -> str:
    """A p or q value: two significant digits, nothing below 0.001."""
    if p is None or not isfinite(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def quantity(n: float | None) -> str:
    """A large count in words of three digits: 812, 12.3 k, 3.4 M, 1.2 G."""
    if n is None:
        return NONE
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= factor:
            return f"{n / factor:.3g} {letter}"
    return f"{n:g}"


def duration(seconds: float | None) -> str:
    """A time as its two largest units: 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None or not isfinite(seconds):
        return NONE
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def span(values: Iterable[float]) -> str:
    """One quantity, or the smallest and the largest of several; a dash for none."""
    values = list(values)
    if not values:
        return NONE
    low, high = min(values), max(values)
    return quantity(low) if low == high else f"{quantity(low)} to {quantity(high)}"
