"""Which off-switch a head uses: how it does nothing where it has nothing to give, read from its means over queries.

A softmax cannot attend to nothing. A head can be silent nevertheless: a gate shuts behind it, the mass goes to a slot
without a value, or to a key whose value is drained (docs/metrics.md; arXiv 2410.13835, 2410.10781). The first rule that
holds decides; what stands nearest to the head's output is asked first, because a shut gate silences whatever attention
does. The rules are of means: a head that is off at half of its tokens only may meet none of them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import isfinite

from ...record import Row

# switch -> its words, in the order in which the rules are asked.
SWITCHES = {
    "gate": "shut gate",
    "slot": "slot without a value",
    "drained": "sink with a drained value",
    "writes": "sink that writes",
    "unknown": "sink, value not measured",
    "diffuse": "no sink, diffuse",
    "other": "none of these",
}


@dataclass(frozen=True)
class Thresholds:
    """Where the rules cut. A gate is shut below `openness`; a slot or a sink has a mass above `slot` or `mass`; a value is
    drained below `drain` (its norm over the median of the others'); attention is diffuse above `entropy`, a share of the
    uniform one's.

    Raises:
        ValueError: for one outside of 0 to 1.
    """

    openness: float = 0.1
    slot: float = 0.3
    mass: float = 0.3
    drain: float = 0.3
    entropy: float = 0.9

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not 0 <= value <= 1:
                raise ValueError(f"Thresholds.{f.name}={value!r}: the rules compare shares and ratios; give 0 to 1")


DEFAULT = Thresholds()


@dataclass(frozen=True)
class HeadValues:
    """What the rules read of one head, None where it was not measured. The value norm of the first key is its key/value
    head's, which several heads share."""

    layer: int
    head: int
    openness: float | None = None
    slot: float | None = None
    first_mass: float | None = None
    first_drain: float | None = None
    importance: float | None = None
    drain: float | None = None
    entropy: float | None = None

    @property
    def sink(self) -> tuple[float, float | None]:
        """Mass and value drain of the key that gets most: the strongest one, or the first where that has more."""
        first, strongest = self.first_mass or 0.0, self.importance or 0.0
        return (first, self.first_drain) if first > strongest else (strongest, self.drain)


# field -> metric and the coordinates of its rows.
_SOURCES: dict[str, tuple[str, dict[str, object]]] = {
    "openness": ("gate_openness", {"site": "sdpa"}),
    "slot": ("sink_slot_mass", {}),
    "first_mass": ("first_token_mass", {}),
    "first_drain": ("value_drain", {}),
    "importance": ("sink_importance", {}),
    "drain": ("sink_value_drain", {}),
    "entropy": ("attention_entropy_relative", {}),
}


def off_switch(head: HeadValues, at: Thresholds = DEFAULT) -> str:
    """The head's switch, a key of `SWITCHES`. What was not measured meets no rule."""
    mass, drain = head.sink
    if head.openness is not None and head.openness < at.openness:
        return "gate"
    if head.slot is not None and head.slot > at.slot:
        return "slot"
    if mass > at.mass:
        return "unknown" if drain is None else "drained" if drain < at.drain else "writes"
    if head.entropy is not None and head.entropy > at.entropy:
        return "diffuse"
    return "other"


def census(heads: Iterable[HeadValues], at: Thresholds = DEFAULT) -> dict[str, int]:
    """{switch: how many heads use it}, of every switch, in the order of the rules."""
    found = Counter(off_switch(head, at) for head in heads)
    return {name: found[name] for name in SWITCHES}


def heads_of(rows: Iterable[Row], stack: str | None = None) -> list[HeadValues]:
    """The heads of a stack of which attention was measured, by layer and head.

    Raises:
        ValueError: where a layer's heads are no multiple of its key/value heads.
    """
    wanted = {metric: (name, at) for name, (metric, at) in _SOURCES.items()}
    values: dict[str, dict[tuple[int, int], float]] = {name: {} for name in _SOURCES}
    for row in rows:
        name, at = wanted.get(row.metric, ("", {}))
        if not name or row.head is None or row.layer is None or row.stack != stack or not isfinite(row.value):
            continue
        if (row.site, row.domain, row.intervention) == (at.get("site"), None, None):
            values[name][row.layer, row.head] = row.value
    attended = sorted({key for name in ("first_mass", "importance") for key in values[name]})
    values["first_drain"] = _of_query_heads(values["first_drain"], attended)
    return [HeadValues(*key, **{name: values[name].get(key) for name in _SOURCES}) for key in attended]


def _of_query_heads(
    values: dict[tuple[int, int], float], attended: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """What key/value heads have, by the heads that read them."""
    out = {}
    for layer in {layer for layer, _ in values}:
        n_heads = 1 + max((head for at, head in attended if at == layer), default=-1)
        n_kv = 1 + max(head for at, head in values if at == layer)
        if n_heads % n_kv:
            raise ValueError(
                f"layer {layer} has value_drain rows of {n_kv} key/value heads and {n_heads} heads, which is no multiple;"
                " give the rows of one look, with all their heads"
            )
        for head in range(n_heads):
            if (layer, head // (n_heads // n_kv)) in values:
                out[layer, head] = values[layer, head // (n_heads // n_kv)]
    return out
