"""MoE: a feed-forward layer of many experts, of which a softmax router chooses a few for each token."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Config

Number = Annotated[int, Field(ge=1, le=10**6)]
Coefficient = Annotated[float, Field(ge=0)]


class MoE(Config):
    """Softmax top-k over fine-grained SwiGLU experts, as the 15A2B models of arXiv 2505.06708 have (128 experts, 8 a
    token, 768 channels each).

    `d_expert` is the width of one expert. `n_shared` experts see every token and no router: one SwiGLU of width
    n_shared · d_expert, whose result is added as it is, or times σ(w·x) with `shared_weight` sigmoid (Qwen2-MoE).
    `normalise_top_k` divides the chosen probabilities by their sum (Qwen); with top_k = 1 every weight is then 1, and the
    router learns from its two losses alone. `balance` is the coefficient of the
    load-balancing loss, whose shares are counted over the global batch ("Demons in the Detail", arXiv 2501.11873); `z`
    that of the router's z-loss, the mean of logsumexp(logits)² (ST-MoE, arXiv 2202.08906). The paper names both losses
    and prints no coefficient: these defaults are ours.
    """

    n_experts: Number
    top_k: Number
    d_expert: Annotated[int, Field(gt=0, le=10**6)]
    n_shared: Annotated[int, Field(ge=0, le=10**6)] = 0
    shared_weight: Literal["one", "sigmoid"] = "one"
    normalise_top_k: bool = True
    balance: Coefficient = 1e-3
    z: Coefficient = 1e-3

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
        return self
