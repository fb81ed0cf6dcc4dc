"""The book: what the sections of the page read, and the charts they have placed so far."""

from dataclasses import dataclass, field

from ..record import Finding
from .figures import Arms, Figure
from .markup import Html, tag
from .measured import Measured


@dataclass
class Book:
    """What the sections read, and the charts they have placed so far."""

    measured: Measured
    findings: list[Finding]
    arms: Arms
    metrics: dict[str, dict]
    charts: list[dict] = field(default_factory=list)

    @property
    def words(self) -> dict[str, str]:
        return {name: metric["label"] for name, metric in self.metrics.items()}

    @property
    def cells(self) -> list[dict]:
        return self.measured.study["cells"]

    def place(self, figure: Figure, title: str | None = None, caption: str = "", arm: str | None = None) -> Html:
        """The figure's element; its specification is kept for the script that draws."""
        name = f"chart-{len(self.charts) + 1}"
        self.charts.append({"id": name, "fit": figure.fit, "spec": figure.spec})
        button = tag("button", "SVG", type="button", data_save=name, title="save this chart as SVG")
        heading = [self.swatch(arm) if arm else None, tag("span", self.arms.labels[arm] if arm else title), button]
        return tag(
            "figure",
            tag("p", heading, class_="title") if arm or title else None,
            tag("div", id=name, class_="chart", role="img", aria_label=figure.alt),
            tag("figcaption", caption) if caption else None,
        )

    def swatch(self, arm: str) -> Html:
        """A short line in the arm's colour."""
        colour = self.arms.colours[arm][0]
        return tag("span", class_="swatch", style=f"background:{colour}", aria_hidden="true")

    def heading(self, cell: dict) -> Html:
        return tag("h3", cell.get("title") or cell["name"])

    def holes(self, cell: str) -> str:
        """Which planned runs of a cell are not done, in words."""
        lost = [r for r in self.measured.runs if r.key[0] == cell and not r.is_done]
        if not lost:
            return ""
        return f" Not done: {', '.join(f'{self.arms.labels[r.key[1]]} seed {r.key[2]} ({r.fate})' for r in lost)}."


def absent(text: str, book: Book | None = None, arm: str | None = None) -> Html:
    """An empty frame in the place of a figure."""
    title = tag("p", book.swatch(arm), book.arms.labels[arm], class_="title") if book and arm else None
    return tag("figure", title, tag("div", text, class_="absent"))
