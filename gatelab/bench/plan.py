"""What a benchmark times: one configuration a kind, and what is timed where nothing is said. Free of torch.

Notable: defaults are a table by device, and whatever they come to stands in the heading of the results. On a CPU they are
small enough to end within a minute on one core; nothing that is timed there says anything about a GPU.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ..config.base import Config, ConfigError, nearest, one_of, validate
from ..config.gate import GateSpec, parse_gates
from ..config.model import ModelConfig
from ..config.run import Attention

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


def _listed(convert: Callable[[str], Any]) -> BeforeValidator:
    """Words joined by commas as a tuple, each converted, and none twice."""

    def split(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        words = [word.strip() for word in value.split(",") if word.strip()]
        if not words:
            raise ValueError("nothing is listed; name one at least, several joined by commas")
        return tuple(dict.fromkeys(convert(word) for word in words))

    return BeforeValidator(split)


def _number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{word!r} is no whole number; give such numbers joined by commas") from None


Words = Annotated[tuple[str, ...], _listed(str)]
Numbers = Annotated[tuple[Positive, ...], _listed(_number)]


class Plan(Config):
    """What every kind has: the device, `cpu` or `cuda`, and about how long it may take, in seconds."""

    device: Literal["cpu", "cuda"]
    seconds: Seconds = 120.0


class _Heads(Plan):
    """Query and key/value heads and their channels, gates besides none, which is always timed, and the type."""

    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    gates: Words = ("none", "sdpa-headwise", "sdpa-elementwise")
    dtype: Literal["float32", "bfloat16", "float16"]

    @field_validator("head_dim")
    @classmethod
    def _even(cls, head_dim: int) -> int:
        if head_dim % 2:
            raise ValueError(f"{head_dim} channels: rotary positions turn them in pairs; take an even number")
        return head_dim

    @field_validator("gates")
    @classmethod
    def _gates(cls, gates: tuple[str, ...]) -> tuple[str, ...]:
        for word in gates:
            spec = None if word == "none" else GateSpec.parse(word)
            if spec is not None and (spec.site != "sdpa" or spec.source != "hidden"):
                raise ValueError(
                    f"gate {word!r}: expected none, or a gate at the site sdpa that reads the hidden state, such as "
                    "sdpa-headwise"
                )
        return ("none", *(word for word in gates if word != "none"))

    @model_validator(mode="after")
    def _divides(self) -> "_Heads":
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}; take a divisor, as each key/value head "
                "serves as many query heads"
            )
        return self


class OpsPlan(_Heads):
    """The op of gated attention: `tokens` in all, in sequences of `length`, each of so many documents that do not see each
    other; with a `window` a query sees so many keys, its own included."""

    tokens: Positive
    length: Positive
    window: Positive | None = None
    documents: Positive = 1

    @model_validator(mode="after")
    def _whole(self) -> "OpsPlan":
        if self.tokens % self.length:
            raise ValueError(
                f"tokens={self.tokens} is not a number of whole sequences of length={self.length}; take a multiple"
            )
        if self.documents > self.length:
            raise ValueError(
                f"documents={self.documents} are more than the {self.length} tokens of a sequence; take as many at most"
            )
        return self

    @property
    def batch(self) -> int:
        return self.tokens // self.length


class DecodePlan(_Heads):
    """A step of one query in an attention layer: `batch` sequences, each behind `cache` tokens."""

    batch: Numbers
    cache: Numbers


PEERS = ("loop", "transformers")


class TrainPlan(Plan):
    """Training steps of `tokens` tokens in sequences of `context`, `steps` of them a round, of every size and gate; with
    `group` above 1 also as many runs of one shape in one process. A gated model has its FFN narrowed to the weights of the
    ungated one. `peers` train the ungated one: `loop`, the trainer compiled and uncaptured, and `transformers`, its Llama of
    the same shape."""

    sizes: Words
    context: Annotated[int, Field(ge=2)]
    tokens: Positive
    micro_batch: Annotated[int, Field(ge=0)] = 0
    steps: Positive
    gates: Words = ("none", "sdpa-headwise", "sdpa-elementwise")
    group: Positive = 1
    packed: bool = False
    attention: Attention = "auto"
    peers: Words = ("none",)

    @field_validator("sizes")
    @classmethod
    def _sizes(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for word in sizes:
            size(word)
        return sizes

    @field_validator("gates")
    @classmethod
    def _gates(cls, gates: tuple[str, ...]) -> tuple[str, ...]:
        for word in gates:
            ModelConfig(gate=parse_gates(word))
        return ("none", *(word for word in gates if word != "none"))

    @field_validator("peers")
    @classmethod
    def _peers(cls, peers: tuple[str, ...]) -> tuple[str, ...]:
        for word in peers:
            if word not in ("none", *PEERS):
                raise ValueError(f"peer {word!r}: expected none, {' or '.join(PEERS)}{nearest(word, list(PEERS))}")
        return tuple(word for word in peers if word != "none")

    @model_validator(mode="after")
    def _whole(self) -> "TrainPlan":
        if self.tokens % self.context:
            raise ValueError(
                f"tokens={self.tokens} is not a number of whole sequences of context={self.context}; take a multiple"
            )
        if self.micro_batch and (self.tokens // self.context) % self.micro_batch:
            raise ValueError(
                f"micro_batch={self.micro_batch} does not divide the {self.tokens // self.context} sequences of a step; take a "
                "divisor, or 0 for all at a time"
            )
        return self


class ProbePlan(Plan):
    """A pass with probes against one that returns all attention matrices, at each of `length` tokens."""

    length: Annotated[tuple[Annotated[int, Field(ge=2)], ...], _listed(_number)]


PLANS: dict[str, type[Plan]] = {"ops": OpsPlan, "train": TrainPlan, "decode": DecodePlan, "probe": ProbePlan}

_WIDE = {"heads": 16, "kv_heads": 16, "head_dim": 128, "dtype": "bfloat16"}
_NARROW = {"heads": 4, "kv_heads": 2, "head_dim": 32, "dtype": "float32"}
DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("ops", "cuda"): {**_WIDE, "tokens": 32_768, "length": 4096},
    ("ops", "cpu"): {**_NARROW, "tokens": 512, "length": 128},
    ("train", "cuda"): {"sizes": ("30m",), "context": 1024, "tokens": 65_536, "steps": 5, "packed": True, "peers": PEERS},
    ("train", "cpu"): {"sizes": ("64x2x4x256",), "context": 64, "tokens": 512, "steps": 2},
    ("decode", "cuda"): {**_WIDE, "batch": (1, 8, 64), "cache": (4096,)},
    ("decode", "cpu"): {**_NARROW, "batch": (1, 4), "cache": (256,)},
    ("probe", "cuda"): {"length": (8192, 32_768)},
    ("probe", "cpu"): {"length": (128, 256)},
}  # fmt: skip


def plan(kind: str, device: str, given: dict[str, Any]) -> Any:
    """The plan of a kind in `PLANS` on a device; what is None in `given` is as `DEFAULTS` has it.

    Where heads are given and key/value heads are not, they are as many; where a length of the op is given and its tokens
    are not, they are about the default ones in whole sequences.

    Raises:
        ConfigError: every mistake, by the option's name.
    """
    if kind not in PLANS:
        raise ConfigError([f"bench {kind!r}: {one_of(kind, PLANS)}"])
    stated = {name: value for name, value in given.items() if value is not None}
    if "heads" in stated:
        stated = {"kv_heads": stated["heads"], **stated}
    if kind == "ops" and "tokens" not in stated and stated.get("length", 0) > 0:
        stated["tokens"] = max(1, DEFAULTS[kind, device]["tokens"] // stated["length"]) * stated["length"]
    return validate(PLANS[kind], {"device": device, **DEFAULTS[kind, device], **stated})


def size(word: str) -> ModelConfig:
    """The model that a size's name, or `width x layers x heads x vocabulary` such as 128x4x4x256, stands for.

    Raises:
        ValueError: for another word.
    """
    from ..models.ladder import SIZES

    if word in SIZES:
        return SIZES[word].model
    numbers = word.split("x")
    if len(numbers) != 4 or not all(n.isascii() and n.isdecimal() and int(n) for n in numbers):
        raise ValueError(
            f"size {word!r}: expected one of {', '.join(SIZES)}, or width x layers x heads x vocabulary, such as "
            "128x4x4x256"
        )
    d_model, n_layers, n_heads, vocab_size = map(int, numbers)
    if vocab_size < 2:
        raise ValueError(f"size {word!r}: of a vocabulary of {vocab_size} nothing is to be predicted; take 2 at least")
    if d_model % (2 * n_heads):
        raise ValueError(
            f"size {word!r}: {d_model} channels are no even number a head for {n_heads} heads; take others"
        )
    return ModelConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads).resolved(vocab_size, 1024)
