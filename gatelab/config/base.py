"""What every configuration shares: frozen, unknown keys refused, all mistakes reported at once, one canonical form.

Notable: `ConfigError` carries one line a mistake (path, value, what is allowed, the nearest match), so that a
study file with five typos is corrected in one go; `canonical` is the only text that is ever hashed or stored.
"""

import difflib
import hashlib
import json
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class ConfigError(ValueError):
    """A configuration that cannot be used. `problems` holds one sentence a mistake; str() joins them by newlines."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))


class Config(BaseModel):
    """Base of all configurations: immutable values compared by content."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        """A word in the place of a tagged union means its kind: `model.softmax=sink-logit`."""
        if isinstance(value, str) and "kind" in cls.model_fields:
            return {"kind": value}
        return value


def canonical(config: Config) -> dict[str, Any]:
    """The JSON-ready form that is stored: every field, defaults included."""
    return config.model_dump(mode="json")


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a JSON-ready value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def nearest(word: str, allowed: list[str]) -> str:
    """`; did you mean 'x'?` for the closest allowed word, or nothing when none is close."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def validate(kind: type[Config], value: dict[str, Any], prefix: str = "") -> Any:
    """`value` as a `kind`.

    Raises:
        ConfigError: listing every mistake with its dotted path, the value, what is allowed and the nearest match.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ConfigError([_sentence(kind, e, prefix) for e in error.errors()]) from None


def keys(kind: type[Config], prefix: str = "") -> list[str]:
    """Every dotted path that `kind` accepts, those of all members of a tagged union included."""
    out = []
    for name, field in kind.model_fields.items():
        path = f"{prefix}{name}"
        out.append(path)
        for member in members(field.annotation):
            out += [k for k in keys(member, path + ".") if k not in out]
    return out


def members(annotation: Any) -> list[type[Config]]:
    """The configurations an annotation may hold: itself, or the members of its union."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType):
        return [m for arg in get_args(annotation) for m in members(arg)]
    if hasattr(annotation, "__metadata__"):
        return members(get_args(annotation)[0])
    return []


def _sentence(kind: type[Config], error: Any, prefix: str) -> str:
    location = _without_tags(kind, error["loc"])
    path = prefix + ".".join(location)
    given = error.get("input")
    if error["type"] == "extra_forbidden":
        *parent, last = location
        allowed = sorted(k for k in _siblings(kind, parent))
        return f"{path}: no such key; allowed here: {', '.join(allowed)}{nearest(last, allowed)}"
    if error["type"] in ("union_tag_invalid", "literal_error"):
        context = error["ctx"]
        expected = context.get("expected_tags") or context.get("expected")
        words = [w.strip().strip("'") for w in expected.replace(" or ", ", ").split(",")]
        shown = context.get("tag", given)
        return f"{path}={shown!r}: expected one of {', '.join(map(repr, words))}{nearest(str(shown), words)}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{path}: {message}" if path else message
    if error["type"] == "missing":
        return f"{path}: required, and missing"
    message = error["msg"]
    return f"{path}={given!r}: {message[0].lower()}{message[1:]}"


def _without_tags(kind: type[Config], location: tuple[str | int, ...]) -> list[str]:
    """The path as the user writes it: a tagged union puts its tag, and a sequence its index, into the location."""
    kinds, out = [kind], []
    for i, name in enumerate(location):
        inside = [k for k in kinds if name in k.model_fields]
        if inside or (i == len(location) - 1 and isinstance(name, str)):
            out.append(str(name))
            kinds = [m for k in inside for m in members(k.model_fields[str(name)].annotation)]
    return out


def _siblings(kind: type[Config], parent: list[str]) -> set[str]:
    kinds = [kind]
    for name in parent:
        kinds = [m for k in kinds if name in k.model_fields for m in members(k.model_fields[name].annotation)]
    return {name for k in kinds for name in k.model_fields}
