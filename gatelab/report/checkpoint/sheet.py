"""The sheet: what the sections of a checkpoint's page read, and the figures they have placed, with scales and keys."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, log
from typing import Any

from ..charts import Figure
from ..markup import NONE, Html, decimal, number, tag
from ..style import RAMP
from .seen import STACKS, Seen, Table

# Blue, through a grey that is neither paper nor night, to orange: apart for colour-blind readers too.
DIVERGING = ("#08519c", "#3f86c4", "#9dbfdd", "#c9c9c9", "#f2b983", "#dd7a26", "#a34100")

# Pixels that a caption wants.
_NARROWEST = 250


@dataclass
class Sheet:
    """What the sections read; `place` keeps the specifications of the charts in the order of the page."""

    seen: Seen
    table: Table
    charts: list[dict] = field(default_factory=list)

    def place(self, figure: Figure, title: str | Html, caption: str | Html) -> Html:
        """The figure's element, as wide as its chart wants to be; the specification is kept for the script that draws."""
        name = f"chart-{len(self.charts) + 1}"
        self.charts.append({"id": name, "fit": figure.fit, "spec": figure.spec})
        return plate(name, figure, title, caption)

    def heading(self, stack: str | None, stacks: Sequence[str | None]) -> Html | None:
        """A heading for a stack, where there is more to tell apart than causal self-attention."""
        return tag("h3", STACKS.get(stack, stack)) if list(stacks) != [None] else None


def section(name: str, title: str, *children: object) -> Html:
    """A section under its heading."""
    return tag("section", tag("h2", title), children, id=name)


def plate(name: str, figure: Figure, title: str | Html, caption: str | Html) -> Html:
    """A titled and captioned place in which a chart is drawn."""
    return tag(
        "figure",
        tag("p", tag("span", title), tag("button", "SVG", type="button", data_save=name, title="save this chart as SVG"),
            class_="title"),
        tag("div", id=name, class_="chart", role="img", aria_label=figure.alt),
        tag("figcaption", caption),
        style=f"width:{max(figure.fit, _NARROWEST)}px" if figure.fit else None,
    )  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Values as shares of a colour ramp, from `low` to `high`, beyond which they have the last colour.

    On a logarithmic scale both ends are above 0; with `is_diverging` the middle of the ramp is the middle between them.
    """

    low: float
    high: float
    is_log: bool = False
    is_diverging: bool = False

    @property
    def ramp(self) -> tuple[str, ...]:
        """Its colours, evenly spaced."""
        return DIVERGING if self.is_diverging else RAMP

    @property
    def is_plain(self) -> bool:
        """Whether a value is its own share."""
        return (self.low, self.high, self.is_log) == (0.0, 1.0, False)

    @property
    def ends(self) -> tuple[str, str]:
        """Both ends in words."""
        low, high = (number(end) if end % 1 else f"{end:.0f}".replace("-", "−") for end in (self.low, self.high))
        return low, high

    def share(self, value: float) -> float:
        """Where between the ends a value lies, 0 to 1."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = log(low), log(high), log(max(value, low))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def legend(self, words: str) -> Html:
        """The ramp between its ends, and what it is of."""
        ramp = tag("i", style=f"background:linear-gradient(90deg,{','.join(self.ramp)})", role="img",
                   aria_label="colour scale")  # fmt: skip
        return tag("div", self.ends[0], ramp, self.ends[1], tag("span", words, class_="quiet"), class_="ramp")


def key(entries: Sequence[tuple[str, str]]) -> Html:
    """Colours and their words, as a line above charts."""
    items = [tag("li", swatch(colour), words) for colour, words in entries]
    return tag("ul", items, class_="key")


def swatch(colour: str) -> Html:
    """A short line in a colour."""
    return tag("span", class_="swatch", style=f"background:{colour}", aria_hidden="true")


def percent(value: float | None) -> str:
    """A share in percent, a dash for none."""
    return NONE if value is None else f"{decimal(100 * value, 1)}%"


def down(n_layers: int) -> Any:
    """The axis of layers that run down a map, 0 above."""
    import altair as alt

    step = ceil(n_layers * 13 / height_of(n_layers))
    axis = alt.Axis(values=list(range(0, n_layers, step)), format="d", grid=False, domain=False, ticks=False)
    return alt.Y(
        "y:Q", title="layer", axis=axis, scale=alt.Scale(domain=[n_layers - 0.5, -0.5], nice=False, zero=False)
    )


def height_of(n_layers: int) -> int:
    """Pixels down of a map."""
    return round(n_layers * min(22.0, max(7.0, 420 / n_layers)))
