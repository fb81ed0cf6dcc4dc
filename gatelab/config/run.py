"""Run: the full description of one training run; its fingerprint is its name. Execution: how, which does not count.

Notable: the fingerprint covers what determines the result (configuration, seed, a digest of the data's content) and
nothing else: not paths, micro-batch, device or threads. Fields at their default are left out of the hash, so a new
field does not rename old runs; a changed default raises `SCHEMA`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .. import SCHEMA
from .base import Config, digest
from .data import BigramBackcopy, Data, Text
from .model import Count, ModelConfig

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """AdamW (decoupled decay on matrices, none on norms, biases, gate biases and embeddings) and its schedule.

    `warmup` and `decay` are shares of the run's steps. `cosine` falls from lr to `final` · lr; `wsd` stays at lr and
    falls linearly over the last `decay`; `constant` stays. `clip` bounds the global gradient norm (None: never).
    """

    lr: Positive = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    warmup: Share = 0.05
    decay: Share = 0.2
    final: Share = 0.1
    clip: Positive | None = 1.0

    @model_validator(mode="after")
    def _room(self) -> "OptimConfig":
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup={self.warmup:g} and decay={self.decay:g} are shares of one run and sum to more than 1"
            )
        return self


class TrainConfig(Config):
    """Budget and batch: `tokens` in all, `batch_size` sequences of `seq_len` tokens a step.

    `precision`: `auto` computes in bfloat16 on GPUs that have it and in float32 elsewhere; master weights and the
    optimiser are float32 always. What was used is written beside the run.
    """

    tokens: Count = 1_000_000
    batch_size: Count = 16
    seq_len: Annotated[int, Field(ge=2)] = 128
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="after")
    def _one_step(self) -> "TrainConfig":
        if self.tokens < self.batch_size * self.seq_len:
            raise ValueError(
                f"tokens={self.tokens} is less than one step of batch_size × seq_len = {self.batch_size * self.seq_len}"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def steps(self) -> int:
        """Whole steps within the budget."""
        return self.tokens // self.tokens_per_step


class ProbeConfig(Config):
    """When and on what the probes look: `times` evenly spaced looks after step 0, on `sequences` held-out sequences.

    `skip_queries` leaves the first queries out of the means over queries (position 0 is always left out of the
    first-token mass); `thresholds` are those of the sink rate.
    """

    times: Annotated[int, Field(ge=1, le=1000)] = 4
    sequences: Count = 32
    eval_sequences: Count = 64
    skip_queries: Annotated[int, Field(ge=1)] = 1
    thresholds: tuple[Share, ...] = (0.1, 0.3, 0.5)


class Run(Config):
    """What to do. `init_from` is the fingerprint of a finished run of the same folder, whose weights this one starts from."""

    model: ModelConfig = ModelConfig()
    data: Data = Text()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig = ProbeConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    init_from: Annotated[str, Field(pattern="^[0-9a-f]{12}$")] | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _data_by_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> "Run":
        if self.model.positions != "none" and (self.model.max_seq_len or self.train.seq_len) < self.train.seq_len:
            raise ValueError(
                f"train.seq_len={self.train.seq_len} is longer than the {self.model.positions} positions of "
                f"model.max_seq_len={self.model.max_seq_len}; leave model.max_seq_len out, or shorten train.seq_len"
            )
        if self.probe.skip_queries >= self.train.seq_len:
            raise ValueError(
                f"probe.skip_queries={self.probe.skip_queries} leaves no query of train.seq_len={self.train.seq_len}"
            )
        return self

    def probe_steps(self) -> list[int]:
        """The steps after which the probes look, 0 (before training) and the last among them."""
        steps, times = self.train.steps, self.probe.times
        return sorted({round(steps * i / times) for i in range(times + 1)})


class Execution(Config):
    """How a run is carried out; nothing here changes its fingerprint.

    `slots` groups of runs at a time (0: as many as cores allow); `group` runs of one shape in one process; `threads` a
    process on CPUs; `micro_batch` sequences at a time, gradients accumulated (0: the whole batch); `compile` auto
    compiles on GPUs; a checkpoint at least every `checkpoint_s` seconds; a run longer than `timeout_s` seconds (0: no
    limit) is stopped and may be resumed; one that was lost is tried again `lost_retries` times.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    slots: Annotated[int, Field(ge=0)] = 0
    group: Count = 1
    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    micro_batch: Annotated[int, Field(ge=0)] = 0
    compile: Literal["auto", "on", "off"] = "auto"
    checkpoint_s: Annotated[float, Field(ge=0)] = 30.0
    timeout_s: Annotated[float, Field(ge=0)] = 0.0
    lost_retries: Annotated[int, Field(ge=0)] = 1


# Fields that say where the data lies rather than what it is; the content's digest stands in for them.
_PLACES = {"paths", "val_paths", "tokenizer", "text_field", "dtype", "val_share"}


def fingerprint(run: Run, data_digest: str) -> str:
    """Twelve hexadecimal digits that name a resolved run: same digits, same result.

    Args:
        run: with its model resolved.
        data_digest: of the content of its data (`gatelab.data.data_digest`), an empty string for a stream.
    """
    content = run.model_dump(mode="json", exclude_defaults=True)
    content["data"] = {"kind": run.data.kind, **content.get("data", {})}
    if isinstance(run.data, Text):
        content["data"] = {k: v for k, v in content["data"].items() if k not in _PLACES}
    if "softmax" in content.get("model", {}):
        # A kind is its class's default, so it is left out above; two normalisers must not share a name.
        content["model"]["softmax"]["kind"] = run.model.softmax.kind
    return digest({"schema": SCHEMA, "run": content, "data": data_digest})[:12]


__all__ = ["BigramBackcopy", "Execution", "OptimConfig", "ProbeConfig", "Run", "Text", "TrainConfig", "fingerprint"]
