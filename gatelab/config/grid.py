"""The dotted grammar and the three verbs of grids.

    model.gate=sdpa-headwise          one value        -> override
    model.gate=[none,sdpa-headwise]   several values   -> vary
    seed=0..4                         0, 1, 2, 3, 4    -> vary
    model.preset=paper/q48            a name for a point -> the fields that it changes
    parallel.dp=2                     short for execution.parallel.dp=2

`vary(path, values)` is one axis; `cross(a, b)` every combination; `together(a, b)` pairs them in order. A grid is a
list of changes, a change a dictionary {dotted path: value}. A preset is written out where it is applied: no
configuration keeps its name, so that a model has one fingerprint however it was asked for.
"""

import ast
import re
from collections.abc import Iterable
from typing import Any

from .base import Config, ConfigError, keys, meant, nearest, validate
from .model import ModelConfig
from .presets import PRESETS

Change = dict[str, Any]

_MOST_VALUES = 10_000
_GATES = ("gate", "cross_gate", "encoder_gate")


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
    """`key=value` words as {path: values}; a list or a range has several values, anything else one. `parallel` is written out as
    `execution.parallel`.

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
        if path.partition(".")[0] == "parallel":
            path = f"execution.{path}"
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
    if path == "seed" and (span := re.fullmatch(r"(\d+)(?:-|:|\.{3,})(\d+)", text)):
        raise ConfigError([f"{path}={text}: write a range as {span[1]}..{span[2]}, or a list as [{span[1]},{span[2]}]"])
    if path == "seed" and re.fullmatch(r"\(?\d+(,\d+)+,?\)?", text):
        seeds = text.strip("(),").split(",")
        is_range = [*map(int, seeds)] == [*range(int(seeds[0]), int(seeds[-1]) + 1)]
        span = f", or a range as {seeds[0]}..{seeds[-1]}" if is_range else ""
        raise ConfigError([f"{path}={text}: write a list as [{','.join(seeds)}]{span}"])
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
        # A comma behind the last part is Python's, as in (0,).
        return tuple(_scalar(part.strip()) for part in (parts if parts[-1].strip() else parts[:-1]))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, int | float | str | tuple | list) else text


def override(config: Config, change: Change, path_prefix: str = "") -> Any:
    """`config` with some dotted paths replaced; a union's `kind` may be replaced, which drops the other kind's fields.

    `preset` in a model is a name of `PRESETS`, or `none`, which changes nothing. What is stated beside it wins over it; a
    control that depends on the model (`paper/q48`) changes the model as stated.

    Raises:
        ConfigError: listing every mistake, unknown keys with the keys that exist and the nearest match.
    """
    if not (isinstance(config, Config) and isinstance(change, dict)):
        said = f"{type(config).__name__}, {type(change).__name__}"
        raise ConfigError([f"override({said}): give a configuration, then values by key, as in {{'optim.lr': 1e-3}}"])
    change = _without_presets(config, change, path_prefix)
    if not change:
        return config
    tree = config.model_dump(mode="python")
    tree = _plain(tree)
    allowed = keys(type(config))
    allowed += [path for path in ("preset", "model.preset") if accepts(config, path)]
    problems = []
    for path in sorted(change, key=outermost):
        if path not in allowed:
            parent = path.rpartition(".")[0]
            siblings = [k for k in allowed if k.rpartition(".")[0] == parent] or [k for k in allowed if "." not in k]
            problems.append(
                f"{path_prefix}{path}: no such key; allowed here: {', '.join(siblings)}{meant(path, allowed)}"
            )
            continue
        _set(tree, path.split("."), change[path])
    if problems:
        raise ConfigError(problems)
    return validate(type(config), tree, path_prefix)


def outermost(path: str) -> tuple[int, bool]:
    """The order in which paths are set: a whole before its parts, and a kind before what that kind has."""
    return path.count("."), not path.endswith(".kind")


def accepts(config: Config, path: str) -> bool:
    """Whether this very value (with the union members it holds) has the dotted path; a model has a `preset` too. What is
    optional and absent has every path that it could have."""
    *parents, last = path.split(".")
    node = _at(config, parents)
    if node is None:
        return path in keys(type(config)) and None in [_at(config, parents[:i]) for i in range(1, len(parents) + 1)]
    if last == "preset" and isinstance(node, ModelConfig):
        return True
    return isinstance(node, Config) and last in type(node).model_fields


def _at(config: Config, parents: list[str]) -> Any:
    node: Any = config
    for name in parents:
        node = getattr(node, name, None)
    return node


def _without_presets(config: Config, change: Change, path_prefix: str) -> Change:
    """The change with the fields of its presets in their place."""
    for path in [p for p in change if p.rpartition(".")[2] == "preset" and accepts(config, p)]:
        name, rest = change[path], {p: v for p, v in change.items() if p != path}
        if name in (None, "none"):
            change = rest
            continue
        if not isinstance(name, str) or name not in PRESETS:
            problem = f"{path_prefix}{path}={name!r}: no such preset; `gatelab gates` lists them{nearest(str(name), list(PRESETS))}"
            raise ConfigError([problem, *_mistakes(config, rest, path_prefix)])
        change = _written_out(config, path.removesuffix("preset"), name, rest, path_prefix)
    return change


def _written_out(config: Config, prefix: str, name: str, rest: Change, path_prefix: str) -> Change:
    """`rest` and the fields that a preset changes; `prefix` is the model's place, as in `model.`."""
    preset, gates = PRESETS[name], [prefix + field for field in _GATES]
    where = f"{path_prefix}{prefix}preset={name!r}"
    if not callable(preset.changes):
        return {prefix + field: value for field, value in preset.changes.items()} | rest
    try:
        stated = override(config, {p: v for p, v in rest.items() if p not in gates}, path_prefix)
        changes = preset.of(_at(stated, prefix.split(".")[:-1]))
    except ConfigError as error:
        raise ConfigError(_mistakes(config, rest, path_prefix) or error.problems) from None
    except ValueError as error:
        raise ConfigError([f"{where}: {error}"]) from None
    found = {prefix + field: value for field, value in changes.items()}
    kept = {p: v for p, v in rest.items() if p in gates or not any(p == f or p.startswith(f"{f}.") for f in found)}
    return found | kept


def _mistakes(config: Config, change: Change, path_prefix: str) -> list[str]:
    try:
        override(config, change, path_prefix)
    except ConfigError as error:
        return error.problems
    return []


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return _plain(value.model_dump(mode="python"))
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


# The fields that hold one of several kinds, wherever they are.
_KINDS = {"activation", "data", "objective", "rope_scaling", "softmax"}


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    if last == "kind":
        *parents, last = parents
    for name in parents:
        if not isinstance(tree.get(name), dict):
            # Absent so far, or written as one word, which is a kind where there are kinds.
            tree[name] = {"kind": tree[name]} if tree.get(name) and name in _KINDS else {}
        tree = tree[name]
    if isinstance(tree.get(last), dict) and isinstance(value, str):
        # The whole union is replaced by its kind; when it is that kind already, its settings stay.
        if tree[last].get("kind") != value:
            tree[last] = {"kind": value}
        return
    tree[last] = _plain(value)
