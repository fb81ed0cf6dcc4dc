"""A small study folder made of plausible numbers through the store's own writers: two cells, four arms, three seeds.

By default one run diverged, one is unfinished and one never started, because that is what studies look like.
"""

import math
import random
from dataclasses import asdict
from pathlib import Path

from gatelab.analysis import Outcome, effects, pairing_gain, shares
from gatelab.analysis.paired import Outcomes
from gatelab.config import Run, canonical, override
from gatelab.record import Finding, Metric, Row
from gatelab.store import Appender, RunFolder, StudyFolder, write_json

CELLS = {
    "bigram-backcopy": {"layers": 1, "heads": 4, "loss": (4.1, 2.3), "bits": "an unlimited stream from a counter"},
    "stdlib": {"layers": 3, "heads": 4, "loss": (5.5, 1.9), "bits": "the standard library of Python, bytes, 3.1 MB"},
}
ARMS = {
    "none": ("no gate", {"model.gate": "none"}, 0.72, 0.0),
    "headwise": ("sdpa-headwise", {"model.gate": "sdpa-headwise"}, 0.34, -0.030),
    "elementwise": ("sdpa-elementwise", {"model.gate": "sdpa-elementwise"}, 0.18, -0.046),
    "sink-logit": ("learned sink logit", {"model.softmax": "sink-logit"}, 0.12, -0.004),
}
METRICS = [
    Metric("val_loss", "nats", "lower-is-better", "held-out loss", equivalence=0.01, primary=True),
    Metric(
        "first_token_mass", "share", "neutral", "first-token mass",
        bimodal=True, threshold=0.3, primary=True, event="puts more than 0.3 of its attention on the first token",
    ),
    Metric("massive_max", "1", "neutral", "largest activation, mean over layers"),
    Metric("gate_mean", "1", "neutral", "mean gate score"),
]  # fmt: skip
SEEDS = (0, 1, 2)
STEPS = 400
LOOKS = (0, 100, 200, 300, 400)
ENDINGS = {
    ("stdlib", "headwise", 2): ("diverged", 230),
    ("stdlib", "sink-logit", 1): ("running", 150),
    ("bigram-backcopy", "elementwise", 2): ("planned", -1),
}
COMPLETE: dict = {}


def make_study(path: Path, *, name: str = "quickstart", endings: dict = ENDINGS, steps: int = STEPS) -> StudyFolder:
    """A study folder; `endings` maps (cell, arm, seed) to (state, last step) for the runs that are not done."""
    base = Run()
    plan = []
    for number, (cell, arm, seed) in enumerate((c, a, s) for c in CELLS for a in ARMS for s in SEEDS):
        plan.append(
            {
                "cell": cell, "arm": arm, "seed": seed, "fingerprint": f"{number * 7919 + 10**11:012x}"[:12],
                "n_parameters": 101_568, "remainder": 0 if arm == "none" else 68, "d_ff": 250, "steps": steps,
                "tokens": steps * 2048, "flops": 1e12, "command": f"gatelab train --run {number:02d} --study runs/{name}",
            }
        )  # fmt: skip
    folder = StudyFolder.create(
        path,
        {
            "name": name,
            "question": "Does a gate on the attention output lower the loss, and does it do away with the attention sink?",
            "version": "0.1.0",
            "baseline": "none",
            "seeds": list(SEEDS),
            "cells": [
                {
                    "name": c,
                    "title": c,
                    "about": "A small model in a few minutes.",
                    "data": f["bits"],
                    "base": canonical(base),
                }
                for c, f in CELLS.items()
            ],
            "arms": [
                {"name": a, "label": label, "changes": changes, "control": a == "sink-logit"}
                for a, (label, changes, _, _) in ARMS.items()
            ],
            "metrics": [asdict(m) for m in METRICS],
            "plan": plan,
        },
    )
    for entry, run in folder.planned():
        state, last = endings.get((entry["cell"], entry["arm"], entry["seed"]), ("done", steps))
        if state != "planned":
            _make_run(entry, run, canonical(override(base, {"seed": entry["seed"]})), state, last)
    return folder


def outcomes(folder: StudyFolder) -> list[Outcome]:
    """Every run's final value of every metric, with how the run ended."""
    connection = folder.connect()
    out = []
    for entry, run in folder.planned():
        status = (run.done() or {"status": "missing"})["status"]
        for metric in METRICS:
            found = connection.execute(
                "SELECT value FROM rows WHERE run = ? AND metric = ? AND layer IS NULL AND domain IS NULL"
                " ORDER BY step DESC LIMIT 1",
                [run.fingerprint, metric.name],
            ).fetchone()
            if found or status != "done":
                value = found[0] if found else math.nan
                out.append(Outcome(entry["cell"], entry["arm"], entry["seed"], metric.name, value, status))
    return out


def analysed(folder: StudyFolder) -> tuple[list[Finding], list[dict], list[dict]]:
    """Findings, shares and pairing as the main job hands them to the report."""
    found = outcomes(folder)
    names = {"arms": list(ARMS), "cells": list(CELLS)}
    counted = shares(found, METRICS, **names)
    gain = pairing_gain(Outcomes(found), METRICS[0], baseline="none", **names)
    return effects(found, METRICS, baseline="none", **names), [asdict(s) for s in counted], [asdict(g) for g in gain]


def _make_run(entry: dict, run: RunFolder, config: dict, state: str, last: int) -> None:
    run.create(config)
    write_json(
        run.path / "environment.json",
        {
            "python": "3.11.2",
            "versions": {"gatelab": "0.1.0", "torch": "2.13.0"},
            "device": "cpu",
            "git": {"commit": "5eed" * 10, "modified": True},
        },
    )
    write_json(
        run.path / "attempts" / "0001.json",
        {"started": "2025-03-04T10:00:00.000+00:00", "ended": "2025-03-04T10:00:21.000+00:00", "outcome": state},
    )
    rows = Appender(run.rows_path)
    rows.write(_rows(entry, run.fingerprint, last))
    if state == "diverged":
        rows.write([Row(run.fingerprint, last + 1, "train", "loss", math.nan, "nats")])
    rows.close()
    if state in ("done", "diverged"):
        run.mark_done(state, {"steps": last, "seconds": 20.5 + entry["seed"]})


def _rows(entry: dict, run: str, last: int) -> list[Row]:
    cell, arm, seed, steps = CELLS[entry["cell"]], entry["arm"], entry["seed"], entry["steps"]
    _, _, mass, gain = ARMS[arm]
    batch = random.Random(f"{entry['cell']} {seed}")
    own = random.Random(f"{entry['cell']} {arm} {seed}")
    shift = batch.gauss(0, 0.02)
    high, low = cell["loss"]

    def loss(step: int) -> float:
        return (
            low + (high - low) * math.exp(-2.2 * math.log1p(step) / math.log1p(steps) * 2) + shift + gain * step / steps
        )

    out = []
    for step in range(1, last + 1):
        out.append(Row(run, step, "train", "loss", loss(step) + batch.gauss(0, 0.05) + own.gauss(0, 0.01), "nats"))
    for look in (s for s in sorted({round(steps * i / 4) for i in range(5)}) if s <= last):
        out.append(Row(run, look, "eval", "val_loss", loss(look) + 0.03 + own.gauss(0, 0.004), "nats"))
        out += _look(run, look, arm, cell, mass * look / steps + 0.06, own)
    return out


def _look(run: str, step: int, arm: str, cell: dict, mass: float, own: random.Random) -> list[Row]:
    def row(source: str, metric: str, value: float, unit: str, **where: object) -> Row:
        return Row(run, step, source, metric, value, unit, **where)

    layers, heads = cell["layers"], cell["heads"]
    out = [row("sinks", "first_token_uniform", 0.0591, "share", length=64)]
    table = {
        (layer, head): min(0.98, max(0.01, mass * (0.4 + 0.9 * (layer + 1) / layers) * own.uniform(0.5, 1.2)))
        for layer in range(layers)
        for head in range(heads)
    }
    out += [row("sinks", "first_token_mass", v, "share", layer=la, head=h, length=64) for (la, h), v in table.items()]
    out.append(row("sinks", "first_token_mass", sum(table.values()) / len(table), "share", length=64))
    out.append(row("sinks", "first_token_mass", mass, "share", domain="bigram", length=64))
    peaks = [3 + 40 * mass * (layer + 1) + own.uniform(0, 2) for layer in range(layers)]
    for layer, peak in enumerate(peaks):
        out.append(row("massive", "massive_max", peak, "1", layer=layer))
        out.append(row("massive", "massive_ratio", peak / 0.6, "ratio", layer=layer))
    out.append(row("massive", "massive_max", sum(peaks) / layers, "1"))
    if arm in ("headwise", "elementwise"):
        middle = 0.42 if arm == "headwise" else 0.2
        width = 0.06 if arm == "headwise" else 0.17
        for layer in range(layers):
            weights = [math.exp(-(((b + 0.5) / 50 - middle - 0.08 * layer) ** 2) / (2 * width**2)) for b in range(50)]
            for b, weight in enumerate(weights):
                share = weight / sum(weights)
                out.append(row("gate_scores", "gate_histogram", share, "share", layer=layer, bin=b, site="sdpa"))
            out.append(row("gate_scores", "gate_mean", middle + 0.08 * layer, "1", layer=layer, site="sdpa"))
        out.append(row("gate_scores", "gate_mean", middle, "1", site="sdpa"))
    return out
