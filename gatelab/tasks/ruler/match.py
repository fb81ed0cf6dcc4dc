"""RULER's scores (arXiv 2404.06654, and its evaluation code): references found in what was written, blind to case."""

import re

from ..prompt import Prompt

_CONTROL = re.compile(r"[\x00-\x1f]")


def found(prompt: Prompt, written: tuple[str, ...]) -> float:
    """The share of the references that stand anywhere in the output, its control characters made newlines."""
    output = _CONTROL.sub("\n", written[0].strip()).strip().lower()
    return sum(reference.lower() in output for reference in prompt.references) / len(prompt.references)


def found_any(prompt: Prompt, written: tuple[str, ...]) -> float:
    """1 where one of the references does."""
    return float(found(prompt, written) > 0)
