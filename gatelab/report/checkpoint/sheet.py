"""The sheet: what the sections of a checkpoint's page read, and the scales of its colours."""

from dataclasses import dataclass, field
from math import log

from ..document import Charts
from ..markup import NONE, Html, decimal, number, tag
from ..parts import ramp
from ..style import RAMP
from .seen import STACKS, Seen, Table

# Blue, through a grey that is neither paper nor night, to orange: apart for colour-blind readers too.
DIVERGING = ("#08519c", "#3f86c4", "#9dbfdd", "#c9c9c9", "#f2b983", "#dd7a26", "#a34100")


@dataclass
class Sheet:
    """What the sections read, and the charts they place."""

    seen: Seen
    table: Table
    charts: Charts = field(default_factory=Charts)

    def stacks(self, *metrics: str) -> list[tuple[str | None, Html | None]]:
        """The stacks that have rows of one of the metrics, each with its heading where there is more to tell apart than
        causal self-attention."""
        found = self.table.stacks(*metrics)
        return [(stack, tag("h3", STACKS.get(stack, stack)) if found != [None] else None) for stack in found]


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
        return ramp(self.ramp, *self.ends, words)


def percent(value: float | None) -> str:
    """A share in percent, a dash for none."""
    return NONE if value is None else f"{decimal(100 * value, 1)}%"
