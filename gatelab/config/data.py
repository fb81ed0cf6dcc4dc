"""DataConfig: what a run reads. Streams are unlimited and pure functions of (seed, step); text is read once."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from .base import Config


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
    """Real text: `paths` (joined by commas on the command line) are files or folders of text, source code, .jsonl or
    .parquet (column `text_field`), or token shards (.bin or .bin.xz of little-endian uint16 or uint32, `dtype`). The
    path `stdlib` is the running interpreter's own standard library.

    `tokenizer`: `byte` (256 bytes + 3 special ids), `bpe:N` (byte-level BPE of N ids trained on the training text and
    cached), or the path of a tokenizer.json; shards are tokens already and do not use it. Documents end with an
    end-of-document token; every training sequence starts with BOS if `bos`. Held out are whole documents: `val_paths`,
    or a share `val_share` of the documents chosen by a hash of their content. `document_mask` keeps attention within a
    document. For shards, `vocab_size`, `bos_id` and `eos_id` come from a meta.json beside them, or from here.
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


class Tasks(Config):
    """Items of tasks (`gatelab tasks` lists them), unlimited: each sequence is one item, and `names` (joined by commas on the
    command line) takes turns, so several are a mixture in equal parts.

    `depth`, `distractors` and `hardness` are the items' knobs, None the task's own default; their length is the sequence's.
    `targets`: the loss of the `answer` alone, or of `all` tokens. `shortest`: the first items have this length, the next
    twice it, and so on up to the sequence's, `stage` sequences of each; what is left of a sequence is not predicted.
    """

    kind: Literal["tasks"] = "tasks"
    names: tuple[str, ...] = ("needle",)
    depth: Annotated[float, Field(ge=0, le=1)] | None = None
    distractors: Annotated[int, Field(ge=0)] | None = None
    hardness: Annotated[int, Field(ge=1)] | None = None
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


Data = Annotated[BigramBackcopy | Text | Tasks, Field(discriminator="kind")]
