"""The step at which a sink emerges, read from looks at several steps.

Notable: a look is one number of a few sequences, so one look alone shows nothing: neither the last one above the threshold,
nor one below it in the midst of others. What has not emerged at the last look has the step infinity, which counts in a
median, where a missing row would not.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from ...record import Row

# A metric, and the value above which there is a sink: the study's events (gatelab/study/metrics.py); 0.3 is the importance
# of arXiv 2410.10781.
SINKS: dict[str, float] = {"first_token_mass": 0.3, "sink_importance": 0.3, "sink_rate": 0.5, "sink_rate_any": 0.5}

# So many looks one after the other are no fluke.
_LOOKS = 2


def emergence(points: Iterable[tuple[int, float]], threshold: float, *, lasting: int | None = None) -> int | None:
    """The first step from which on the value is above the threshold; None where there is none.

    A look counts when it is above, or when it alone is not, after two that are and before one that is. Such looks must
    reach from the step to the last look, and be at least two. Between the step before and this one it happened.

    Args:
        points: (step, value), in any order; a value that is no number is not above.
        lasting: so many looks in a row are enough, whatever comes after them; None: all that follow.

    Raises:
        ValueError: a step that comes twice, a threshold that is no number, `lasting` below two.

    Example:
        emergence([(0, 0.1), (100, 0.4), (200, 0.1), (300, 0.5), (400, 0.6)], 0.3) is 300
    """
    found = sorted(points)
    steps, values = [step for step, _ in found], [value for _, value in found]
    if len(set(steps)) < len(steps):
        twice = next(a for a, b in pairwise(steps) if a == b)
        raise ValueError(f"step {twice} comes twice; give one value a step, those of one run, layer and head")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold={threshold!r}: expected a number")
    if lasting is not None and lasting < _LOOKS:
        raise ValueError(f"lasting={lasting!r}: expected at least {_LOOKS} looks, as one may be a fluke, or None")
    counts = _counting([value > threshold for value in values])
    ends = [i for i in range(len(counts)) if counts[i] and (i + 1 == len(counts) or not counts[i + 1])]
    for end in ends:
        start = end
        while start and counts[start - 1]:
            start -= 1
        is_last = end + 1 == len(counts)
        if end - start + 1 >= (lasting or _LOOKS) and (is_last or lasting is not None):
            return steps[start]
    return None


def emergence_rows(rows: Iterable[Row], *, lasting: int | None = None) -> list[Row]:
    """Rows of metric `sink_emergence_step`, for whatever of `SINKS` was seen at three steps or more: of the model, of a
    layer, of a head. `source` is the metric whose emergence it is, `step` the last look; other coordinates are kept.

    Args:
        rows: of looks, of any runs; those of other metrics are passed over.
        lasting: as in `emergence`.

    Raises:
        ValueError: two rows that say the same thing; `lasting` below two.
    """
    series: dict[Row, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        if row.metric in SINKS:
            series[replace(row, step=0, value=0.0)].append((row.step, row.value))
    return [_row(place, points, lasting) for place, points in series.items() if len(points) > _LOOKS]


def _row(place: Row, points: list[tuple[int, float]], lasting: int | None) -> Row:
    step = emergence(points, SINKS[place.metric], lasting=lasting)
    value = math.inf if step is None else float(step)
    last = max(at for at, _ in points)
    return replace(
        place, step=last, source=place.metric, metric="sink_emergence_step", value=value, unit="step"
    )  # fmt: skip


def _counting(above: Sequence[bool]) -> list[bool]:
    return [
        is_above or (_LOOKS <= i < len(above) - 1 and all(above[i - _LOOKS : i]) and above[i + 1])
        for i, is_above in enumerate(above)
    ]
