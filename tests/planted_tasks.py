"""A study on the task `cite` whose answers are planted, so that every table of tasks is known.

Trained at 64 tokens and asked at 1× and 2×, 22 items at eleven depths in turn; three seeds of two arms. Without a gate seed 0
solves the task at step 100 and the others never; with one all do, seeds 0 and 2 at step 50. At 1× the ungated models are wrong
in the middle of the text; at 2× nobody is right. Item 5 is wrong in all runs, and its citation alone.
"""

from dataclasses import asdict
from pathlib import Path

from gatelab.config import AskConfig, Run, Tasks, TrainConfig, canonical
from gatelab.record import Item, Metric, Row
from gatelab.store import Appender, StudyFolder, write_lines
from gatelab.tasks import Knobs, open_task

CELL, N_ITEMS, LENGTH = "cite 0.001", 22, 64
ARMS = {"none": "no gate", "sdpa-headwise": "headwise gate"}
SEEDS = (0, 1, 2)
# Accuracy at 1× after steps 50 and 100.
LEARNED = {
    ("none", 0): (0.5, 0.95), ("none", 1): (0.0, 0.2), ("none", 2): (0.0, 0.1),
    ("sdpa-headwise", 0): (0.9, 1.0), ("sdpa-headwise", 1): (0.2, 0.9), ("sdpa-headwise", 2): (0.95, 0.95),
}  # fmt: skip
MIDDLE = (4, 5, 6)


def make_study(path: Path) -> StudyFolder:
    """All six runs are done."""
    run = Run(
        data=Tasks(names=("cite",), distractors=3),
        train=TrainConfig(tokens=64 * 100, batch_size=1, seq_len=LENGTH),
        ask=AskConfig(items=N_ITEMS, times=(1, 2), every=50),
    )
    plan = [
        {
            "cell": CELL, "arm": arm, "seed": seed, "fingerprint": f"{i:012x}", "n_parameters": 10, "remainder": 0,
            "d_ff": 8, "steps": 100, "tokens": 6400, "flops": 1.0, "command": "gatelab train",
        }
        for i, (arm, seed) in enumerate((a, s) for a in ARMS for s in SEEDS)
    ]  # fmt: skip
    folder = StudyFolder.create(
        path,
        {
            "name": "planted", "question": "Is what was planted found?", "version": "0", "baseline": "none",
            "seeds": list(SEEDS), "metrics": [asdict(Metric("val_loss", "nats", "lower-is-better", "held-out loss"))],
            "cells": [{"name": CELL, "title": CELL, "about": "", "data": "items", "base": canonical(run)}],
            "arms": [{"name": a, "label": w, "changes": {}, "control": False} for a, w in ARMS.items()], "plan": plan,
        },
    )  # fmt: skip
    for entry, own in folder.planned():
        own.create(canonical(run.model_copy(update={"seed": entry["seed"]})))
        rows = Appender(own.rows_path)
        rows.write(rows_of(own.fingerprint, entry["arm"], entry["seed"]))
        rows.close()
        write_lines(own.items_path, [item(own.fingerprint, entry["arm"], i, t) for t in (1, 2) for i in range(N_ITEMS)])
        own.mark_done("done", {"steps": 100, "seconds": 1.0})
    return folder


def is_right(arm: str, index: int, times: int) -> bool:
    """Whether a run of the arm says all of an item, whatever its seed."""
    return times == 1 and index != 5 and not (arm == "none" and index % 11 in MIDDLE)


def item(run: str, arm: str, index: int, times: int) -> Item:
    """An answer: wrong ones cite another document, and in the middle say another value too."""
    depth = index % 11 / 10
    asked = open_task("cite").item(Knobs(times * LENGTH, depth, 3), index)
    value, document = asked.answer
    given = (value, document) if is_right(arm, index, times) else (value, document + 1)
    if index % 11 in MIDDLE and index != 5 and given != asked.answer:
        given = (value + 1, document + 1)
    knobs = {"index": index, "asked_depth": depth, "distractors": 3, "hardness": None}
    margin = 1.0 if given == asked.answer else -2.0 if index == 5 else -1.0
    return Item(
        run, 100, "cite", index, given == asked.answer, margin,
        answer=" ".join(map(str, asked.answer)), given=" ".join(map(str, given)),
        factors={"length": times * LENGTH, "depth": depth, "knobs": knobs},
    )  # fmt: skip


def rows_of(run: str, arm: str, seed: int) -> list[Row]:
    """Before training nothing is right."""
    rows = []
    for step, accuracy in zip((0, 50, 100), (0.0, *LEARNED[arm, seed]), strict=True):
        for times in (1,) if step == 50 else (1, 2):
            at = {"task": "cite", "length": times * LENGTH}
            score = accuracy if times == 1 else accuracy / 2
            for metric, value in (("exact_match", score), ("answer_floor", 0.125), ("answer_chance", 0.001)):
                rows.append(Row(run, step, "tasks", metric, value, "share", **at))
            rows.append(Row(run, step, "tasks", "answer_margin", 4 * score - 2, "nats", **at))
            for b in range(11) if step != 50 else ():
                v = score * (0.0 if arm == "none" and b in MIDDLE else 1.0)
                rows.append(Row(run, step, "tasks", "exact_match", v, "share", bin=b, depth=b / 10, **at))
            if times == 2:
                stretched = Row(run, step, "tasks", "exact_match", accuracy, "share", **at)
                stretched.intervention, stretched.dose = "yarn", 2.0
                rows.append(stretched)
    return rows
