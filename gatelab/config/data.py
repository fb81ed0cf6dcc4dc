"""DataConfig: what a run reads. Streams are unlimited and pure functions of (seed, step); text is read once."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from .base import Config, nearest, one_of


class BigramBackcopy(Config):
    """The Bigram-Backcopy process (arXiv 2410.13835), in the form of `docs/metrics.md`.

    Tokens 0 … vocab_size − 1 with Zipf marginal and bigram rows ~ Dirichlet(30·marginal + 0.02), and BOS = vocab_size
    at position 0. The `n_triggers` most frequent tokens are triggers: after one, the token before it comes again.
    `process_seed` draws the bigram table, which is the same for all runs of a cell; a run's seed draws its sequences.
    Without `bos` position 0 holds an ordinary token, never a trigger; the id of BOS stays, unused, so that shapes are equal.
    """

    kind: Literal["bigram-backcopy"] = "bigram-backcopy"
    vocab_size: Annotated[int, Field(ge=8, le=4096)] = 64
    n_triggers: Annotated[int, Field(ge=0)] = 3
    process_seed: Annotated[int, Field(ge=0)] = 0
    bos: bool = True


class Text(Config):
    """Real text: `paths` (joined by commas on the command line) are files or folders of text, source code, .jsonl (.gz, .zst),
    .parquet or .arrow (column `text_field`), or token shards (.bin or .bin.xz of little-endian uint16 or uint32, `dtype`;
    .npy). The path `stdlib` is the running interpreter's own standard library.

    `tokenizer`: `byte` (256 bytes + 3 special ids), `bpe:N` (byte-level BPE of N ids trained on the training text and
    cached), or the path of a tokenizer.json; shards are tokens already and do not use it. Documents end with an
    end-of-document token; every training sequence starts with BOS if `bos`. Held out are whole documents: `val_paths`,
    or a share `val_share` of the documents chosen by a hash of their content. `document_mask` keeps attention within a
    document. For shards, `vocab_size`, `bos_id` and `eos_id` come from a meta.json beside them, or from here. `about` says in words
    what the text is, for pages, as in `old English prose`.
    """

    kind: Literal["text"] = "text"
    paths: tuple[str, ...] = ("stdlib",)
    val_paths: tuple[str, ...] = ()
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    tokenizer: str = "byte"
    text_field: str = "text"
    dtype: Literal["uint16", "uint32"] = "uint16"
    bos: bool = True
    document_mask: bool = False
    about: str = ""
    vocab_size: Annotated[int, Field(gt=0)] | None = None
    bos_id: Annotated[int, Field(ge=0)] | None = None
    eos_id: Annotated[int, Field(ge=0)] | None = None

    @field_validator("paths", "val_paths", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(value.split(",")) if value else ()
        return value

    @field_validator("paths")
    @classmethod
    def _some(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        if not all(path.strip() for path in paths) or not paths:
            raise ValueError("no path was given, or an empty one; name a file or a folder, or 'stdlib'")
        return paths

    @field_validator("tokenizer")
    @classmethod
    def _tokenizer(cls, name: str) -> str:
        if name.startswith("bpe:"):
            size = name.removeprefix("bpe:")
            if not size.isdigit() or not 300 <= int(size) <= 1_000_000:
                raise ValueError(f"{name!r}: expected bpe:N with N from 300 to 1000000")
        elif name != "byte" and not name.endswith(".json"):
            raise ValueError(f"{name!r}: expected 'byte', 'bpe:N' or the path of a tokenizer.json")
        return name


class TaskKnobs(Config):
    """Knobs of one task of a mixture, in the place of those of all; None: as of all."""

    depth: Annotated[float, Field(ge=0, le=1)] | None = None
    distractors: Annotated[int, Field(ge=0)] | None = None
    hardness: Annotated[int, Field(ge=1)] | None = None

    def stated(self) -> dict[str, int | float]:
        """Those that are not None."""
        return self.model_dump(exclude_none=True)


class Tasks(Config):
    """Items of tasks (`gatelab tasks` lists them), unlimited: each sequence is one item, and `names` (joined by commas on the
    command line) takes turns, so several are a mixture in equal parts.

    `depth`, `distractors` and `hardness` are the items' knobs, None the task's own default; their length is the sequence's. `knobs`
    are those of single tasks, {name: {knob: value}}, as in `mqar:distractors=3,track:hardness=1:distractors=1` on the command line.
    `targets`: the loss of the `answer` alone, or of `all` tokens. `shortest`: the first items have this length, the next
    twice it, and so on up to the sequence's, `stage` sequences of each; what is left of a sequence is not predicted.
    """

    kind: Literal["tasks"] = "tasks"
    names: tuple[str, ...] = ("needle",)
    depth: Annotated[float, Field(ge=0, le=1)] | None = None
    distractors: Annotated[int, Field(ge=0)] | None = None
    hardness: Annotated[int, Field(ge=1)] | None = None
    knobs: Annotated[
        tuple[tuple[str, TaskKnobs], ...],
        WithJsonSchema({"type": "object", "additionalProperties": TaskKnobs.model_json_schema()}),
        Field(json_schema_extra={"default": {}}),
    ] = ()
    targets: Literal["answer", "all"] = "answer"
    shortest: Annotated[int, Field(ge=2)] | None = None
    stage: Annotated[int, Field(ge=1)] = 10_000

    @field_validator("names", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("names")
    @classmethod
    def _different(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) < len(names) or len(names) > 127:
            raise ValueError("name one task or several different ones, as in needle,track; `gatelab tasks` lists them")
        return names

    @field_validator("knobs", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.split(",") if value else ()
        if not isinstance(value, Mapping):
            pairs = [_pair(part) for part in (value if isinstance(value, tuple | list) else [value])]
            twice = [name for i, (name, _) in enumerate(pairs) if name in [n for n, _ in pairs[:i]]]
            if twice:
                raise ValueError(f"{twice[0]} is there twice; give all of its knobs at once, as in {_EXAMPLE}")
            value = dict(pairs)
        return tuple((name, _checked(name, of)) for name, of in value.items())

    @model_validator(mode="after")
    def _of_its_tasks(self) -> "Tasks":
        """In the order of the names, so that what is the same has one name; a task with none is left out."""
        of = dict(self.knobs)
        if unknown := [name for name in of if name not in self.names]:
            raise ValueError(
                f"knobs: {unknown[0]} is not one of names={','.join(self.names)}; "
                f"name it there, or leave its knobs out{nearest(unknown[0], list(self.names))}"
            )
        ordered = tuple((name, of[name]) for name in self.names if name in of and of[name].stated())
        object.__setattr__(self, "knobs", ordered)
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """As JSON a table, left out where it is empty, as before there was one: a run keeps its fingerprint."""
        content = write(self)
        if info.mode != "json":
            return content
        content.pop("knobs", None)
        return content | ({"knobs": {name: of.stated() for name, of in self.knobs}} if self.knobs else {})

    def knobs_of(self, name: str) -> TaskKnobs:
        """What is stated for a task: its own, and of all what it has none of."""
        shared = {"depth": self.depth, "distractors": self.distractors, "hardness": self.hardness}
        return TaskKnobs(**shared | dict(self.knobs).get(name, TaskKnobs()).stated())


_EXAMPLE = "mqar:distractors=3,track:hardness=1:distractors=1"


def _pair(part: Any) -> tuple[str, Any]:
    """A task and its knobs, of `name:knob=value:knob=value`, or as they are."""
    if isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[1], Mapping | TaskKnobs):
        return part[0], part[1]
    name, *words = part.strip().split(":") if isinstance(part, str) else [""]
    pairs = [word.partition("=") for word in words]
    if not name or not pairs or not all(knob and value for knob, _, value in pairs):
        raise ValueError(f"{part!r}: expected a task and its knobs, as in {_EXAMPLE}")
    knobs = [knob for knob, _, _ in pairs]
    if twice := [knob for knob in knobs if knobs.count(knob) > 1]:
        raise ValueError(f"{part!r}: {twice[0]} is there twice; give each knob of a task once, as in {_EXAMPLE}")
    return name, {knob: value for knob, _, value in pairs}


def _checked(name: Any, of: Any) -> TaskKnobs:
    allowed = list(TaskKnobs.model_fields)
    if not isinstance(of, TaskKnobs | Mapping):
        raise ValueError(f"{name}={of!r}: expected its knobs by name, as in {{'distractors': 3}}")
    if unknown := [knob for knob in (of if isinstance(of, Mapping) else ()) if knob not in allowed]:
        raise ValueError(f"{name}: no knob {unknown[0]!r}; {one_of(str(unknown[0]), allowed)}")
    try:
        return TaskKnobs.model_validate(of)
    except ValidationError as error:
        first = error.errors()[0]
        said = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise ValueError(f"{name}: {first['loc'][0]}={first['input']!r}: {said}") from None


Data = Annotated[BigramBackcopy | Text | Tasks, Field(discriminator="kind")]
