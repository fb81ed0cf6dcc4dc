"""What every configuration shares: frozen, unknown keys refused, all mistakes reported at once, one canonical form.

Notable: `ConfigError` carries one line a mistake (path, value, what is allowed, the nearest match), so that a
study file with five typos is corrected in one go; `canonical` is the only text that is ever hashed or stored.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class ConfigError(ValueError):
    """A configuration that cannot be used. `problems` holds one sentence a mistake; str() joins them by newlines."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))


class _Told(type(BaseModel)):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """A configuration built directly; what pydantic refuses is told as `validate` tells it."""
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise ConfigError(explain(error)) from None


class Config(BaseModel, metaclass=_Told):
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


def one_of(word: str, allowed: Iterable[str]) -> str:
    """`expected one of …` with the nearest of them, to end a sentence that refuses a word."""
    words = list(allowed)
    return f"expected one of {', '.join(words)}{nearest(word, words)}"


def meant(path: str, allowed: list[str]) -> str:
    """As `nearest`, of dotted keys: that of the closest last name in whichever section, of several the closest path."""
    names = [key.rpartition(".")[2] for key in allowed]
    close = difflib.get_close_matches(path.rpartition(".")[2], names, n=1, cutoff=0.6)
    same = [key for key, name in zip(allowed, names, strict=True) if name in close]
    closest = difflib.get_close_matches(path, same, n=1, cutoff=0.0)
    return f"; did you mean {closest[0]!r}?" if closest else ""


def validate(kind: type[Config], value: dict[str, Any], prefix: str = "") -> Any:
    """`value` as a `kind`.

    Raises:
        ConfigError: listing every mistake with its dotted path, the value, what is allowed and the nearest match.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ConfigError([_sentence(kind, e, prefix) for e in error.errors()]) from None


def explain(error: ValidationError) -> list[str]:
    """One sentence a mistake, for an error that pydantic raised because a configuration was built directly."""
    kind = next((k for k in _descendants(Config) if k.__name__ == error.title), Config)
    return [f"{kind.__name__}: {_sentence(kind, e, '')}" for e in error.errors()]


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


def _descendants(kind: type[Config]) -> list[type[Config]]:
    return [d for k in kind.__subclasses__() for d in (k, *_descendants(k))]


def _sentence(kind: type[Config], error: Any, prefix: str) -> str:
    location, inside = _located(kind, error["loc"])
    path = prefix + ".".join(location)
    given = error.get("input")
    if error["type"] == "extra_forbidden":
        allowed = sorted({name for k in inside for name in k.model_fields})
        # A key of another kind of the same part is answered with the keys of this one alone.
        every = keys(kind)
        hint = nearest(location[-1], allowed) or (
            "" if ".".join(location) in every else meant(".".join(location), every)
        )
        return f"{path}: no such key; allowed here: {', '.join(allowed)}{hint}"
    if error["type"] == "union_tag_not_found":
        kinds = ", ".join(repr(m.model_fields["kind"].default) for m in inside)
        return f"{path}={_shown(given)}: say its kind, one of {kinds}"
    if error["type"] in ("union_tag_invalid", "literal_error"):
        context = error["ctx"]
        expected = context.get("expected_tags") or context.get("expected")
        words = [w.strip().strip("'") for w in expected.replace(" or ", ", ").split(",")]
        shown = context.get("tag", given)
        return f"{path}={_shown(shown)}: expected one of {', '.join(map(repr, words))}{nearest(str(shown), words)}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        name = location[-1] if location else ""
        if name and message.startswith((f"{name} ", f"{name}=")):
            # A value that was refused by itself names itself: once is enough.
            rest = message.removeprefix(name)
            return f"{path}{rest}" if rest.startswith("=") else f"{path}:{rest}"
        # What is refused as a whole, under a prefix or not, names its fields itself.
        return f"{path}: {message}" if name else message
    if error["type"] == "missing":
        return f"{path}: required, and missing"
    if error["type"] == "tuple_type":
        return f"{path}={_shown(given)}: expected several parts in brackets, as in (a,b)"
    if error["type"] == "int_parsing_size":
        return f"{path}={_shown(given)}: too large"
    message = error["msg"]
    absent = "; to switch it off write null" if given == "none" else ""
    return f"{path}={_shown(given)}: {message[0].lower()}{message[1:]}{absent}"


def _shown(value: Any) -> str:
    """A value as it came, long ones cut."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def _located(kind: type[Config], location: tuple[str | int, ...]) -> tuple[list[str], list[type[Config]]]:
    """The path as the user writes it, and the configurations that its last name is looked up in.

    A tagged union puts its tag into pydantic's location and a sequence its index: neither is part of the path, and the
    tag says which member of the union is meant.
    """
    inside, kinds, out = [kind], [kind], []
    for i, name in enumerate(location):
        tagged = [k for k in kinds if "kind" in k.model_fields and k.model_fields["kind"].default == name]
        holders = [k for k in kinds if name in k.model_fields]
        if tagged and not holders:
            inside = kinds = tagged
        elif holders or (i == len(location) - 1 and isinstance(name, str)):
            out.append(str(name))
            inside = holders or kinds
            kinds = [m for k in holders for m in members(k.model_fields[str(name)].annotation)]
            if i == len(location) - 1 and len(kinds) > 1:
                inside = kinds  # a union without a tag: what is asked for is one of its kinds
    return out, inside
