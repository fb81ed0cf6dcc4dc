"""Lines of the table of `gatelab eval` on our own tasks: a score, its interval, and what guessing and blind copying score."""

from collections.abc import Callable, Container, Iterable, Sequence
from statistics import fmean
from typing import Any

from ..record import Row
from .changes import share_interval

PREFIX = "gatelab/"
# What a task is judged by, and the choice.
MAIN = ("exact_match", "found", "best_subspan_em", "rouge_l", "citation_f1", "query_accuracy", "choice")
# What stands beside it.
_BESIDE = (
    "citation_precision", "citation_recall", "answer_exact", "answer_f1", "answer_precision", "answer_recall",
    "memorization_ratio", "error_neighbour", "error_other_value", "error_elsewhere", "first_error",
)  # fmt: skip
_SCORES = (*MAIN[:-1], *_BESIDE[:3], "choice", *_BESIDE[3:], "abstention_precision", "abstention_recall")


def line(
    task: str,
    metric: str,
    length: int | None,
    depth: float | str | None,
    value: float | None,
    *,
    low: float | None = None,
    high: float | None = None,
    chance: float | None = None,
    copying: float | None = None,
    untrained: float | None = None,
    margin: float | None = None,
    edits: float | None = None,
    from_start: float | None = None,
    items: int | None = 0,
    refused: int | None = 0,
    tied: float | None = None,
    not_finite: float | None = None,
) -> dict[str, Any]:
    """One line; all have the same columns."""
    return {
        "task": f"{PREFIX}{task}",
        "metric": metric,
        "length": length,
        "depth": depth,
        "value": value,
        "low": low,
        "high": high,
        "chance": chance,
        "copying": copying,
        "untrained": untrained,
        "margin": margin,
        "edit similarity": edits,
        "copied from start": from_start,
        "items": items,
        "refused": refused,
        "tied": tied,
        "not finite": not_finite,
    }


def with_interval(row: Callable[..., Row], metric: str, scores: Sequence[float]) -> list[Row]:
    """The mean of scores over items, and the ends of its interval."""
    low, high = share_interval(scores)
    named = {metric: fmean(scores), f"{metric}_low": low, f"{metric}_high": high}
    return [row(name, value) for name, value in named.items()]


def abstention_rows(row: Callable[..., Row], said: Sequence[tuple[bool, bool]]) -> list[Row]:
    """Of (said that there is none, there is none): precision, where that was ever said, and recall, where there ever is none."""
    of = {
        "precision": [is_none for says, is_none in said if says],
        "recall": [says for says, is_none in said if is_none],
    }
    return [made for name, scores in of.items() if scores for made in with_interval(row, f"abstention_{name}", scores)]


def guesses_beside(metric: str, known: Container[str]) -> tuple[str, str]:
    """The metrics of what chance and blind copying score beside a metric: its own where they are `known`, else those of the whole
    answer, of what a task is judged by."""
    what = metric if f"{metric}_chance" in known or metric not in MAIN else "answer"
    return f"{what}_chance", f"{what}_floor"


def lines_of(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A line a score of rows of sources `tasks` and `citations`: what guessing and blind copying score beside it, and what was
    counted."""
    groups: dict[tuple[str, int, float | None], dict[str, float]] = {}
    for row in rows:
        # Of several pairs, or sentences, each number by itself.
        groups.setdefault((row.task, row.length, row.depth), {}).setdefault(
            row.metric if row.bin is None else f"{row.metric}/{row.bin}", row.value
        )
    return [
        made
        for (task, length, depth), of in groups.items()
        for made in (
            *(_line(task, metric, length, depth, of) for metric in [m for m in _SCORES if m in of] or ["none"]),
            *_by_load(task, length, depth, of),
        )
    ]


def _by_load(task: str, length: int, depth: float | None, of: dict[str, float]) -> list[dict[str, Any]]:
    """A line a number of pairs at which it was asked beside."""
    numbers = sorted(int(name.partition("/")[2]) for name in of if name.startswith("query_accuracy/"))
    names = {"low": "_low", "high": "_high", "chance": "_chance", "copying": "_floor", "untrained": "_untrained"}
    return [
        line(
            task, f"query_accuracy, {n} pairs", length, depth, of[f"query_accuracy/{n}"], items=int(of["items"]),
            **{column: of.get(f"query_accuracy{end}/{n}") for column, end in names.items()},
        )
        for n in numbers
    ]  # fmt: skip


def _line(task: str, metric: str, length: int, depth: float | None, of: dict[str, float]) -> dict[str, Any]:
    is_choice = metric == "choice"
    what = "choice" if is_choice else "answer"
    chance, copying = (of.get(name) for name in guesses_beside(metric, of))
    if metric.startswith("abstention"):
        # Who always says that there is none.
        chance, copying = None, of.get("answer_floor") if metric.endswith("precision") else 1.0
    is_answer = metric in MAIN and not is_choice
    return line(
        task, metric, length, depth, of.get(metric),
        low=of.get(f"{metric}_low"), high=of.get(f"{metric}_high"), chance=chance, copying=copying,
        untrained=of.get(f"{metric}_untrained"), margin=of.get(f"{what}_margin") if metric in MAIN else None,
        edits=of.get("edit_similarity") if is_answer else None,
        from_start=of.get("copied_from_start") if is_answer else None,
        items=int(of["items"]), refused=int(of["items_refused"]), tied=of.get(f"{what}_ties"), not_finite=of.get(f"{what}_nan"),
    )  # fmt: skip
