"""The book: what the sections of the page read, and the charts they have placed so far."""

from dataclasses import dataclass, field

from ..record import Finding
from .charts import Arms
from .document import Charts
from .markup import Html, tag
from .measured import Measured
from .parts import swatch


@dataclass
class Book:
    """What the sections read, and the charts they place."""

    measured: Measured
    findings: list[Finding]
    arms: Arms
    metrics: dict[str, dict]
    charts: Charts = field(default_factory=Charts)

    @property
    def words(self) -> dict[str, str]:
        """{metric: its words}."""
        return {name: metric["label"] for name, metric in self.metrics.items()}

    @property
    def cells(self) -> list[dict]:
        """The study's cells."""
        return self.measured.study["cells"]

    def arm(self, name: str) -> Html:
        """An arm's words behind a short line in its colour."""
        return tag("span", swatch(*self.arms.colours[name]), self.arms.labels[name])

    def heading(self, cell: dict) -> Html:
        """A cell's name as a heading."""
        return tag("h3", cell["title"])

    def holes(self, cell: str) -> str:
        """Which planned runs of a cell are not done, in words."""
        lost = [r for r in self.measured.runs if r.key[0] == cell and not r.is_done]
        if not lost:
            return ""
        return f" Not done: {', '.join(f'{self.arms.labels[r.key[1]]} seed {r.key[2]} ({r.fate})' for r in lost)}."
