"""What the commands share: kinds of options, and how something is said."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from math import isfinite
from typing import Annotated, Any

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", negative="")]
Flag = Annotated[bool, Parameter(negative="")]
Words = Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)]


def tell(message: str) -> None:
    """A word beside the output."""
    print(message, file=sys.stderr, flush=True)


def tell_data(cells: list[dict[str, Any]]) -> None:
    """What the cells of a study.json read, of text: how much of what, and how many files were left out."""
    for cell in cells:
        if cell["base"]["data"]["kind"] == "text":
            tell(f"{cell['name']}: {cell['data']}")


def refuse_empty(words: list[str]) -> None:
    """A word without a letter is what a shell makes of a variable that was not set.

    Raises:
        ConfigError: naming the option that it would be the value of.
    """
    from ..config import ConfigError

    for before, word in pairwise(["", *words]):
        option, equals, value = word.partition("=")
        if not word:
            option = before if before.startswith("--") else "a word"
        elif not (word.startswith("--") and equals and not value):
            continue
        raise ConfigError([f"{option} '': is empty; give it a value, or leave it out"])


@contextmanager
def refusing() -> Iterator[None]:
    """Before anything starts: a folder or file that cannot be taken is refused as a word is that cannot be read, with exit status
    2."""
    from ..config import ConfigError
    from ..store import StoreError

    try:
        yield
    except StoreError as error:
        raise ConfigError([str(error)]) from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            [f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)]
        ) from None


def print_json(records: list[dict[str, Any]]) -> None:
    """One record a line."""
    for record in records:
        print(json.dumps(_json_ready(record), ensure_ascii=False, default=str, allow_nan=False))


def _json_ready(value: Any) -> Any:
    """Not-a-number and infinities as strings, as in rows.jsonl: JSON has none."""
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _json_ready(v) for k, v in value.items()}
    return [_json_ready(v) for v in value] if isinstance(value, list) else value


def said(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measurements without the columns in which nothing is said, such as the only length or step; what has no stack among several
    is the `decoder`."""
    has_stacks = any(row["stack"] for row in rows)
    by_stack = {row["metric"] for row in rows if row["stack"]}
    named = [row | {"stack": row["stack"] or ("decoder" if row["metric"] in by_stack else None)} for row in rows]
    optional = ("stack", "site", "stage", "threshold", "domain", "key", "channel", "task", "intervention", "dose")
    empty = {key for key in optional if all(row.get(key) is None for row in rows)}
    empty |= {key for key in ("length", "step") if len({row.get(key) for row in rows} - {None}) < 2}
    return [{k: v for k, v in row.items() if k not in empty} for row in (named if has_stacks else rows)]


def short_count(n: int) -> str:
    """A count in four digits: 201.3M; below a million as it is."""
    return f"{n / 1e9:.4g}B" if n >= 10**9 else f"{n / 1e6:.4g}M" if n >= 10**6 else f"{n:,}"
