"""The scores of tasks that are drawn: accuracy, that of each key where many are asked, and the margin."""

from dataclasses import dataclass

from ..charts import Spec, channel


@dataclass(frozen=True)
class Score:
    """A metric, its words for a reader (with a capital), its axis, and what a title says of it behind the task's name."""

    metric: str
    said: str
    axis: str
    title: str = ""

    @property
    def is_share(self) -> bool:
        """Whether it lies between 0 and 1."""
        return self.axis.endswith("[share]")

    def y(self) -> Spec:
        """The encoding of its heights."""
        scale = {"domain": [0, 1], "nice": False} if self.is_share else {"zero": False}
        return channel("y:Q") | {"title": self.axis, "scale": scale, "axis": {"tickCount": 5}}


SCORES = (
    Score("exact_match", "Accuracy", "accuracy [share]"),
    Score("query_accuracy", "Accuracy at each key", "accuracy of each key [share]", ", each key"),
    Score("answer_margin", "Margin", "margin [nats]", ", margin"),
)
