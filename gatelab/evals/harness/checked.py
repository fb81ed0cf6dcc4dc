"""What the fields of a benchmark's row may hold, by benchmark, beside being there: each check says what is wrong, or nothing.

Notable: what passes is what the harness's own prompts and scores can use, so that a wrong value is told with its line, before
a model is opened, and not from the depths of a template.
"""

from collections.abc import Callable
from typing import Any

Check = Callable[[dict[str, Any]], str]  # a sentence on a row, empty where it will do

_LETTERS = ("A", "B", "C", "D")


def has_texts(*fields: str) -> Check:
    """Texts that are not blank."""

    def check(row: dict[str, Any]) -> str:
        return next((_said(f, row[f], "a text that is not blank") for f in fields if not _is_text(row[f])), "")

    return check


def arc(row: dict[str, Any]) -> str:
    """A question, options under labels, and the label of the right one."""
    choices = row["choices"]
    texts, labels = (choices.get("text"), choices.get("label")) if isinstance(choices, dict) else (None, None)
    if not _are_texts(texts, 2) or not _are_texts(labels, 2) or len(texts) != len(labels):
        return _said("choices", choices, "{text: [two texts or more], label: [as many labels]}")
    if row["answerKey"] not in labels:
        return _said("answerKey", row["answerKey"], f"one of its labels, {', '.join(labels)}")
    return has_texts("question")(row)


def hellaswag(row: dict[str, Any]) -> str:
    """A beginning in two halves, either of which may be empty, its endings, and the number of the right one."""
    for field in ("activity_label", "ctx_a", "ctx_b"):
        if not isinstance(row[field], str):
            return _said(field, row[field], "a text, empty where there is none")
    if not _are_texts(row["endings"], 2):
        return _said("endings", row["endings"], "a list of two texts or more, none blank")
    label, last = row["label"], len(row["endings"]) - 1
    # The public files have it as text.
    number = int(label) if isinstance(label, str) and label.isdecimal() else label
    return "" if _is_number(number, last) else _said("label", label, f"the number of the right ending, 0 to {last}")


def lambada(row: dict[str, Any]) -> str:
    """A text whose last word is asked for after the others."""
    before, _, last = row["text"].rpartition(" ") if isinstance(row["text"], str) else ("", "", "")
    if not before.strip() or not last.strip():
        return _said("text", row["text"], "two words or more, a blank before the last one and none behind it")
    return ""


def mbpp(row: dict[str, Any]) -> str:
    """A task in words, a program, and tests, of which the prompt shows three."""
    if not _are_texts(row["test_list"], 3):
        return _said("test_list", row["test_list"], "a list of three texts or more, none blank")
    return has_texts("text", "code")(row)


def mmlu(row: dict[str, Any]) -> str:
    """A question, four options, and the number or letter of the right one."""
    if not _are_texts(row["choices"], 4) or len(row["choices"]) != 4:
        return _said("choices", row["choices"], "a list of four texts, none blank")
    if not _is_number(row["answer"], 3) and row["answer"] not in _LETTERS:
        return _said("answer", row["answer"], "the number of the right choice, 0 to 3, or its letter, A to D")
    return has_texts("question", "subject")(row)


def piqa(row: dict[str, Any]) -> str:
    """A goal, two solutions, and the number of the right one."""
    if not _is_number(row["label"], 1):
        return _said("label", row["label"], "the number of the right solution, 0 or 1")
    return has_texts("goal", "sol1", "sol2")(row)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any, least: int) -> bool:
    return isinstance(value, list) and len(value) >= least and all(map(_is_text, value))


def _is_number(value: Any, last: int) -> bool:
    return type(value) is int and 0 <= value <= last


def _said(field: str, value: Any, expected: str) -> str:
    shown = repr(value)
    return f"{field}={shown if len(shown) <= 80 else f'{shown[:60]}…'}: expected {expected}"
