"""Finished runs whose rows end before the last step of their plan: a file was cut, or edited.

What such a run has of an earlier step, of a metric or of all, is no final value: it makes no pair, and is named.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TASKS = "tasks"  # the answers to items of tasks, all together
NO_ROWS = "has no rows"
_MANY = 6  # runs that a note names
_End = tuple[int, int]  # the last step that is there, and that of the plan


@dataclass(frozen=True, slots=True)
class Short:
    """`rows` {run: end} of runs all of whose rows end early, `values` {run: {(metric, threshold): end}} of a metric's that do, and
    `answers` {run: end} of tasks."""

    rows: Mapping[str, _End]
    values: Mapping[str, Mapping[tuple[str, float | None], _End]]
    answers: Mapping[str, _End]

    def why(self, run: str, metric: str, threshold: float | None = None) -> str:
        """What follows 'seed 1 of gated': why a run has no final value of a metric, or of `TASKS`; empty where that is not cut."""
        own = self.answers.get(run) if metric == TASKS else self.values.get(run, {}).get((metric, threshold))
        if own is None:
            return ""
        what = "" if run in self.rows else f" of {metric}"
        return "has rows{} to step {:,} of {:,} only".format(what, *self.rows.get(run, own))

    def of(self, run: str) -> list[str]:
        """The metrics without a threshold that a run has no final value of."""
        return [metric for metric, at in self.values.get(run, ()) if at is None]

    def notes(self, runs: Iterable[tuple[dict[str, Any], str]]) -> list[str]:
        """A sentence that names these runs, (plan's entry, state), of those that are done."""
        said = []
        for entry, state in runs:
            run = entry["fingerprint"]
            if state != "done":
                continue
            where = f"{run} ({entry['cell']}, {entry['arm']}, seed {entry['seed']})"
            if run in self.rows:
                said.append("rows of {} end at step {:,} of {:,}".format(where, *self.rows[run]))
                continue
            metrics = {metric: end for (metric, _), end in self.values.get(run, {}).items()}
            metrics |= {TASKS: self.answers[run]} if run in self.answers else {}
            of: dict[_End, list[str]] = {}
            for metric, end in metrics.items():
                of.setdefault(end, []).append(metric)
            said += ["rows of {} of {} end at step {:,} of {:,}".format(", ".join(m), where, *e) for e, m in of.items()]
        if not said:
            return []
        more = f"; and {len(said) - _MANY} more" if len(said) > _MANY else ""
        again = "remove a run's done.json, and it is carried out again"
        return [f"left out: {'; '.join(said[:_MANY])}{more}; {again}"]


def short_rows(connection: Any) -> Short:
    """Of a connection of `digest`."""
    found = connection.execute("SELECT run, metric, threshold, step, final FROM short ORDER BY ALL").fetchall()
    values: dict[str, dict[tuple[str, float | None], _End]] = {}
    for run, metric, at, step, final in found:
        if metric not in ("", TASKS):
            values.setdefault(run, {})[metric, at] = (step, final)
    return Short(
        rows={run: (step, final) for run, metric, _, step, final in found if not metric},
        values=values,
        answers={run: (step, final) for run, metric, _, step, final in found if metric == TASKS},
    )
