"""What the harness found, as rows, items and lines of a table."""

from dataclasses import asdict, replace
from math import isfinite
from statistics import fmean
from typing import Any

import numpy as np

from ...record import Item, Row
from ..found import Found
from .language_model import Remark
from .strict import largest, scores

_SHARES = ("acc", "exact_match", "pass", "found")
_UNTRAINED = "_untrained"
_NONE = "none"  # the harness's filter that changes nothing
# Row metric -> what a remark says; each a share of items.
REMARKS = {
    "items_cut": lambda r: r.n_cut > 0,
    "items_without_beginning": lambda r: r.lost_beginning,
    "items_split_otherwise": lambda r: r.splits_otherwise,
    "items_without_score": lambda r: r.has_no_score,
    "items_not_finite": lambda r: r.is_not_finite,
    "items_tied": lambda r: r.is_tied,
}


def of_results(name: str, results: dict[str, Any], loaded: Any, remarks: dict[tuple[Any, Any], Remark]) -> Found:
    """The harness's results of `lm_eval.evaluate` with samples, as a model's."""
    samples: dict[str, list[dict[str, Any]]] = results["samples"]
    shares = {task: _shares(loaded.tasks[task], task, of_task, remarks) for task, of_task in samples.items()}
    rows = []
    for task, of_task in results["results"].items():
        members = _members(task, loaded.group_map, samples)
        rows += _measured(name, task, of_task)
        rows += [
            Row(name, 0, "harness", metric, value, "items" if metric == "items" else "share", task=task)
            for metric, value in _together([shares[m] for m in members]).items()
        ]
    items = [
        _item(name, loaded.tasks[task], task, sample, remarks.get((task, sample["doc_id"]), Remark()))
        for task, of_task in samples.items()
        for sample in of_task
    ]
    return Found(rows, items, [])


def beside(rows: list[Row]) -> list[Row]:
    """The scores of the same model before training, as rows that stand beside the trained one's."""
    return [replace(row, metric=f"{row.metric}{_UNTRAINED}") for row in rows if not _is_about(row.metric)]


def _is_about(metric: str) -> bool:
    """Whether it says something of the items, or of a score, and is none."""
    return metric in (*REMARKS, "items", "chance") or metric.endswith("_stderr")


def records(rows: list[Row], names: list[str], results: dict[str, Any]) -> list[dict[str, Any]]:
    """A line a metric of what was asked for: its value and standard error, the chance level, what the model before training
    scores where it was asked, and what was counted."""
    lines = []
    has_untrained = any(row.metric.endswith(_UNTRAINED) for row in rows)
    for task in names:
        mine = [row for row in rows if row.task == task]
        of = {row.metric: row.value for row in mine if row.stage is None and row.length is None}
        errors = {(row.metric, row.stage, row.length): row.value for row in mine if row.metric.endswith("_stderr")}
        before = {
            (row.metric.removesuffix(_UNTRAINED), row.stage, row.length): row.value
            for row in mine
            if row.metric.endswith(_UNTRAINED)
        }
        for row in mine:
            is_same = row.metric.endswith("_shared") and row.value == of.get(row.metric.removesuffix("_shared"))
            if _is_about(row.metric) or row.metric.endswith(_UNTRAINED) or is_same:
                continue
            at = "" if row.length is None else f" at {row.length}"
            how = "" if row.stage is None else f" ({row.stage})"
            lines.append(
                {
                    "task": task,
                    "metric": row.metric + at + how,
                    "value": row.value,
                    "±": errors.get((f"{row.metric}_stderr", row.stage, row.length)),
                    "chance": of.get("chance") if row.metric.startswith("acc") else None,
                    **({"untrained": before.get((row.metric, row.stage, row.length))} if has_untrained else {}),
                    "items": int(of["items"]),
                    "shots": results["n-shot"].get(task),
                    "version": results["versions"].get(task),
                    "tied": of.get("items_tied"),
                    "not finite": of.get("items_not_finite"),
                    "cut": of.get("items_cut"),
                    "split otherwise": of.get("items_split_otherwise"),
                }
            )
    return lines


def _measured(name: str, task: str, of_task: dict[str, Any]) -> list[Row]:
    out = []
    for key, value in of_task.items():
        metric, comma, stage = key.partition(",")
        if not comma or not isinstance(value, int | float):
            continue
        bare = metric.removesuffix("_stderr")
        length = int(bare) if bare.isdigit() else None
        if length is not None:
            if of_task.get(f"{bare},{stage}") == -1:
                continue  # the harness's word for a length without items
            metric = "found" + metric.removeprefix(bare)
        out.append(
            Row(
                name, 0, "harness", metric, float(value), _unit(metric),
                stage=None if stage == _NONE else stage, length=length, task=task,
            )
        )  # fmt: skip
    return out


def _unit(metric: str) -> str:
    return "share" if metric.startswith(_SHARES) else "bits/byte" if metric.startswith("bits_per_byte") else "1"


def _shares(
    task: Any, name: str, samples: list[dict[str, Any]], remarks: dict[tuple[Any, Any], Remark]
) -> dict[str, float]:
    """How many items, their chance level where options are given, and the share of each remark."""
    by_item = {sample["doc_id"]: sample for sample in samples}
    out = {"items": float(len(by_item))}
    if task.OUTPUT_TYPE == "multiple_choice":
        out["chance"] = fmean(_chance(task, sample) for sample in by_item.values())
        for item, sample in by_item.items():
            given = [_answer(r) for r in sample["filtered_resps"]]
            is_tied = all(isfinite(log_p) for log_p, _ in given) and any(
                len(largest(of_options)) > 1
                for metric, of_options in scores(task, sample["doc"], given).items()
                if metric in sample
            )
            if is_tied:
                remarks.setdefault((name, item), Remark()).is_tied = True
    told = [remarks.get((name, item), Remark()) for item in by_item]
    return out | {metric: fmean(map(float, map(says, told))) for metric, says in REMARKS.items()}


def _chance(task: Any, sample: dict[str, Any]) -> float:
    right = sample["target"]
    n_right = len(right) if isinstance(right, list) else 1
    return n_right / len(task.doc_to_choice(sample["doc"]))


def _answer(response: Any) -> tuple[float, bool]:
    log_p, is_greedy = response
    return float(log_p), is_greedy


def _members(name: str, group_map: dict[str, list[str]], samples: dict[str, Any]) -> list[str]:
    """The tasks with items of a group, or a task itself."""
    if name in samples:
        return [name]
    return [task for member in group_map.get(name, ()) for task in _members(member, group_map, samples)]


def _together(shares: list[dict[str, float]]) -> dict[str, float]:
    """Over tasks, each item counting once."""
    n_items = sum(s["items"] for s in shares)
    names = [n for n in shares[0] if n != "items" and all(n in s for s in shares)] if shares else []
    return {"items": n_items} | {n: sum(s[n] * s["items"] for s in shares) / n_items for n in names}


def _item(run: str, task: Any, name: str, sample: dict[str, Any], remark: Remark) -> Item:
    metrics = {m: sample[m] for m in sample["metrics"] if m in sample}
    first = next(iter(metrics.values()), float("nan"))
    score = _number(first[0] if isinstance(first, tuple | list) else first)
    answer, given = _said(task, sample)
    factors: dict[str, Any] = {"metrics": {m: _plain(v) for m, v in metrics.items()}}
    factors |= {key: value for key, value in asdict(remark).items() if value}
    if sample["filter"] != _NONE:
        factors["filter"] = sample["filter"]
    if task.OUTPUT_TYPE == "multiple_choice":
        factors["log_p"] = [_plain(_answer(r)[0]) for r in sample["filtered_resps"]]
    is_decided = score in (0.0, 1.0) and not isinstance(first, tuple | list)
    return Item(run, 0, name, sample["doc_id"], bool(score) if is_decided else None, score, answer, given, factors)


def _said(task: Any, sample: dict[str, Any]) -> tuple[str, str]:
    """The right answer and the one given, as texts."""
    if task.OUTPUT_TYPE == "multiple_choice" and not task.multiple_input:
        options = task.doc_to_choice(sample["doc"])
        right = sample["target"]
        rights = right if isinstance(right, list) else [right]
        log_p = scores(task, sample["doc"], [_answer(r) for r in sample["filtered_resps"]]).get("acc")
        best = [] if log_p is None else largest(log_p)
        # A right answer that is no option is said as it is.
        said = [options[r] if isinstance(r, int) and 0 <= r < len(options) else str(r) for r in rights]
        return " | ".join(said), " | ".join(options[i] for i in best)
    responses = sample["filtered_resps"]
    return str(sample["target"]), str(responses[0] if len(responses) == 1 else responses)


def _number(value: Any) -> float:
    """A metric's number of one item; not-a-number where it keeps texts until all items are there."""
    return float(value) if isinstance(value, int | float | np.number) else float("nan")


def _plain(value: Any) -> Any:
    """A number, text or list as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) or value is None else repr(value)
