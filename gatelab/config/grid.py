"""The dotted grammar and the three verbs of grids.

    model.gate=sdpa-headwise          one value        -> override
    model.gate=[none,sdpa-headwise]   several values   -> vary
    seed=0..4                         0, 1, 2, 3, 4    -> vary

`vary(path, values)` is one axis; `cross(a, b)` every combination; `together(a, b)` pairs them in order. A grid is a
list of changes, a change a dictionary {dotted path: value}.
"""

import ast
import re
from collections.abc import Iterable
from typing import Any

from .base import Config, ConfigError, keys, nearest, validate

Change = dict[str, Any]

_MOST_VALUES = 10_000


def vary(path: str, values: Iterable[Any]) -> list[Change]:
    """One change a value."""
    return [{path: value} for value in values]


def cross(*grids: list[Change]) -> list[Change]:
    """Every combination of one change from each grid, the last grid varying fastest."""
    out: list[Change] = [{}]
    for grid in grids:
        out = [{**left, **right} for left in out for right in grid]
    return out


def together(*grids: list[Change]) -> list[Change]:
    """The first changes of all grids together, then the second ones, …

    Raises:
        ValueError: when the grids differ in length.
    """
    lengths = [len(g) for g in grids]
    if len(set(lengths)) > 1:
        raise ValueError(f"together: the grids have {', '.join(map(str, lengths))} values; they must have as many each")
    return [{k: v for change in changes for k, v in change.items()} for changes in zip(*grids, strict=True)]


def parse_assignments(words: Iterable[str]) -> dict[str, list[Any]]:
    """`key=value` words as {path: values}; a list or a range has several values, anything else one.

    Raises:
        ConfigError: for a word without `=` or without a value, an empty list, a range that runs backwards, a key given twice.
    """
    out: dict[str, list[Any]] = {}
    problems = []
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", path):
            problems.append(f"{word!r}: expected key=value with a dotted key, as in optim.lr=1e-3")
            continue
        if not text:
            problems.append(f"{path}=: the value is missing")
            continue
        if path in out:
            problems.append(f"{path}: given twice; for several values write {path}=[a,b]")
            continue
        try:
            out[path] = _values(path, text)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return out


def _values(path: str, text: str) -> list[Any]:
    if span := re.fullmatch(r"(-?\d{1,18})\.\.(-?\d{1,18})", text):
        low, high = int(span[1]), int(span[2])
        if high < low:
            raise ConfigError([f"{path}={text}: the range runs backwards; write {high}..{low} or a list"])
        if high - low >= _MOST_VALUES:
            raise ConfigError([f"{path}={text}: {high - low + 1} values; a range has at most {_MOST_VALUES}"])
        return list(range(low, high + 1))
    if text.startswith("[") and text.endswith("]"):
        inner = [w.strip() for w in _split(text[1:-1])]
        if not inner or "" in inner:
            raise ConfigError([f"{path}={text}: a list needs values, as in {path}=[a,b]"])
        return [_scalar(w) for w in inner]
    return [_scalar(text)]


def _split(text: str) -> list[str]:
    """At commas outside of brackets, so that a list of tuples can be written."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([") - (c in ")]")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _scalar(text: str) -> Any:
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if len(text) > 2 and text[0] + text[-1] in ("()", "[]") and len(parts := _split(text[1:-1])) > 1:
        return tuple(_scalar(part.strip()) for part in parts)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, int | float | str | tuple | list) else text


def override(config: Config, change: Change, path_prefix: str = "") -> Any:
    """`config` with some dotted paths replaced; a union's `kind` may be replaced, which drops the other kind's fields.

    Raises:
        ConfigError: listing every mistake, unknown keys with the keys that exist and the nearest match.
    """
    if not change:
        return config
    tree = config.model_dump(mode="python")
    tree = _plain(tree)
    allowed = keys(type(config))
    problems = []
    for path in sorted(change, key=outermost):
        if path not in allowed:
            parent = path.rpartition(".")[0]
            siblings = [k for k in allowed if k.rpartition(".")[0] == parent] or [k for k in allowed if "." not in k]
            # A name without its section is closer to what was meant than any word that looks like it.
            meant = [k for k in allowed if k.endswith(f".{path}")]
            hint = f"; did you mean {meant[0]!r}?" if meant else nearest(path, allowed)
            problems.append(f"{path_prefix}{path}: no such key; allowed here: {', '.join(siblings)}{hint}")
            continue
        _set(tree, path.split("."), change[path])
    if problems:
        raise ConfigError(problems)
    return validate(type(config), tree, path_prefix)


def outermost(path: str) -> tuple[int, bool]:
    """The order in which paths are set: a whole before its parts, and a kind before what that kind has."""
    return path.count("."), not path.endswith(".kind")


def accepts(config: Config, path: str) -> bool:
    """Whether this very value (with the union members it holds) has the dotted path."""
    node: Any = config
    *parents, last = path.split(".")
    for name in parents:
        node = getattr(node, name, None)
    return isinstance(node, Config) and last in type(node).model_fields


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return _plain(value.model_dump(mode="python"))
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    if last == "kind":
        *parents, last = parents
    for name in parents:
        tree = tree[name]
    if isinstance(tree.get(last), dict) and isinstance(value, str):
        # The whole union is replaced by its kind; when it is that kind already, its settings stay.
        if tree[last].get("kind") != value:
            tree[last] = {"kind": value}
        return
    tree[last] = _plain(value)
