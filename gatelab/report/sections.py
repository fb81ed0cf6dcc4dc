"""The sections that show what was measured, in reading order: each takes the book and returns markup.

Notable: where a run is missing, a figure says which one and why beneath it, or an empty frame stands in its place.
"""

from collections.abc import Iterable
from statistics import fmean

from .book import Book
from .charts import Line, extent
from .figures import curves, gate_histogram, map_top, mass_map
from .markup import Html, decimal, number, tag
from .measured import Points, RunView, mean_curve, mean_table, thin
from .parts import absent, ramp, section
from .style import RAMP

# Of an arm in a cell; more say little to a reader, and make a page of a thousand runs heavy.
MOST_SEED_MAPS = 8
# Of the whole page, but for one of each arm in a cell; a map is 10 kB.
MOST_MAPS = 160


def losses(book: Book) -> Html:
    """Training and held-out loss with every seed, and the paired difference in held-out loss."""
    out = []
    for cell in book.cells:
        seeds, held = _lines(book, cell["name"], "loss"), _lines(book, cell["name"], "val_loss")
        # A run without training has held-out loss alone.
        has_any = seeds or held
        figures = [_loss(book, cell["name"], seeds, held), _difference(book, cell["name"], held)] if has_any else []
        grid = tag("div", figures, class_="grid") if figures else absent(f"No loss yet.{book.holes(cell['name'])}")
        out += [book.heading(cell), grid]
    return section("loss", "Loss", out)


def _loss(book: Book, cell: str, seeds: list[Line], held: list[Line]) -> Html:
    lowest, highest = extent([*seeds, *held]) or (0.0, 0.0)
    # A run that diverges must not press all others flat: the frame ends at the highest start.
    start = max(line.points[0][1] for line in (*seeds, *held))
    margin = 0.03 * (start - lowest) or 1.0
    cut = highest > start + margin
    means = _means(book, cell, seeds)
    chart = curves(
        seeds, means, book.arms, marks=held, along="log step", domain=[lowest - margin, start + margin],
        y_title="loss [nats a token]", alt_text=f"Training loss in {cell}. {_ends(book, means, 4)}",
    )  # fmt: skip
    caption = (
        "Thin: one seed. Thick: the arm's mean, as far as all its measured seeds go. Circles: held-out loss. Cross: a"
        " run that is not done. Training loss is averaged over bins of steps that are equally wide on this logarithmic"
        f" axis, at most 200 a line; curves.csv has every step.{' What lies above the frame is cut off.' if cut else ''}"
    )
    return book.charts.place(chart, "Training and held-out loss", caption + book.holes(cell))


def _difference(book: Book, cell: str, held: list[Line]) -> Html:
    base = {line.seed: dict(line.points) for line in held if line.arm == book.arms.baseline}
    paired = []
    for line in held:
        points = [(x, y - base[line.seed][x]) for x, y in line.points if x in base.get(line.seed, {})]
        if line.arm != book.arms.baseline and points:
            paired.append(Line(line.arm, line.seed, points, line.cut))
    title = "Held-out loss minus the baseline's, same seed"
    if not paired:
        return absent(f"No held-out loss of a pair yet.{book.holes(cell)}", tag("span", title))
    means = _means(book, cell, paired)
    chart = curves(
        paired, means, book.arms, marks=paired, y_title="difference [nats a token]",
        alt_text=f"{title}, in {cell}. {_ends(book, means, 3)}",
    )  # fmt: skip
    caption = "Below zero: the arm predicts held-out data better. The verdict rests on the last points."
    return book.charts.place(chart, title, caption)


def masses(book: Book) -> Html:
    """First-token mass over training, on one scale for all cells."""
    lines = {cell["name"]: _lines(book, cell["name"], "first_token_mass") for cell in book.cells}
    top = map_top([y for seeds in lines.values() for line in seeds for _, y in line.points])
    figures = []
    for cell in book.cells:
        name, seeds = cell["name"], lines[cell["name"]]
        if not seeds:
            figures.append(absent(f"Not measured yet.{book.holes(name)}", tag("span", cell["title"])))
            continue
        uniform, means = _uniform(book, name), _means(book, name, seeds)
        chart = curves(
            seeds, means, book.arms, marks=seeds, reference=uniform, domain=[0, top],
            y_title="first-token mass [share]", alt_text=f"First-token mass in {name}. {_ends(book, means, 3)}",
        )  # fmt: skip
        dotted = f"Dotted: uniform attention, {number(uniform[-1][1])}." if uniform else ""
        figures.append(book.charts.place(chart, cell["title"], dotted + book.holes(name)))
    lead = (
        "Share of attention that goes to the first token: mean over layers, heads, and queries after the first, on"
        " held-out data. Thin: one seed. Thick: the arm's mean. Cross: a run that is not done."
    )
    return section("mass", "First-token mass over training", tag("p", lead), tag("div", figures, class_="grid"))


def maps(book: Book) -> Html:
    """Layer by head maps of first-token mass, all on one scale."""
    top = map_top([v for table in book.measured.heads.values() for v in table.values()])
    words = "first-token mass; all maps of this page are on this one scale"
    lead = "Where the first token is attended to, head by head, at each run's last look. Layers run down, heads across."
    out = [tag("p", lead), ramp(RAMP, "0", f"{top:g}", words)]
    n_groups = sum(len(book.measured.arms(cell["name"])) for cell in book.cells)
    most = min(MOST_SEED_MAPS, max(1, MOST_MAPS // max(1, n_groups)))
    for cell in book.cells:
        name = cell["name"]
        arms = {arm: book.measured.of(name, arm) for arm in book.measured.arms(name)}
        means = [_mean_map(book, arm, runs, top) for arm, runs in arms.items()]
        each = []
        for arm, runs in arms.items():
            shown = _spread(book, runs, most)
            note = (
                ""
                if len(shown) == len(runs)
                else f": {len(shown)} of {len(runs)} seeds, from the least mass to the most"
            )
            maps_ = [_seed_map(book, r, top) for r in shown]
            each += [tag("h4", book.arm(arm), note), tag("div", maps_, class_="row")]
        uniform = _uniform(book, name)
        given = f"Uniform attention would give {number(uniform[-1][1])} in every head." if uniform else ""
        out += [
            book.heading(cell),
            tag("div", means, class_="row"),
            tag("p", given + book.holes(name), class_="about"),
            tag("details", tag("summary", f"seeds of {cell['title']}"), each, class_="print"),
        ]
    return section("maps", "First-token mass by layer and head", out)


def _spread(book: Book, runs: list[RunView], most: int) -> list[RunView]:
    """All runs of an arm; of more than `most` those that are evenly spread over the order of their mean masses."""
    if len(runs) <= most:
        return runs
    masses = {r.key: fmean(table.values()) for r in runs if (table := book.measured.heads.get(r.key))}
    ordered = sorted((r for r in runs if r.key in masses), key=lambda r: masses[r.key])
    last = min(most, len(ordered)) - 1
    return [ordered[round(i * (len(ordered) - 1) / max(1, last))] for i in range(last + 1)]


def _mean_map(book: Book, arm: str, runs: list[RunView], top: float) -> Html:
    tables = [book.measured.heads[r.key] for r in runs if r.is_done and r.key in book.measured.heads]
    if not tables:
        return absent("no finished run with a map", book.arm(arm))
    table = mean_table(tables)
    overall, (layer, head) = sum(table.values()) / len(table), max(table, key=table.__getitem__)
    seeds = f"mean of {len(tables)}{f' of {len(runs)}' if len(tables) < len(runs) else ''} seeds"
    peak = f"highest {decimal(table[layer, head], 2)} (layer {layer}, head {head})"
    caption = f"{seeds}; all heads {decimal(overall, 2)}; {peak}"
    alt_text = f"First-token mass by layer and head, {book.arms.labels[arm]}: {caption}"
    return book.charts.place(mass_map(table, top, alt_text, side=36), book.arm(arm), caption)


def _seed_map(book: Book, run: RunView, top: float) -> Html:
    table = book.measured.heads.get(run.key)
    seed = f"seed {run.key[2]}" + ("" if run.is_done else f": {run.fate}")
    if not table:
        return absent(seed)
    alt_text = f"First-token mass by layer and head, {book.arms.labels[run.key[1]]}, {seed}"
    return book.charts.place(mass_map(table, top, alt_text, side=28), seed)


def gates(book: Book) -> Html:
    """Histograms of gate scores, layer by layer, for the arms that have gates."""
    out = []
    for cell in book.cells:
        pooled = _pooled(book, cell["name"])
        out.append(book.heading(cell))
        if not pooled:
            out.append(absent(f"No finished run with gate scores.{book.holes(cell['name'])}"))
            continue
        peaks = [max(shares.values()) for arms in pooled.values() for shares, _ in arms.values()]
        # One arm may sit on a spike that would hide all others.
        is_log = max(peaks) > 8 * min(peaks)
        figures = []
        for layer, arms in sorted(pooled.items()):
            means = {arm: mean for arm, (_, mean) in arms.items() if mean is not None}
            said = "; ".join(f"{book.arms.labels[arm]} {decimal(mean, 2)}" for arm, mean in means.items())
            shares, caption = {arm: shares for arm, (shares, _) in arms.items()}, f"mean gate: {said}"
            alt_text = f"Gate scores of layer {layer} in {cell['name']}; {caption}"
            chart = gate_histogram(shares, means, book.arms, alt_text, top=1.05 * max(peaks), is_log=is_log)
            figures.append(book.charts.place(chart, f"layer {layer}", caption))
        floor = " The upright axis is logarithmic; shares below 0.0001 lie on its floor." if is_log else ""
        out += [tag("p", floor + book.holes(cell["name"]), class_="about"), tag("div", figures, class_="grid narrow")]
    lead = (
        "Shares of all gate scores of a layer, in bins over 0 (shut) to 1 (open), at the last look; finished seeds are"
        " pooled. Dashed: the mean gate."
    )
    return section("gates", "Gate scores", tag("p", lead), out)


def _pooled(book: Book, cell: str) -> dict[int, dict[str, tuple[dict[int, float], float | None]]]:
    """{layer: {arm: (histogram, mean gate)}} over an arm's finished seeds."""
    out: dict = {}
    for arm in book.measured.arms(cell):
        keys = [r.key for r in book.measured.of(cell, arm) if r.is_done and r.key in book.measured.histograms]
        means = mean_table([book.measured.layers.get((*key, "gate_mean"), {}) for key in keys])
        for layer in sorted({layer for key in keys for layer in book.measured.histograms[key]}):
            shares = mean_table([book.measured.histograms[key].get(layer, {}) for key in keys])
            out.setdefault(layer, {})[arm] = (shares, means.get(layer))
    return out


def massive(book: Book) -> Html:
    """Massive activations, layer by layer, of the finished runs."""
    titles = {"massive_max": "Largest |activation|", "massive_ratio": "Largest |activation| over the median"}
    out = []
    for cell in book.cells:
        figures = []
        for metric, title in titles.items():
            seeds = [
                Line(run.key[1], run.key[2], sorted(book.measured.layers[*run.key, metric].items()))
                for run in book.measured.runs
                if run.key[0] == cell["name"] and run.is_done and (*run.key, metric) in book.measured.layers
            ]
            if seeds:
                means, alt_text = _means(book, cell["name"], seeds), f"{title} by layer in {cell['name']}"
                chart = curves(
                    seeds, means, book.arms, marks=seeds, along="layer", y_title=title.lower(), alt_text=alt_text
                )
                figures.append(book.charts.place(chart, title))
        missing = tag("p", book.holes(cell["name"]), class_="about")
        out += [
            book.heading(cell),
            tag("div", figures, class_="grid") if figures else absent("Not measured yet."),
            missing,
        ]
    lead = "Residual stream after each layer, at the last look of finished runs. Thin: one seed. Thick: the arm's mean."
    return section("massive", "Massive activations", tag("p", lead), out)


def _lines(book: Book, cell: str, metric: str) -> list[Line]:
    """Every measured seed's curve of a metric, thinned."""
    out = []
    for run in (r for r in book.measured.runs if r.key[0] == cell):
        points = thin(book.measured.curves.get((*run.key, metric), []), run.entry["steps"])
        if points:
            out.append(Line(run.key[1], run.key[2], points, "" if run.is_done else run.state))
    return out


def _means(book: Book, cell: str, lines: Iterable[Line]) -> dict[str, Points]:
    lines = list(lines)
    return {arm: mean_curve([n.points for n in lines if n.arm == arm]) for arm in book.measured.arms(cell)}


def _ends(book: Book, means: dict[str, Points], digits: int) -> str:
    """Where the mean curves end, for those who cannot see them."""
    return "; ".join(f"{book.arms.labels[a]} ends at {number(p[-1][1], digits)}" for a, p in means.items() if p)


def _uniform(book: Book, cell: str) -> Points:
    """What uniform attention would give: a property of the context, the same for every run of the cell."""
    keys = [(*run.key, "first_token_uniform") for run in book.measured.runs if run.key[0] == cell]
    return next((book.measured.curves[key] for key in keys if key in book.measured.curves), [])
