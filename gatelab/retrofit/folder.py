"""A retrofit as a folder and in words: the gated model as `gatelab convert --to hf` reads it, and what was measured."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from ..config import canonical
from ..config.retrofit import Retrofit
from ..evals.changes import interval
from ..models.interop import Stored
from ..models.interop.destination import copy_companions, write_json
from ..models.interop.folder import parameter_shapes, write_folder
from ..models.interop.tensors import Origin, of_model
from .arms import Arms
from .measures import Measured


def write(draft: Path, found: Stored, config: Retrofit, made: Arms, read: dict[str, str]) -> None:
    """model.json, weights.safetensors and the tokenizer; rows.jsonl; retrofit.json with the configuration, which texts were
    `read`, the heads from which the first key is hidden, and the loss of every held-out sequence.

    Raises:
        ValueError: weights that are not finite.
    """
    model = made.model
    plan = {name: Origin(name, shape) for name, shape in parameter_shapes(model.config).items()}
    said = (
        f"A gate, {model.config.gate[0].slug}, was put into it: start={config.start.kind}, {config.train.steps} steps."
    )
    about: dict[str, Any] = {
        "from": {"name": found.title, "family": "gatelab"},
        "tokens": dict(found.tokens),
        "notes": [*found.facts, said, *facts(made)],
    }
    write_folder(draft, model.config, plan, of_model(found.title, model.cpu()), about=about)
    copy_companions(found.companions, draft)
    measured = [*made.arms.values(), *made.stand_ins.values()]
    write_json(
        draft / "retrofit.json",
        {"retrofit": canonical(config), **read, "heads": made.heads, "losses": {m.arm: m.losses for m in measured}},
    )
    lines = [json.dumps(row.as_dict(), ensure_ascii=False, allow_nan=False) for row in made.rows]
    (draft / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def facts(made: Arms) -> list[str]:
    """Sentences: what surgery was done, and what the fits were worth."""
    if made.found is None:
        return []
    n_heads = sum(map(len, made.heads))
    fits = [
        (float(key.fit.r2_H["token", "score"][h]), float(key.constancy_G[h * len(key.constancy_G) // len(key.drain_H)]))
        for key, heads in zip(made.found.layers, made.heads, strict=True)
        for h in heads
    ]
    r2, constancy = ([f[i] for f in fits if f[i] == f[i]] for i in range(2))
    total = len(made.heads) * len(made.found.layers[0].drain_H)
    explained = f"; σ(w·x + b) explains {fmean(r2):.0%} of 1 − p₀ on texts it was not fitted to" if r2 else ""
    return [
        f"The first key is hidden from {n_heads} of {total} heads{explained}, and the mean first value "
        f"{fmean(constancy):.0%} of its square (means over these heads)."
    ]


def records(made: Arms) -> list[dict[str, Any]]:
    """A line an arm and text: loss, the change beside the reference with its interval, and what the probes saw."""
    return [
        _record(measured, text, made.reference)
        for text in made.reference.losses
        for measured in [*made.arms.values(), *made.stand_ins.values()]
    ]


def _record(measured: Measured, text: str, reference: Measured) -> dict[str, Any]:
    paired = [a - b for a, b in zip(measured.losses[text], reference.losses[text], strict=True)]
    low, high = interval(paired)
    is_probed = any(r.metric == "massive_max" for r in measured.rows)
    return {
        "text": text,
        "arm": measured.arm,
        "loss": measured.loss(text),
        f"beside {reference.arm}": None if measured is reference else fmean(paired),
        "low": None if measured is reference else low,
        "high": None if measured is reference else high,
        "first_token_mass": measured.value(text, "first_token_mass"),
        "sink_rate": measured.value(text, "sink_rate", threshold=0.3),
        "sink_rate_any": measured.value(text, "sink_rate_any", threshold=0.3),
        "massive_ratio": measured.value(text, "massive_ratio"),
        "largest": measured.largest(text) if is_probed else None,
        "gate_mean": measured.value(text, "gate_mean"),
        "gate_below": measured.value(text, "gate_below"),
    }
