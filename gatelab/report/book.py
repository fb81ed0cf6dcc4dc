"""The book: what the sections of the page read, and the charts they have placed so far."""

from dataclasses import dataclass, field

from ..record import Finding
from .charts import Arms, Figure
from .markup import Html, tag
from .measured import Measured


@dataclass
class Book:
    """What the sections read; `place` keeps the specifications of the charts in the order of the page."""

    measured: Measured
    findings: list[Finding]
    arms: Arms
    metrics: dict[str, dict]
    charts: list[dict] = field(default_factory=list)

    @property
    def words(self) -> dict[str, str]:
        """{metric: its words}."""
        return {name: metric["label"] for name, metric in self.metrics.items()}

    @property
    def cells(self) -> list[dict]:
        """The study's cells."""
        return self.measured.study["cells"]

    def place(self, figure: Figure, title: str | Html = "", caption: str = "") -> Html:
        """The figure's element; its specification is kept for the script that draws."""
        name = f"chart-{len(self.charts) + 1}"
        self.charts.append({"id": name, "fit": figure.fit, "spec": figure.spec})
        button = tag("button", "SVG", type="button", data_save=name, title="save this chart as SVG")
        return tag(
            "figure",
            tag("p", tag("span", title), button, class_="title"),
            tag("div", id=name, class_="chart", role="img", aria_label=figure.alt),
            tag("figcaption", caption) if caption else None,
        )

    def arm(self, name: str) -> Html:
        """An arm's words behind a short line in its colour."""
        colour = self.arms.colours[name][0]
        swatch = tag("span", class_="swatch", style=f"background:{colour}", aria_hidden="true")
        return tag("span", swatch, self.arms.labels[name])

    def heading(self, cell: dict) -> Html:
        """A cell's name as a heading."""
        return tag("h3", cell["title"])

    def holes(self, cell: str) -> str:
        """Which planned runs of a cell are not done, in words."""
        lost = [r for r in self.measured.runs if r.key[0] == cell and not r.is_done]
        if not lost:
            return ""
        return f" Not done: {', '.join(f'{self.arms.labels[r.key[1]]} seed {r.key[2]} ({r.fate})' for r in lost)}."


def absent(text: str, title: Html | None = None) -> Html:
    """An empty frame in the place of a figure."""
    return tag("figure", tag("p", title, class_="title") if title else None, tag("div", text, class_="absent"))
