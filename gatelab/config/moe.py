"""MoE: a feed-forward layer of many experts, of which a softmax router chooses a few for each token; and what an expert
makes of its two products, by kind."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Config

Number = Annotated[int, Field(ge=1, le=10**6)]
Coefficient = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class SwiGLU(Config):
    """SiLU(a) ⊙ b of a = w1 x and b = w3 x (arXiv 2002.05202)."""

    kind: Literal["swiglu"] = "swiglu"


class ClampedSwiGLU(Config):
    """(b + 1) ⊙ a σ(alpha · a), with a cut to at most `limit` and b to ±limit before (gpt-oss; σ(1.702 a) a is near gelu)."""

    kind: Literal["clamped_swiglu"] = "clamped_swiglu"
    limit: Positive = 7.0
    alpha: Positive = 1.702


Activation = SwiGLU | ClampedSwiGLU
ACTIVATIONS: dict[str, type[Activation]] = {"swiglu": SwiGLU, "clamped_swiglu": ClampedSwiGLU}


class MoE(Config):
    """Softmax top-k over fine-grained experts, as the 15A2B models of arXiv 2505.06708 have (128 experts, 8 a token, 768
    channels each).

    `d_expert` is the width of one expert, `activation` what it does between its products, and `bias` gives each of the three
    a bias; `router_bias` is the router's own. `n_shared` experts see every token and no router: one SwiGLU of width
    n_shared · d_expert, whose result is added as it is, or times σ(w·x) with `shared_weight` sigmoid (Qwen2-MoE).
    `normalise_top_k` divides the chosen probabilities by their sum (Qwen), which is a softmax over the chosen logits
    (gpt-oss); with top_k = 1 every weight is then 1, and the router learns from its two losses alone. `balance` is the
    coefficient of the load-balancing loss, whose shares are counted over the global batch ("Demons in the Detail", arXiv
    2501.11873); `z` that of the router's z-loss, the mean of logsumexp(logits)² (ST-MoE, arXiv 2202.08906). The paper names
    both losses and prints no coefficient: these defaults are ours.
    """

    n_experts: Number
    top_k: Number
    d_expert: Annotated[int, Field(gt=0, le=10**6)]
    n_shared: Annotated[int, Field(ge=0, le=10**6)] = 0
    shared_weight: Literal["one", "sigmoid"] = "one"
    normalise_top_k: bool = True
    activation: Annotated[Activation, Field(discriminator="kind")] = SwiGLU()
    bias: bool = False
    router_bias: bool = False
    balance: Coefficient = 1e-3
    z: Coefficient = 1e-3

    @field_validator("activation", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _possible(self) -> "MoE":
        if self.top_k > self.n_experts:
            raise ValueError(
                f"top_k={self.top_k} of n_experts={self.n_experts}: a token can choose each expert once; take top_k from "
                f"1 to {self.n_experts}"
            )
        if self.shared_weight != "one" and not self.n_shared:
            raise ValueError(
                f"shared_weight={self.shared_weight} weighs shared experts, and n_shared is 0; state n_shared"
            )
        if self.n_shared and (self.bias or self.activation.kind != "swiglu"):
            raise ValueError(
                f"n_shared={self.n_shared} with activation={self.activation.kind} and bias={self.bias}: a shared expert is a "
                "swiglu without biases, and would be of another kind than the others; leave out n_shared, or the two"
            )
        return self
