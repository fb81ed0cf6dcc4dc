"""What somebody may want of a gate: a literal table of uses, each with the metric that tells it and the direction that is better.

A new use is one entry. Two metrics are no rows but comparisons, made of rows that there are: `rate_cost` and `loss_spread`
(docs/metrics.md, "In a study"). A use is not asked where the rows lack its metric: those of versions that counted loss spikes by
either threshold alone do not tell which training has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..record import Metric

RATE_COST = Metric("rate_cost", "nats", "lower-is-better", "what the largest learning rate costs in held-out loss")
LOSS_SPREAD = Metric("loss_spread", "ln", "lower-is-better", "spread of the held-out loss over seeds")

On = Literal["all", "tasks", "other"]


@dataclass(frozen=True, slots=True)
class Use:
    """`better` is the sign of a change of `metric` that serves it. `on` says in which settings it is asked: those of data=tasks,
    the `other` ones, or all. `readings` are families of the screen's readings whose confirmed anomalies speak against it."""

    name: str
    metric: str
    better: Literal[-1, 1]
    on: On = "all"
    readings: tuple[str, ...] = ()

    def is_asked(self, base: Mapping[str, Any]) -> bool:
        """Whether it is asked of a cell with this configuration."""
        data = base.get("data")
        is_tasks = isinstance(data, Mapping) and data.get("kind") == "tasks"
        return self.on == "all" or (self.on == "tasks") == is_tasks


USES: tuple[Use, ...] = (
    Use("a lower held-out loss", "val_loss", -1, "other", ("val_loss",)),
    Use("no first-token sink", "first_token_mass", -1, "all", ("first_token_mass", "sink_elsewhere")),
    Use("lower peaks of activations", "massive_max", -1, "all", ("massive_max", "massive_ratio")),
    Use("a larger learning rate", "rate_cost", -1, "all", ("val_loss", "unstable")),
    Use("a training without loss spikes", "loss_spikes", -1, "all", ("loss_spikes", "unstable")),
    Use("seeds that end alike", "loss_spread", -1, "other"),  # a task that some seeds solve has losses of two kinds
    Use("a lower loss on tasks", "val_loss", -1, "tasks", ("val_loss",)),
    Use("tasks that are learnt", "task_accuracy@1x", 1, "tasks", ("accuracy",)),
    Use("reach to eight times the length of training", "task_accuracy@8x", 1, "tasks", ("longer",)),
)  # fmt: skip
