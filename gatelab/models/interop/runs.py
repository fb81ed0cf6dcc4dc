"""A run as a model to export: its resolved configuration, weights, tokenizer, and what it measured at its end."""

import json
from pathlib import Path

from ...config import Run
from .folder import WEIGHTS, Stored, stored
from .tensors import of_files
from .tokenizer import write_tokenizer

# Coordinates of a row that is about a part of the model, or of what it read.
_PARTS = ("layer", "head", "stack", "bin", "domain", "intervention", "key", "channel", "query", "depth", "task")


def stored_run(
    run: Run,
    folder: Path,
    companions: Path,
    *,
    tokenizer: Path | None,
    has_tokenizer: bool,
    checkpoint: tuple[Path, int] | None = None,
) -> Stored:
    """The model of a run's folder; its tokenizer is written into `companions`.

    Args:
        checkpoint: of a run that has not finished, a file of its weights and their step.
        tokenizer: a tokenizer.json; None is: bytes.
        has_tokenizer: False where the run read no text, or its tokenizer is not to be had.

    Raises:
        ValueError: the weights are missing, damaged, or not of this configuration.
    """
    weights, step = (folder / WEIGHTS, run.train.steps) if checkpoint is None else checkpoint
    held = of_files(str(folder), [weights]).shapes
    objective = run.resolved_objective
    # The ids of the data are not asked for again: a row of the embedding each.
    resolved = run.resolved(held["embedding.weight"][0] - objective.extra_ids(run.train.seq_len))
    begins = getattr(run.data, "bos", False)
    tokens = write_tokenizer(companions, tokenizer, begins=begins) if has_tokenizer else {}
    stands = (f"Its weights are those of step {step:,}: the run had not finished.",) if checkpoint is not None else ()
    about = (
        f"Run {folder.name}: {run.train.steps:,} steps, {run.train.tokens:,} tokens in sequences of {run.train.seq_len}, seed "
        f"{run.seed}.",
        f"Data: {run.data.kind}" + (f", {', '.join(run.data.paths)}." if hasattr(run.data, "paths") else "."),
        *stands,
    )
    return stored(
        str(folder),
        resolved.model,
        weights,
        companions=companions,
        facts=about,
        measured=measured(folder / "rows.jsonl") if checkpoint is None else (),
        tokens=tokens,
    )


def measured(rows_path: Path) -> tuple[tuple[str, float, str], ...]:
    """(metric, value, unit) of the whole model at the last look, in the order of their names; () without rows."""
    if not rows_path.is_file():
        return ()
    rows = [json.loads(line) for line in rows_path.read_text(encoding="utf-8").splitlines()]
    whole = [r for r in rows if r["source"] != "train" and all(r.get(part) is None for part in _PARTS)]
    last = max((r["step"] for r in whole), default=0)
    found = [(_label(r), float(r["value"]), r["unit"]) for r in whole if r["step"] == last]
    return tuple(sorted(found))


def _label(row: dict) -> str:
    said = [f"{name}={row[name]}" for name in ("site", "stage", "threshold") if row.get(name) is not None]
    return " ".join([row["metric"], *said])
