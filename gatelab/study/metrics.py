"""The study metrics: which row is a run's final value, in which words, and what counts as nothing.

Equivalence bounds are the sizes below which the difference would not change what anyone does: 0.01 nats is about half
of what the paper's gate gives (arXiv 2505.06708, Table 2), a tenth of a threshold for shares and ratios.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ..config.base import ConfigError, nearest
from ..record import Metric

LOWER, HIGHER, NEUTRAL = "lower-is-better", "higher-is-better", "neutral"
SOLVED = 0.9  # accuracy from which a task counts as solved
# What is above it is SOLVED or more.
_BELOW_SOLVED = math.nextafter(SOLVED, 0)


@dataclass(frozen=True)
class Source:
    """A metric, and where its value is: in a model-level row with the coordinate `threshold` (None: without one), or among
    what `gatelab.analysis.tasks` makes of the rows of `tasks`, in cells of data=tasks."""

    metric: Metric
    at: float | None = None
    of: Literal["rows", "tasks"] = "rows"


def _accuracy(times: int, where: str) -> Source:
    """The accuracy at a multiple of the length of training: solved or not where the runs fall into these two groups."""
    return Source(
        Metric(
            f"task_accuracy@{times}x", "share", HIGHER, f"accuracy {where}",
            bimodal=True, threshold=_BELOW_SOLVED, event=f"at least {SOLVED:g} of the items are right {where}", graded=True,
        ),
        of="tasks",
    )  # fmt: skip


_ALL = (
    Source(Metric("val_loss", "nats", LOWER, "held-out loss", equivalence=0.01)),
    Source(
        Metric(
            "first_token_mass", "share", NEUTRAL, "first-token mass",
            bimodal=True, threshold=0.3, event="more than 0.3 of the attention goes to the first token",
        )
    ),
    Source(
        Metric(
            "sink_rate", "share", NEUTRAL, "sink rate",
            bimodal=True, threshold=0.5, event="most heads have a first-token sink",
        ),
        at=0.3,
    ),
    Source(Metric("value_drain", "ratio", NEUTRAL, "value norm of the first token over the median", equivalence=0.05)),
    Source(Metric("massive_max", "1", NEUTRAL, "largest activation, mean over layers")),
    Source(Metric("massive_ratio", "ratio", NEUTRAL, "largest activation over the median")),
    Source(Metric("loss_spikes", "count", LOWER, "loss spikes above the rolling median")),
    Source(Metric("gate_mean", "1", NEUTRAL, "mean gate score")),
    Source(Metric("gate_below", "share", NEUTRAL, "share of gate scores below 0.1"), at=0.1),
    _accuracy(1, "at the length of training"),
    _accuracy(8, "at eight times the length of training"),
    Source(Metric("task_margin@1x", "nats", HIGHER, "margin of the answer at the length of training"), of="tasks"),
    Source(Metric("task_margin@8x", "nats", HIGHER, "margin of the answer at eight times that length"), of="tasks"),
    Source(Metric("task_u_index@1x", "share", NEUTRAL, "U-index at the length of training"), of="tasks"),
    Source(Metric("task_u_index@8x", "share", NEUTRAL, "U-index at eight times that length"), of="tasks"),
)  # fmt: skip

# Of a run's rows those of one stack and one gate, for what shows one number a run: causal self-attention, or the encoder
# where there is nothing else (never cross-attention); the gate at G1, or the first where there is none.
MAIN_ROWS = """
    CREATE TEMP TABLE decoders AS SELECT DISTINCT run FROM rows WHERE metric = 'first_token_mass' AND stack IS NULL;
    CREATE TEMP VIEW stack_rows AS SELECT * FROM rows WHERE stack IS NULL OR stack = 'encoder' AND run NOT IN (FROM decoders);
    CREATE TEMP TABLE main_sites AS
        SELECT run, coalesce(min(site) FILTER (site = 'sdpa'), min(site)) AS main_site FROM stack_rows GROUP BY run;
    CREATE TEMP VIEW main_rows AS SELECT stack_rows.* FROM stack_rows JOIN main_sites USING (run)
        WHERE site IS NULL OR site = main_site
"""

STUDY_METRICS: dict[str, Source] = {s.metric.name: s for s in _ALL}


def choose(primary: tuple[str, ...], equivalence: dict[str, float]) -> list[Metric]:
    """All study metrics, the `primary` ones marked and their equivalence bounds replaced where stated.

    Raises:
        ConfigError: for names that do not exist.
    """
    from dataclasses import replace

    problems = [
        f"{where}: no metric {name!r}; expected {', '.join(STUDY_METRICS)}{nearest(name, list(STUDY_METRICS))}"
        for where, names in (("primary", primary), ("equivalence", tuple(equivalence)))
        for name in names
        if name not in STUDY_METRICS
    ]
    if problems:
        raise ConfigError(problems)
    return [
        replace(s.metric, primary=name in primary, equivalence=equivalence.get(name, s.metric.equivalence))
        for name, s in STUDY_METRICS.items()
    ]
