"""ModelConfig: a block by kinds, so that the toy of the sink literature, BERT, T5 and Qwen are settings of one block."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from .base import Config
from .gate import GateSpec, parse_gates

# What no computer holds is a slip of the keyboard, and planning would count its weights one layer at a time.
Count = Annotated[int, Field(gt=0, le=10**15)]
Width = Annotated[int, Field(gt=0, le=10**6)]
Layers = Annotated[int, Field(gt=0, le=10**4)]


class Softmax(Config):
    """The ordinary softmax."""

    kind: Literal["softmax"] = "softmax"


class SinkLogit(Config):
    """A learned logit a head in the softmax's denominator, with no value (gpt-oss).

    Equal to a headwise gate σ(lse − s) on the ordinary softmax's output; `init` is the logit's start. A control here.
    """

    kind: Literal["sink-logit"] = "sink-logit"
    init: float = 0.0


Normaliser = Annotated[Softmax | SinkLogit, Field(discriminator="kind")]


class ModelConfig(Config):
    """A decoder. None means: derived from the rest (`resolve_run` fills it in and says what with).

    Widths are in channels. `init`: `normal` draws weights from N(0, init_std²); `fan-in` is PyTorch's default
    (linear layers uniform in ±1/√fan_in, embeddings N(0, 1)). `bias` puts biases into the projections and the MLP;
    a gate's bias is the gate's own. `positions` learned adds a table of max_seq_len rows at the bottom.
    """

    arch: Literal["decoder"] = "decoder"
    vocab_size: Count | None = None
    max_seq_len: Count | None = None
    d_model: Width = 256
    n_layers: Layers = 4
    n_heads: Width = 4
    n_kv_heads: Width | None = None
    head_dim: Width | None = None
    d_ff: Count | None = None
    gate: tuple[GateSpec, ...] = ()
    softmax: Normaliser = Softmax()
    norm: Literal["rms", "layer"] = "rms"
    norm_position: Literal["pre", "post", "sandwich"] = "pre"
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    qk_norm: Literal["none", "rms", "rms-no-gain"] = "none"
    positions: Literal["rope", "learned", "none"] = "rope"
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    mlp: Literal["swiglu", "gelu", "relu"] = "swiglu"
    bias: bool = False
    tied_embeddings: bool = False
    init: Literal["normal", "fan-in"] = "normal"
    init_std: Annotated[float, Field(gt=0)] = 0.02

    @field_validator("gate", mode="before")
    @classmethod
    def _gates(cls, value: Any) -> Any:
        return parse_gates(value)

    @field_serializer("gate")
    def _slugs(self, gates: tuple[GateSpec, ...]) -> str:
        return "+".join(g.slug for g in gates) or "none"

    @field_validator("softmax", mode="before")
    @classmethod
    def _softmax_by_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

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
        head_dim = self.head_dim or self.d_model // self.n_heads
        if self.positions == "rope" and head_dim % 2:
            raise ValueError(f"head_dim={head_dim} is odd, and rope turns pairs of channels; take an even one")
        sites = [g.site for g in self.gate]
        for site in sites:
            if sites.count(site) > 1:
                raise ValueError(f"gate: two gates at site {site!r}; one a site is the limit")
        return self

    def resolved(self, vocab_size: int, seq_len: int) -> "ModelConfig":
        """The same model with every None replaced: kv heads = heads, head_dim = d_model / heads, d_ff = 4 d_model
        (SwiGLU: 8/3 d_model up to a multiple of 32), and the data's vocabulary and context."""
        d_ff = 4 * self.d_model if self.mlp != "swiglu" else -(-8 * self.d_model // 96) * 32
        return self.model_copy(
            update={
                "vocab_size": self.vocab_size or vocab_size,
                "max_seq_len": self.max_seq_len or seq_len,
                "n_kv_heads": self.n_kv_heads or self.n_heads,
                "head_dim": self.head_dim or self.d_model // self.n_heads,
                "d_ff": self.d_ff or d_ff,
            }
        )
