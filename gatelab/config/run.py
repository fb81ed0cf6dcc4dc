"""Run: the full description of one training run; its fingerprint is its name. Execution: how, which does not count.

Notable: the fingerprint covers what determines the result (configuration, seed, a digest of the data's content) and
nothing else: not paths, micro-batch, device or threads. Fields at their default are left out of the hash, so a new
field does not rename old runs; a changed default raises `SCHEMA`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from .. import SCHEMA
from .ask import AskConfig
from .base import Config, ConfigError, digest, members
from .data import BigramBackcopy, Data, Tasks, Text
from .model import Count, ModelConfig
from .normaliser import KeyBias
from .objective import Objective
from .parallel import ParallelConfig

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """AdamW (decoupled decay on matrices, none on norms, biases, gate biases and embeddings) and its schedule.

    `warmup` and `decay` are shares of the run's steps. `cosine` falls from lr to `final` · lr; `wsd` stays at lr and
    falls linearly over the last `decay`; `constant` stays. `clip` bounds the global gradient norm (None: never).
    `qk_clip` bounds the attention logits: after a step in which a head's largest exceeded it, the head's query weights
    are scaled down (QK-Clip, arXiv 2507.20534, where it is 100; None: never).
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
    qk_clip: Positive | None = None

    @model_validator(mode="after")
    def _room(self) -> "OptimConfig":
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup={self.warmup:g} and decay={self.decay:g} are shares of one run and sum to more than 1"
            )
        return self


class TrainConfig(Config):
    """Budget and batch: `tokens` in all, `batch_size` sequences of `seq_len` tokens a step; 0 tokens only look at weights
    that a run starts from.

    `precision`: `auto` computes in bfloat16 on GPUs that have it and in float32 elsewhere; master weights and the
    optimiser are float32 always. What was used is written beside the run.
    """

    tokens: Annotated[int, Field(ge=0, le=10**15)] = 1_000_000
    batch_size: Count = 16
    seq_len: Annotated[int, Field(ge=2)] = 128
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="after")
    def _one_step(self) -> "TrainConfig":
        if 0 < self.tokens < self.batch_size * self.seq_len:
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
    first-token mass); `thresholds` are those of the sink rate. `watch`: besides, the first-token mass of the training batch
    itself by layer and head, at every so many steps (1: all; 0: never), of causal layers without a window. `every`: steps
    between those whose loss, gradient norm and rate are kept; the last is, whatever it is.
    """

    times: Annotated[int, Field(ge=1, le=1000)] = 4
    sequences: Count = 32
    eval_sequences: Count = 64
    skip_queries: Annotated[int, Field(ge=1)] = 1
    thresholds: tuple[Share, ...] = (0.1, 0.3, 0.5)
    watch: Annotated[int, Field(ge=0)] = 0
    every: Annotated[int, Field(ge=1)] = 1


class Run(Config):
    """What to do. `objective` None is the first that the model's architecture has. `ask` is of runs on tasks alone. `init_from`
    is the fingerprint of a finished run of the same folder, whose weights this one starts from."""

    model: ModelConfig = ModelConfig()
    data: Data = Text()
    objective: Objective | None = None
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig = ProbeConfig()
    ask: AskConfig = AskConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    init_from: Annotated[str, Field(pattern="^[0-9a-f]{12}$")] | None = None

    @field_validator("data", "objective", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def resolved_objective(self) -> Objective:
        """What is predicted, stated or not."""
        return default_objective(self.model) if self.objective is None else self.objective

    @model_validator(mode="after")
    def _fits(self) -> "Run":
        objective, allowed = self.resolved_objective, self.model.architecture.objectives
        if objective.kind not in allowed:
            raise ValueError(
                f"objective={objective.kind!r} does not train arch={self.model.arch!r}, which takes "
                f"{' or '.join(map(repr, allowed))}; change one, or leave objective out"
            )
        asks = isinstance(self.data, Tasks) and self.data.targets == "answer"
        if objective.kind in ("masked", "span-corruption") and asks:
            other = "answers" if objective.kind == "masked" else "continuation"
            raise ValueError(
                f"objective={objective.kind!r} hides any tokens, and data.targets='answer' asks for the answer alone; set "
                f"objective={other}, or data.targets=all"
            )
        if objective.kind == "answers" and not asks:
            raise ValueError(
                "objective='answers' predicts what a task asks, and this data asks nothing; set data=tasks with "
                "data.targets=answer, or leave objective out"
            )
        read, spoken = objective.lengths(self.train.seq_len)
        longest = max(read, spoken or 0)
        if self.model.positions != "none" and (self.model.max_seq_len or longest) < longest:
            raise ValueError(
                f"train.seq_len={self.train.seq_len} makes sequences of {longest} tokens, longer than the "
                f"{self.model.positions} positions of model.max_seq_len={self.model.max_seq_len}; leave "
                f"model.max_seq_len out, or shorten train.seq_len"
            )
        if self.probe.skip_queries >= (spoken or read):
            raise ValueError(
                f"probe.skip_queries={self.probe.skip_queries} leaves no query of the {spoken or read} that "
                f"train.seq_len={self.train.seq_len} makes; lower it"
            )
        if isinstance(self.data, Text) and self.data.document_mask:
            self._refuse_document_mask(has_decoder=spoken is not None)
        if self.optim.qk_clip is not None:
            self._refuse_qk_clip()
        if "yarn" in self.ask.stretch and isinstance(self.data, Tasks):
            self._refuse_yarn()
        return self

    def _refuse_yarn(self) -> None:
        if self.model.positions != "rope" or self.model.rope_scaling.kind != "none":
            given = f"model.positions={self.model.positions}"
            if self.model.positions == "rope":
                given = f"model.rope_scaling={self.model.rope_scaling.kind}"
            raise ValueError(
                f"ask.stretch={','.join(self.ask.stretch)} stretches plain rotary positions, and this model has {given}; take "
                f"ask.stretch=none"
            )

    def _refuse_document_mask(self, *, has_decoder: bool) -> None:
        if has_decoder:
            raise ValueError(
                f"data.document_mask keeps attention within a document, and the two sequences of "
                f"{self.resolved_objective.kind!r} are not cut alike; set data.document_mask=false"
            )
        if self.model.registers:
            raise ValueError(
                f"model.registers={self.model.registers} belong to no document, and data.document_mask keeps attention "
                f"within one; leave one of the two out"
            )
        if self.model.first_hidden_from:
            raise ValueError(
                "model.first_hidden_from hides the first key of a sequence, and data.document_mask puts several documents into "
                "one; set data.document_mask=false"
            )
        if isinstance(self.model.softmax, KeyBias) and self.model.positions == "rope":
            raise ValueError(
                "model.softmax=key-bias has a key that rope does not turn, so that a document would read differently by "
                "its place in the sequence, and data.document_mask packs several; set data.document_mask=false, or "
                "model.positions to another kind"
            )

    def _refuse_qk_clip(self) -> None:
        if self.model.qk_norm != "none":
            raise ValueError(
                f"optim.qk_clip={self.optim.qk_clip:g} scales queries, which model.qk_norm={self.model.qk_norm!r} scales "
                f"back; leave one of the two out"
            )
        for gate in self.model.all_gates:
            if gate.site == "query" and gate.form == "add":
                raise ValueError(
                    f"optim.qk_clip={self.optim.qk_clip:g} scales the query weights, and gate {gate.slug} adds to the "
                    f"queries after them; leave one of the two out"
                )

    def resolved(self, vocab_size: int) -> "Run":
        """The same run with its model's open fields filled in; `vocab_size` counts the ids of its source.

        The objective's own ids come after the source's, and the model's positions reach as far as the objective does.

        Raises:
            ConfigError: when the model's stated vocabulary has no room for these ids.
        """
        objective, seq_len = self.resolved_objective, self.train.seq_len
        extra = objective.extra_ids(seq_len)
        if self.model.vocab_size is not None and self.model.vocab_size < vocab_size + extra:
            more = f" and the {extra} that {objective.kind!r} adds at train.seq_len={seq_len}" if extra else ""
            raise ConfigError(
                [
                    f"model.vocab_size={self.model.vocab_size} is less than the data's {vocab_size} ids{more}; leave it out"
                ]
            )
        longest = max(seq_len, *(n for n in objective.lengths(seq_len) if n is not None))
        return self.model_copy(update={"model": self.model.resolved(vocab_size + extra, longest)})

    def probe_steps(self) -> list[int]:
        """The steps after which the probes look, 0 (before training) and the last among them."""
        steps, times = self.train.steps, self.probe.times
        return sorted({round(steps * i / times) for i in range(times + 1)})

    def ask_steps(self) -> list[int]:
        """The steps after which items of tasks are asked, 0 and the last among them; none where the data are no tasks."""
        if not isinstance(self.data, Tasks) or not self.ask.items:
            return []
        return sorted({0, self.train.steps, *(range(0, self.train.steps, self.ask.every) if self.ask.every else ())})


# What `gatelab.ops.gated_attention` has; no torch is imported here, and a test compares.
Attention = Literal["auto", "reference", "sdpa", "flash", "flash-lean", "short", "hopper"]


def _flag(value: Any) -> Any:
    """As true and false are written in a command."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


# What the backward pass computes a second time instead of finding it kept: nothing, or every block from its input.
Recompute = Literal["none", "layer"]
Packed = Annotated[Literal["auto", True, False], BeforeValidator(_flag)]


class Execution(Config):
    """How a run is carried out; nothing here changes its fingerprint.

    `slots` groups of runs at a time (0: as many as cores allow); `group` runs of one shape in one process, stacked where they
    can be (0: as many as keep a GPU busy, on CPUs one); `threads` a process on CPUs; `micro_batch` sequences at a time,
    gradients accumulated (0: the whole batch); `recompute` layer has the backward pass compute every block again from its input,
    for less memory and more time; `compile` auto compiles on GPUs; `packed` computes queries, keys, values and
    the gates that read the same input in one matrix product, auto on GPUs where a model has such gates and no mesh parts its
    weights; `attention` is the implementation of attention that is taken, `impl` of GatedAttention, and one that cannot serve
    the run refuses it: results of both are equal up to rounding. A checkpoint at least every `checkpoint_s` seconds; a run
    longer than `timeout_s` seconds (0: no limit) is stopped and may be resumed; one that was lost is tried again `lost_retries`
    times, not counting losses after a newer checkpoint. `processes` of one machine share the batches of a group, each with a GPU
    of its own where there are GPUs, and wait `wait_s` seconds for each other, such as while the first looks at models;
    `gpu_share` of a GPU is what a group of one process takes. `parallel` lays them out; where it needs more processes than are
    stated, there are as many as it needs.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    slots: Annotated[int, Field(ge=0)] = 0
    group: Annotated[int, Field(ge=0, le=4096)] = 0
    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    micro_batch: Annotated[int, Field(ge=0)] = 0
    recompute: Recompute = "none"
    compile: Literal["auto", "on", "off"] = "auto"
    packed: Packed = "auto"
    attention: Attention = "auto"
    checkpoint_s: Annotated[float, Field(ge=0)] = 30.0
    timeout_s: Annotated[float, Field(ge=0)] = 0.0
    lost_retries: Annotated[int, Field(ge=0)] = 1
    processes: Annotated[int, Field(gt=0, le=1024)] = 1
    wait_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 1800.0
    gpu_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="before")
    @classmethod
    def _enough(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("processes", 1) == 1 and value.get("parallel"):
            try:
                parallel = ParallelConfig.model_validate(value["parallel"])
            except ValidationError:
                return value  # the field's own validation says where
            return value | {"processes": parallel.fewest}
        return value

    @model_validator(mode="after")
    def _check_mesh(self) -> "Execution":
        self.parallel.data_ranks(self.processes)
        return self

    @model_validator(mode="after")
    def _check_share(self) -> "Execution":
        if self.processes > 1 and self.gpu_share < 1:
            raise ValueError(
                f"execution.processes={self.processes} take whole GPUs; leave out execution.gpu_share={self.gpu_share:g}"
            )
        return self


# Fields that say where the data lies, or name it in words, rather than what it is; the content's digest stands in for them.
_PLACES = {"paths", "val_paths", "tokenizer", "text_field", "dtype", "val_share", "about"}


def fingerprint(run: Run, data_digest: str) -> str:
    """Twelve hexadecimal digits that name a resolved run: same digits, same result.

    An objective that is stated and is the default anyway counts as not stated.

    Args:
        run: with its model resolved.
        data_digest: of the content of its data (`gatelab.data.data_digest`), an empty string for a stream.
    """
    content = run.model_dump(mode="json", exclude_defaults=True)
    content.setdefault("data", {})
    if run.objective == default_objective(run.model):
        content.pop("objective", None)
    if not isinstance(run.data, Tasks):
        content.pop("ask", None)
    _state_kinds(run, content)
    if isinstance(run.data, Text):
        content["data"] = {k: v for k, v in content["data"].items() if k not in _PLACES}
    return digest({"schema": SCHEMA, "run": content, "data": data_digest})[:12]


def default_objective(model: ModelConfig) -> Objective:
    """What a model is trained with when nothing is stated: the first objective of its architecture."""
    kinds = {m.model_fields["kind"].default: m for m in members(Objective)}
    return kinds[model.architecture.objectives[0]]()


def _state_kinds(config: Config, content: dict[str, Any]) -> None:
    """A kind is its class's default, so it is left out above; two normalisers must not share a name. And pydantic writes
    fields that have a serialiser of their own even at their default, which leaves them out of no old name but `gate`'s."""
    for name, value in list(content.items()):
        if value is None and type(config).model_fields[name].default is None:
            del content[name]
            continue
        part = getattr(config, name)
        if isinstance(part, Config) and isinstance(value, dict):
            _state_kinds(part, value)
            if "kind" in type(part).model_fields:
                value["kind"] = part.kind


__all__ = ["BigramBackcopy", "Execution", "OptimConfig", "ProbeConfig", "Run", "Text", "TrainConfig", "fingerprint"]
