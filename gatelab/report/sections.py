"""The sections that show what was measured, in reading order: each takes the book and returns markup.

Notable: where a run is missing, a figure says which one and why beneath it, or an empty frame stands in its place.
"""

from collections.abc import Iterable
from math import isfinite

from .book import Book, absent
from .figures import Line, curves, gate_histogram, map_top, mass_map
from .markup import Html, number, tag
from .measured import Points, RunView, mean_curve, mean_table, thin
from .style import RAMP


def losses(book: Book) -> Html:
    """Training and held-out loss with every seed, and the paired difference in held-out loss."""
    out = []
    for cell in book.cells:
        name = cell["name"]
        lines, means = _lines(book, name, "loss")
        if not lines:
            out += [book.heading(cell), absent(f"No loss was measured yet.{book.holes(name)}")]
            continue
        held, _ = _lines(book, name, "val_loss")
        highest = max(line.points[0][1] for line in [*lines, *held])
        values = [y for line in [*lines, *held] for _, y in line.points]
        domain = [min(values) - 0.02 * (highest - min(values)), highest + 0.02 * (highest - min(values))]
        cut = f" Values above {number(highest)} are outside the frame." if max(values) > domain[1] else ""
        alt = f"Training loss in {name}: " + "; ".join(
            f"{book.arms.labels[arm]} ends at {number(points[-1][1], 4)}" for arm, points in means.items() if points
        )
        first = curves(
            lines,
            means,
            book.arms,
            alt_text=alt,
            y_title="loss [nats a token]",
            domain=domain,
            along="log step",
            marks=held,
        )
        caption = (
            "Thin: one seed. Thick: the arm's mean, drawn where all measured seeds have a value. Circles: held-out loss. Cross: a run that stopped."
            " Training loss is averaged over bins of steps that are equally wide on this logarithmic axis (at most 200 a line);"
            f" curves.csv has every step.{cut}{book.holes(name)}"
        )
        grid = [book.place(first, "Training and held-out loss", caption)]
        differences, mean_differences = _paired(book, held)
        if differences:
            alt = f"Held-out loss minus the baseline's, same seed, in {name}"
            second = curves(
                differences,
                mean_differences,
                book.arms,
                alt_text=alt,
                y_title="difference [nats a token]",
                marks=differences,
                zero=True,
            )
            grid.append(
                book.place(
                    second,
                    "Held-out loss minus the baseline's, same seed",
                    "Below zero: the arm predicts held-out data better than the baseline of the same seed. The verdict rests on the last points.",
                )
            )
        out += [book.heading(cell), tag("div", grid, class_="grid")]
    return tag("section", tag("h2", "Loss"), out, id="loss")


def masses(book: Book) -> Html:
    """First-token mass over training."""
    out = []
    tables = [mean for cell in book.cells for mean in _lines(book, cell["name"], "first_token_mass")[0]]
    top = map_top([y for line in tables for _, y in line.points])
    figures = []
    for cell in book.cells:
        name = cell["name"]
        lines, means = _lines(book, name, "first_token_mass")
        if not lines:
            figures.append(absent(f"{cell.get('title') or name}: not measured yet.{book.holes(name)}"))
            continue
        uniform = _uniform(book, name)
        alt = f"First-token mass over training in {name}: " + "; ".join(
            f"{book.arms.labels[arm]} ends at {number(points[-1][1])}" for arm, points in means.items() if points
        )
        chart = curves(
            lines,
            means,
            book.arms,
            alt_text=alt,
            y_title="first-token mass [share]",
            domain=[0, top],
            marks=lines,
            reference=uniform,
        )
        dotted = f"Dotted: causal-uniform attention, {number(uniform[-1][1])}. " if uniform else ""
        figures.append(
            book.place(
                chart, cell.get("title") or name, f"{dotted}Thin: one seed; thick: the arm's mean.{book.holes(name)}"
            )
        )
    out.append(tag("div", figures, class_="grid"))
    lead = "Share of attention that goes to the first token, mean over layers, heads, and queries after the first, on held-out data."
    return tag("section", tag("h2", "First-token mass over training"), tag("p", lead), out, id="mass")


def maps(book: Book) -> Html:
    """Layer by head maps of first-token mass, all on one scale."""
    top = map_top([v for table in book.measured.heads.values() for v in table.values()])
    ramp = tag("i", style=f"background:linear-gradient(90deg,{','.join(RAMP)})", role="img", aria_label="colour scale")
    scale = tag(
        "div",
        "0",
        ramp,
        f"{top:g}",
        tag("span", "first-token mass; every map of this page is on this one scale", class_="quiet"),
        class_="ramp",
    )
    out = [
        tag(
            "p",
            "Where the first token is attended to, head by head, at each run's last look. Layers run down, heads across.",
        ),
        scale,
    ]
    for cell in book.cells:
        name = cell["name"]
        means, each = [], []
        for arm in book.measured.arms(name):
            runs = book.measured.of(name, arm)
            done = [r for r in runs if r.is_done and r.key in book.measured.heads]
            means.append(_mean_map(book, arm, done, len(runs), top))
            each.append(tag("h4", book.swatch(arm), book.arms.labels[arm]))
            each.append(tag("div", [_seed_map(book, run, top) for run in runs], class_="small-multiples"))
        uniform = _uniform(book, name)
        caption = (
            f"Causal-uniform attention would give {number(uniform[-1][1])} in every cell of these maps."
            if uniform
            else ""
        )
        out += [
            book.heading(cell),
            tag("div", means, class_="small-multiples"),
            tag("p", caption + book.holes(name), class_="about"),
            tag("details", tag("summary", f"every seed, {cell.get('title') or name}"), each, class_="print"),
        ]
    return tag("section", tag("h2", "First-token mass by layer and head"), out, id="maps")


def _mean_map(book: Book, arm: str, runs: list[RunView], planned: int, top: float) -> Html:
    if not runs:
        return absent("no finished run with a map", book, arm)
    table = mean_table([book.measured.heads[r.key] for r in runs])
    overall, peak = sum(table.values()) / len(table), max(table, key=table.__getitem__)
    seeds = f"mean of {len(runs)} of {planned} seeds" if len(runs) < planned else f"mean of {planned} seeds"
    caption = f"{seeds}; all heads {number(overall)}; highest {number(table[peak])} (layer {peak[0]}, head {peak[1]})"
    return book.place(mass_map(table, top, f"{book.arms.labels[arm]}, {caption}"), caption=caption, arm=arm)


def _seed_map(book: Book, run: RunView, top: float) -> Html:
    table = book.measured.heads.get(run.key)
    seed = f"seed {run.key[2]}" + ("" if run.is_done else f": {run.fate}")
    if not table:
        return absent(seed)
    return book.place(mass_map(table, top, f"{book.arms.labels[run.key[1]]}, {seed}", small=True), seed)


def gates(book: Book) -> Html:
    """Histograms of gate scores, layer by layer, for the arms that have gates."""
    out = []
    for cell in book.cells:
        name = cell["name"]
        pooled = {}
        for arm in book.measured.arms(name):
            done = [r.key for r in book.measured.of(name, arm) if r.is_done and r.key in book.measured.histograms]
            layers = sorted({layer for key in done for layer in book.measured.histograms[key]})
            for layer in layers:
                shares = mean_table([book.measured.histograms[key].get(layer, {}) for key in done])
                values = [book.measured.layers.get((*key, "gate_mean"), {}).get(layer) for key in done]
                pooled.setdefault(layer, {})[arm] = (shares, [v for v in values if v is not None])
        out.append(book.heading(cell))
        if not pooled:
            out.append(absent(f"No gated arm has a finished run with gate scores.{book.holes(name)}"))
            continue
        peaks = [max(shares.values()) for arms in pooled.values() for shares, _ in arms.values()]
        log = max(peaks) > 8 * min(peaks)
        figures = []
        for layer, arms in sorted(pooled.items()):
            means = {arm: sum(values) / len(values) for arm, (_, values) in arms.items() if values}
            said = "; ".join(f"{book.arms.labels[arm]}: mean gate {number(mean)}" for arm, mean in means.items())
            shares = {arm: s for arm, (s, _) in arms.items()}
            chart = gate_histogram(
                shares, means, book.arms, f"Gate scores of layer {layer}. {said}", top=1.05 * max(peaks), log=log
            )
            figures.append(book.place(chart, f"layer {layer}", said))
        scale = "The upright axis is logarithmic and starts at 0.0001; smaller shares lie on its floor." if log else ""
        lead = f"Shares of all gate scores of a layer in bins over 0 to 1, the finished seeds pooled; dashed: the mean gate. {scale}"
        out += [
            tag("p", lead + book.holes(name), class_="about"),
            tag("div", figures, class_="small-multiples wide-captions"),
        ]
    return tag("section", tag("h2", "Gate scores"), out, id="gates")


def massive(book: Book) -> Html:
    """Massive activations, layer by layer."""
    out = []
    for cell in book.cells:
        grid = []
        for metric, title in (
            ("massive_max", "Largest |activation|"),
            ("massive_ratio", "Largest |activation| over the median"),
        ):
            lines = [
                Line(r.key[1], r.key[2], sorted(table.items()))
                for r in book.measured.runs
                if r.key[0] == cell["name"] and (table := book.measured.layers.get((*r.key, metric)))
            ]
            lines = [Line(n.arm, n.seed, [(x, y) for x, y in n.points if isfinite(y)]) for n in lines]
            lines = [n for n in lines if n.points]
            if lines:
                means = {
                    arm: mean_curve([n.points for n in lines if n.arm == arm])
                    for arm in book.measured.arms(cell["name"])
                }
                alt = f"{title} by layer in {cell['name']}"
                chart = curves(lines, means, book.arms, alt_text=alt, y_title=title.lower(), along="layer", marks=lines)
                grid.append(book.place(chart, title))
        out += [
            book.heading(cell),
            tag("div", grid, class_="grid") if grid else absent(f"Not measured yet.{book.holes(cell['name'])}"),
        ]
    lead = "Residual stream after each layer, at each run's last look. Thin: one seed; thick: the arm's mean."
    return tag("section", tag("h2", "Massive activations"), tag("p", lead), out, id="massive")


def _lines(book: Book, cell: str, metric: str) -> tuple[list[Line], dict[str, Points]]:
    """Every measured seed's curve of a metric, thinned, and the arms' means."""
    lines = []
    for run in (r for r in book.measured.runs if r.key[0] == cell):
        points = thin(book.measured.curves.get((*run.key, metric), []), run.entry["steps"])
        if points:
            lines.append(Line(run.key[1], run.key[2], points, "" if run.is_done else run.state))
    return lines, {arm: mean_curve([n.points for n in lines if n.arm == arm]) for arm in book.measured.arms(cell)}


def _paired(book: Book, lines: Iterable[Line]) -> tuple[list[Line], dict[str, Points]]:
    """Arm minus baseline of the same seed, where both have a point."""
    lines = list(lines)
    base = {n.seed: dict(n.points) for n in lines if n.arm == book.arms.baseline}
    out = []
    for n in lines:
        points = [(x, y - base[n.seed][x]) for x, y in n.points if x in base.get(n.seed, {})]
        if n.arm != book.arms.baseline and points:
            out.append(Line(n.arm, n.seed, points, n.cut))
    return out, {arm: mean_curve([n.points for n in out if n.arm == arm]) for arm in dict.fromkeys(n.arm for n in out)}


def _uniform(book: Book, cell: str) -> Points:
    """What causal-uniform attention would give: a property of the context, the same for every run of the cell."""
    kept = book.measured.curves
    return next(
        (
            kept[(*r.key, "first_token_uniform")]
            for r in book.measured.runs
            if r.key[0] == cell and (*r.key, "first_token_uniform") in kept
        ),
        [],
    )
