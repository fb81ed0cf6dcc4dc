"""What was said to prompts, as rows and items."""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, nan
from statistics import fmean

from ..record import Item, Row
from ..tasks.citations import rows_of as rows_of_citations
from ..tasks.cited import CITATIONS, judged
from ..tasks.errors import UNITS
from ..tasks.prompt import PromptTask, Setting, begins
from ..tasks.vocabulary import NONE, word
from .changes import share_interval
from .own_lines import abstention_rows, with_interval
from .own_text import Said
from .own_worth import worth_of


def rows_of_said(said: Sequence[Said], task: PromptTask, setting: Setting, *, run: str) -> list[Row]:
    """What docs/metrics.md says of source `tasks`, of what was written; of items that were refused only how many there are."""
    asked = [s for s in said if s.prompt is not None]

    def row(metric: str, values: Sequence[float], unit: str = "share") -> Row:
        return Row(
            run, 0, "tasks", metric, fmean(values), unit, task=task.name, length=setting.length, depth=setting.depth
        )

    def scored(metric: str, scores: Sequence[float]) -> list[Row]:
        return with_interval(lambda name, value: row(name, [value]), metric, scores)

    rows = [
        row("items", [float(len(asked))], "items"),
        row("items_refused", [float(len(said) - len(asked))], "items"),
    ]
    if not asked:
        return rows
    rows += [
        *scored(task.metric, [s.value for s in asked]),
        row("answer_chance", [s.prompt.chance for s in asked]),
        row("answer_nan", [s.is_nan for s in asked]),
    ]
    floors = [s.prompt.floor for s in asked if s.prompt.floor is not None]
    if floors:
        rows.append(row("answer_floor", floors))
    for metric in dict.fromkeys(m for s in asked for m in s.prompt.guesses):
        own = [s.prompt.guesses[metric] for s in asked if metric in s.prompt.guesses]
        for end, guesses in zip(("chance", "floor"), zip(*own, strict=True), strict=True):
            rows.append(row(f"{metric}_{end}", guesses))
    if task.name in CITATIONS:
        rows += _citation_rows(asked, setting, run)
    if task.name == "absent" and setting.depth is None:
        says = [(not s.is_nan and _says_none(s), not s.prompt.factors["is_there"]) for s in asked]
        rows += abstention_rows(lambda metric, value: row(metric, [value]), says)
    worth: dict[tuple[str, int | None], list[float]] = {}
    for s in asked:
        for key, value in worth_of(s.prompt, s.written, is_sure=s.is_sure).items():
            worth.setdefault(key, []).append(value)
    for (metric, number), values in worth.items():
        unit = UNITS.get(metric, "share")
        of = scored(metric, values) if unit == "share" else [row(metric, values, unit)]
        rows += [replace(one, bin=number) for one in of]
    chosen = [s for s in asked if s.choice is not None]
    if not chosen:
        return rows
    rows += [
        row("answer_ties", [s.is_tied for s in chosen]),
        *scored("choice", [s.choice.credit for s in chosen]),
        row("choice_chance", [1 / len(s.prompt.options) for s in chosen]),
        row("choice_floor", [s.prompt.choice_floor for s in chosen]),
        row("choice_ties", [s.choice.is_tied for s in chosen]),
        row("choice_nan", [s.choice.is_nan for s in chosen]),
    ]
    margins = [s.margin for s in chosen if isfinite(s.margin)]
    return [*rows, row("choice_margin", margins, "nats")] if margins else rows


def untrained_rows(said: Sequence[Said], task: PromptTask, setting: Setting, *, run: str, writes: bool) -> list[Row]:
    """What an untrained model scored, beside the trained one's rows."""
    found: dict[str, list[float]] = {}
    for s in said:
        for metric, value in (s.scores(task.metric) | (_parts(s) if writes else {})).items():
            if writes or metric == "choice":
                found.setdefault(f"{metric}_untrained", []).append(value)
    return [
        Row(run, 0, "tasks", metric, fmean(values), "share", task=task.name, length=setting.length, depth=setting.depth)
        for metric, values in found.items()
    ]


def _parts(said: Said) -> dict[str, float]:
    """The scores of parts of an answer, beside which guesses are known."""
    if said.prompt.task in CITATIONS:
        text = judged(said.prompt, "" if said.is_tied else said.written[0])
        shares = {f"citation_{name}": getattr(text.share, name) for name in ("precision", "recall")}
        return {"answer_exact": float(text.is_answer_right)} | shares
    worth = worth_of(said.prompt, said.written, is_sure=said.is_sure)
    return {metric: value for (metric, _), value in worth.items() if metric in said.prompt.guesses}


def _citation_rows(asked: Sequence[Said], setting: Setting, run: str) -> list[Row]:
    """Of source `citations`, with intervals."""
    # The first of tied tokens is not to have known the right one.
    texts = [judged(s.prompt, "" if s.is_tied else s.written[0]) for s in asked]
    task = asked[0].prompt.task
    rows = rows_of_citations(texts, task=task, run=run, step=0, length=setting.length)
    for metric, scores in (
        ("answer_exact", [float(t.is_answer_right) for t in texts]),
        ("citation_precision", [t.share.precision for t in texts]),
        ("citation_recall", [t.share.recall for t in texts]),
    ):
        ends = zip(("low", "high"), share_interval(scores), strict=True)
        rows += [
            Row(run, 0, "citations", f"{metric}_{end}", value, "share", task=task, length=setting.length)
            for end, value in ends
        ]
    return [replace(row, depth=setting.depth) for row in rows]


def _says_none(said: Said) -> bool:
    """Whether what was written begins with the word that means that there is no answer."""
    return begins(replace(said.prompt, answers=(f" {word(NONE)}",)), tuple(said.written)) == 1


def items_of_said(said: Sequence[Said], task: PromptTask, setting: Setting, *, run: str) -> list[Item]:
    """One record an item, the refused ones with their reason; its score is that of the task."""
    return [_item(s, task, setting, run) for s in said]


def _item(said: Said, task: PromptTask, setting: Setting, run: str) -> Item:
    if said.prompt is None:
        factors = {"length": setting.length, "refused": said.problem}
        return Item(run, 0, task.name, said.index, None, nan, "", "", factors)
    prompt = said.prompt
    factors = {
        "length": setting.length,
        "tokens": said.n_tokens,
        "depth": prompt.depth,
        "asked_depth": setting.depth,
        "layout": setting.layout,
        "floor": prompt.floor,
        "choice": None if said.choice is None else said.choice.is_right,
        "margin": said.margin if isfinite(said.margin) else None,
        "tied": said.is_tied,
        "nan": said.is_nan,
        "evidence": [list(span) for span in prompt.evidence],
        "n_distractors": len(prompt.distractors),
        **prompt.factors,
    }
    wanted = tuple(a.strip() for a in prompt.answers)
    answer = " | ".join(wanted if task.name in CITATIONS else prompt.references or wanted)
    return Item(run, 0, task.name, said.index, said.value == 1, said.value, answer, " | ".join(said.written), factors)
