"""ModelConfig: a block by kinds, so that the toy of the sink literature, BERT, T5 and Qwen are settings of one block."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from .architecture import ARCHITECTURES, Architecture, Stack
from .base import Config, nearest
from .gate import GateSpec, parse_gates
from .gate_layers import GateLayers, check_layers, gated, parse_layers
from .kv_experts import KVExperts
from .moe import MoE
from .normaliser import Normalisers, Softmax
from .output_map import OUTPUT_MAPS
from .rope import RopeScaling, Unscaled, rotary_dim

# What no computer holds is a slip of the keyboard, and planning would count its weights one layer at a time.
Count = Annotated[int, Field(gt=0, le=10**15)]
Width = Annotated[int, Field(gt=0, le=10**6)]
Layers = Annotated[int, Field(gt=0, le=10**4)]
Positive = Annotated[float, Field(gt=0)]


class ModelConfig(Config):
    """A model of one architecture. None means: derived from the rest (`resolved` fills it in and says what with).

    Widths are in channels. `gate` are the gates of self-attention; `cross_gate` and `encoder_gate` those of an
    encoder-decoder's cross-attention and encoder, None: the same. `gate_layers`: the layers of each stack that have its gates,
    all, first-third, last-third or numbers from 0; the others are plain. `window`: a query sees the last so many keys, except
    in every `global_every`-th layer. `registers` learned tokens stand before every sequence (arXiv 2309.16588);
    a window hides them like any other token. `first_hidden_from`: by layer the heads whose queries do not see the key at
    position 0, but where they see no other; (): every head sees it.
    `residual_clip` bounds what attention and the feed-forward layer add to the residual stream. `moe` takes the place
    of a SwiGLU `mlp`. `norm` gated-rms is GatedNorm (arXiv 2601.22966) of rank `norm_rank`. `norm_position` is pre: x + f(norm
    x), post: norm(x + f(x)), sandwich: x + norm(f(norm x)), or reordered: x + norm(f(x)) (OLMo 2). `embedding_norm` norms what
    the first block reads (BERT: layer). `qk_norm` rms-all-heads takes one mean over all heads' channels (OLMo 2), the others
    one a head. `positions` learned adds a table of max_seq_len rows at the bottom, relative is T5's bias. `n_token_types`
    kinds of tokens have a row each, added at the bottom of an encoder (BERT's segments; 0: none). `rope_fraction` of a head's
    channels turn. `init`: `normal` draws weights from N(0, init_std²); `scaled` does too, and divides what writes to the residual
    stream by the root of how many layers of its stack do (GPT-2); `fan-in` is PyTorch's default (linear layers uniform in
    ±1/√fan_in, embeddings N(0, 1)). `bias` puts biases into the projections and the MLP; a gate's bias is the gate's own.
    """

    arch: str = "decoder"
    vocab_size: Count | None = None
    max_seq_len: Count | None = None
    d_model: Width = 256
    n_layers: Layers = 4
    n_encoder_layers: Layers | None = None
    n_heads: Width = 4
    n_kv_heads: Width | None = None
    head_dim: Width | None = None
    d_ff: Count | None = None
    gate: tuple[GateSpec, ...] = ()
    cross_gate: tuple[GateSpec, ...] | None = None
    encoder_gate: tuple[GateSpec, ...] | None = None
    gate_layers: GateLayers = "all"
    output_map: str = "none"
    kv_experts: KVExperts | None = None
    softmax: Normalisers = Softmax()
    window: Count | None = None
    global_every: Annotated[int, Field(ge=0)] = 0
    first_hidden_from: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...] = ()
    registers: Annotated[int, Field(ge=0, le=4096)] = 0
    residual_clip: Positive | None = None
    norm: Literal["rms", "layer", "gated-rms"] = "rms"
    norm_position: Literal["pre", "post", "sandwich", "reordered"] = "pre"
    norm_eps: Positive = 1e-6
    norm_rank: Width = 16
    embedding_norm: Literal["none", "rms", "layer"] = "none"
    qk_norm: Literal["none", "rms", "rms-no-gain", "rms-all-heads"] = "none"
    positions: Literal["rope", "learned", "relative", "none"] = "rope"
    n_token_types: Annotated[int, Field(ge=0, le=4096)] = 0
    rope_theta: Positive = 10_000.0
    rope_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    rope_scaling: RopeScaling = Unscaled()
    mlp: Literal["swiglu", "gelu", "relu"] = "swiglu"
    moe: MoE | None = None
    bias: bool = False
    tied_embeddings: bool = False
    init: Literal["normal", "scaled", "fan-in"] = "normal"
    init_std: Positive = 0.02

    @field_validator("gate", mode="before")
    @classmethod
    def _gates(cls, value: Any) -> Any:
        return parse_gates(value)

    @field_validator("cross_gate", "encoder_gate", mode="before")
    @classmethod
    def _other_gates(cls, value: Any) -> Any:
        return None if value is None else parse_gates(value)

    @field_validator("gate_layers", mode="before")
    @classmethod
    def _gate_layers(cls, value: Any) -> Any:
        return parse_layers(value)

    @field_serializer("gate")
    def _slugs(self, gates: tuple[GateSpec, ...]) -> str:
        return "+".join(g.slug for g in gates) or "none"

    @field_serializer("cross_gate", "encoder_gate")
    def _other_slugs(self, gates: tuple[GateSpec, ...] | None) -> str | None:
        return None if gates is None else self._slugs(gates)

    @field_validator("softmax", "rope_scaling", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("arch")
    @classmethod
    def _known_arch(cls, name: str) -> str:
        return _one_of(name, list(ARCHITECTURES))

    @field_validator("output_map")
    @classmethod
    def _known_map(cls, name: str) -> str:
        return _one_of(name, list(OUTPUT_MAPS))

    @property
    def architecture(self) -> Architecture:
        """The stacks that `arch` names."""
        return ARCHITECTURES[self.arch]

    def is_global(self, layer: int) -> bool:
        """Whether a layer, counted from 0 in its stack, sees everything, window or not."""
        return self.window is None or (self.global_every > 0 and (layer + 1) % self.global_every == 0)

    def depth(self, stack: Stack) -> int:
        """Blocks of one of the architecture's stacks."""
        return getattr(self, stack.depth) or self.n_layers

    def gates(self, stack: Stack, layer: int | None = None, *, is_cross: bool = False) -> tuple[GateSpec, ...]:
        """The gates of a stack's self- or cross-attention; of one layer, none where `gate_layers` leaves it out."""
        if layer is not None and layer not in gated(self.gate_layers, self.depth(stack)):
            return ()
        own = self.cross_gate if is_cross else getattr(self, stack.gates)
        return self.gate if own is None else own

    @property
    def all_gates(self) -> set[GateSpec]:
        """The gates of any attention of the model."""
        stacks = self.architecture.stacks
        return {g for s in stacks for is_cross in {False, s.has_cross} for g in self.gates(s, is_cross=is_cross)}

    @model_validator(mode="after")
    def _fits(self) -> "ModelConfig":
        if self.n_kv_heads and self.n_heads % self.n_kv_heads:
            divisors = [g for g in range(1, self.n_heads + 1) if self.n_heads % g == 0]
            raise ValueError(
                f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}; "
                f"for {self.n_heads} heads take one of {', '.join(map(str, divisors))}"
            )
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; change one, or state head_dim"
            )
        if self.positions == "rope":
            turning = rotary_dim(self.head_dim or self.d_model // self.n_heads, self.rope_fraction)
            self.rope_scaling.frequencies(turning, self.rope_theta)  # refuses what it cannot stretch
        self.softmax.check(self.n_heads, self.n_kv_heads or self.n_heads)
        if self.moe is not None and (self.mlp != "swiglu" or self.d_ff not in (None, self.moe.d_expert)):
            raise ValueError(
                "moe takes the place of the feed-forward layer: leave out mlp and d_ff, and state moe.d_expert"
            )
        if self.global_every and self.window is None:
            raise ValueError(f"global_every={self.global_every} needs a window, which the other layers have")
        if self.n_token_types and self.arch != "encoder":
            raise ValueError(f"n_token_types={self.n_token_types} belongs to arch=encoder; leave it out")
        self._gates_fit()
        if self.first_hidden_from:
            if self.arch != "decoder" or len(self.first_hidden_from) != self.n_layers:
                raise ValueError(
                    f"first_hidden_from names the heads of {len(self.first_hidden_from)} layers, and this is arch={self.arch} "
                    f"of {self.n_layers}; it takes a decoder, and a tuple for each layer"
                )
            for layer, heads in enumerate(self.first_hidden_from):
                check_first_hidden(heads, self.n_heads, self.gates(self.architecture.stacks[0], layer))
        return self

    def _gates_fit(self) -> None:
        if self.arch != "encoder-decoder":
            for name in ("n_encoder_layers", "cross_gate", "encoder_gate"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} belongs to arch=encoder-decoder, and this is arch={self.arch}; leave it out"
                    )
        has_gate = bool(self.all_gates)
        for stack in self.architecture.stacks:
            check_gates(self.gates(stack), is_causal=stack.is_causal, is_cross=False, output_map=self.output_map)
            if stack.has_cross:
                gates = self.gates(stack, is_cross=True)
                check_gates(gates, is_causal=False, is_cross=True, output_map=self.output_map)
            own = {*self.gates(stack), *(self.gates(stack, is_cross=True) if stack.has_cross else ())}
            name = stack.blocks if len(self.architecture.stacks) > 1 else ""
            if own or not has_gate:
                check_layers(self.gate_layers, self.depth(stack), has_gate=has_gate, stack=name)
            for spec in own:
                heads = self.n_kv_heads or self.n_heads
                spec.shape(self.d_model, self.n_heads, heads, self.head_dim or self.d_model // self.n_heads)

    def resolved(self, vocab_size: int, seq_len: int) -> "ModelConfig":
        """The same model with every None replaced: kv heads = heads, head_dim = d_model / heads, d_ff = 4 d_model
        (SwiGLU: 8/3 d_model up to a multiple of 32; experts: d_expert), and the data's vocabulary and context."""
        d_ff = 4 * self.d_model if self.mlp != "swiglu" else -(-8 * self.d_model // 96) * 32
        if self.moe is not None:
            d_ff = self.moe.d_expert
        return self.model_copy(
            update={
                "vocab_size": self.vocab_size or vocab_size,
                "max_seq_len": self.max_seq_len or seq_len,
                "n_kv_heads": self.n_kv_heads or self.n_heads,
                "head_dim": self.head_dim or self.d_model // self.n_heads,
                "d_ff": self.d_ff or d_ff,
            }
        )


def check_gates(gates: tuple[GateSpec, ...], *, is_causal: bool, is_cross: bool, output_map: str = "none") -> None:
    """Refuses gates that do not go together, or not with this attention.

    Raises:
        ValueError: two gates at a site; forgetting without a causal order; a query's own value in cross-attention; a gate
            on the log-sum-exp, which belongs to the softmax, after an output map.
    """
    sites = [g.site for g in gates]
    for spec in gates:
        if sites.count(spec.site) > 1:
            raise ValueError(f"gate: two gates at site {spec.site!r}; one a site is the limit")
        if spec.form == "forget" and not is_causal:
            raise ValueError(
                f"gate {spec.slug} forgets what lies before, and this attention is not causal; state another gate for it"
            )
        if spec.source == "lse" and output_map != "none":
            raise ValueError(
                f"gate {spec.slug} belongs to the softmax and comes before output_map={output_map!r}, which comes before all "
                "gates; leave one of the two out"
            )
        if is_cross and spec.source == "value" and spec.site == "sdpa":
            raise ValueError(
                f"gate {spec.slug} reads the value of the query's own token, which cross-attention does not have; state "
                "another cross_gate"
            )


def check_first_hidden(heads: Sequence[int], n_heads: int, gates: tuple[GateSpec, ...]) -> None:
    """Refuses a first key hidden from heads that are not there, or in a layer whose scores are gated.

    Raises:
        ValueError: saying which.
    """
    if any(not 0 <= h < n_heads for h in heads):
        raise ValueError(f"first_hidden_from={list(heads)}: expected heads from 0 to {n_heads - 1}")
    if heads and any(g.site == "scores" for g in gates):
        raise ValueError(
            "first_hidden_from adds to the logit of the first key, and a gate on the scores to those of all; leave one of the "
            "two out"
        )


def _one_of(name: str, allowed: list[str]) -> str:
    if name not in allowed:
        raise ValueError(f"{name!r}: expected one of {', '.join(map(repr, allowed))}{nearest(name, allowed)}")
    return name
