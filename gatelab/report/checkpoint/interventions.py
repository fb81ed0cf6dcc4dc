"""The section of the interventions: the change in loss of each, with its interval, beside its control."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

from ...record import Row
from ..markup import Html, number, tag
from ..parts import section
from ..style import BASELINE, DASHED, ORANGE, SOLID
from ..tables import table
from .figures import Series, key
from .intervals import Estimate, dose_response, forest
from .sheet import Sheet

_CONTROL = "control of "


@dataclass
class _Curve:
    """{dose: [change, low, high]} of one intervention, None where there is no bound; `divergence` where it was taken."""

    name: str
    doses: dict[float, list[float | None]] = field(default_factory=dict)
    divergence: dict[float, float] = field(default_factory=dict)

    @property
    def is_control(self) -> bool:
        return self.name.startswith(_CONTROL)

    @property
    def at(self) -> list[float]:
        """Its doses with a change, the largest last."""
        return sorted((d for d, v in self.doses.items() if v[0] is not None), key=abs)

    def series(self) -> Series:
        """Its line, with a band where every dose has an interval (a dose of 0 may do without)."""
        bounds = [(self.doses[d][1], self.doses[d][2]) for d in self.at]
        full = [(v if low is None else low, v if high is None else high) for (low, high), d in zip(bounds, self.at, strict=True)
                for v in [self.doses[d][0]]]  # fmt: skip
        has_band = any(low is not None for low, _ in bounds)
        points = sorted((d, self.doses[d][0]) for d in self.at)
        ordered = [edge for _, edge in sorted(zip(self.at, full, strict=True))]
        low, high = ([edge[i] for edge in ordered] if has_band else [] for i in (0, 1))
        colour, dash = (BASELINE, DASHED) if self.is_control else (ORANGE, SOLID)
        return Series("control" if self.is_control else "intervention", colour, points, dash, low, high)


def interventions(sheet: Sheet) -> Html | None:
    """A forest plot of the largest doses, and a curve of each intervention with more than one; nothing without effects."""
    curves = _curves(sheet.seen.effects)
    if not curves:
        return None
    pairs = [(c, curves.get(_CONTROL + c.name)) for c in curves.values() if not c.is_control]
    pairs += [(c, None) for c in curves.values() if c.is_control and c.name.removeprefix(_CONTROL) not in curves]
    unit = next((r.unit for r in sheet.seen.effects if r.metric == "loss_change"), "nats")
    estimates = [_estimate(c) for pair in pairs for c in pair if c]
    said = "; ".join(f"{e.label} {number(e.value)}" for e in estimates)
    chart = forest(estimates, f"Change in loss of each intervention. {said}", x_title=f"change in loss [{unit} a token]",
                   colour=ORANGE)  # fmt: skip
    caption = (
        "Each at its largest dose. Dot: the mean over documents. Bar: its interval. Right of the rule: the edit hurts."
    )
    figures = [sheet.charts.place(chart, "Change in loss", caption)]
    figures += [f for c, control in pairs if (f := _response(sheet, c, control, unit))]
    lead = (
        "What editing the forward pass does to the loss on the same tokens, and what an edit of the same size does elsewhere."
        " An effect is one where the two differ."
    )
    names = key([Series("intervention", ORANGE, ()), Series("its control", BASELINE, (), DASHED)])
    return section("interventions", "Interventions", tag("p", lead), names, tag("div", figures, class_="grid"),
                   tag("details", tag("summary", "every dose as numbers"), _numbers(pairs, unit), class_="print"))  # fmt: skip


def _curves(rows: Sequence[Row]) -> dict[str, _Curve]:
    places = {"loss_change": 0, "loss_change_low": 1, "loss_change_high": 2}
    out: dict[str, _Curve] = {}
    for row in rows:
        if not isfinite(row.value) or row.metric not in (*places, "output_divergence"):
            continue
        curve = out.setdefault(row.intervention or "", _Curve(row.intervention or ""))
        dose = 1.0 if row.dose is None else row.dose
        if row.metric in places:
            curve.doses.setdefault(dose, [None, None, None])[places[row.metric]] = row.value
        else:
            curve.divergence[dose] = row.value
    return {name: curve for name, curve in out.items() if curve.at}


def _estimate(curve: _Curve) -> Estimate:
    dose = curve.at[-1]
    value, low, high = curve.doses[dose]
    assert value is not None
    label = curve.name if len(curve.at) == 1 and dose == 1 else f"{curve.name}, dose {dose:g}"
    return Estimate(label, value, low, high, curve.is_control)


def _response(sheet: Sheet, curve: _Curve, control: _Curve | None, unit: str) -> Html | None:
    if len([d for d in curve.at if d]) < 2:
        return None
    series = [c.series() for c in (control, curve) if c]
    said = "; ".join(f"{s.label} from {number(s.points[0][1])} to {number(s.points[-1][1])}" for s in series)
    chart = dose_response(series, f"Change in loss by dose, {curve.name}: {said}.", x_title="dose",
                          y_title=f"change in loss [{unit}]")  # fmt: skip
    return sheet.charts.place(
        chart, curve.name, "Mean over documents; the band is its interval. Dose 0 changes nothing."
    )


def _numbers(pairs: Sequence[tuple[_Curve, _Curve | None]], unit: str) -> Html:
    has_divergence = any(c.divergence for pair in pairs for c in pair if c)
    columns = [
        "intervention",
        "dose",
        f"change [{unit}]",
        "low",
        "high",
        *(["divergence [nats]"] if has_divergence else []),
    ]
    rows = [
        [c.name, f"{d:g}", *(number(v) for v in c.doses[d]), *([number(c.divergence.get(d))] if has_divergence else [])]
        for pair in pairs for c in pair if c for d in sorted(c.at)
    ]  # fmt: skip
    return table(columns, rows, numeric=set(range(1, len(columns))), name="interventions")
