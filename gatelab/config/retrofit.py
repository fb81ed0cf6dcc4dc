"""Retrofit: how a gate is put into a trained model, and how both are then trained. Free of torch.

Notable: where the gate starts is a value of its own kind; the gates have an optimiser configuration, schedule included, of
their own, since what starts as the identity hardly moves at a rate that is right for trained weights (arXiv 2505.06708, A.7).
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Config
from .gate import GateSpec
from .run import OptimConfig, Positive, Share, TrainConfig


class Identity(Config):
    """The gate stands at one value at every token, and W_O is divided by it: the model's function stays what it is.

    The value is the gate's `init`: at π with W_O / π this is the scaled gate of arXiv 2306.12929 (appendix B.6). A gate that
    states none starts at 1, or at ½, whichever leaves every bit of float32 logits as it is.
    """

    kind: Literal["identity"] = "identity"


class Random(Config):
    """The gate as its spec draws it, around another value than 1: the model's function changes at once."""

    kind: Literal["random"] = "random"


class Surgery(Config):
    """The first key is hidden from the heads that use it as a sink, and a gate takes its place: attention is exactly
    (1 − p₀)·(attention without the first key) + p₀·v₀, and σ(w·x + b) is fitted to 1 − p₀. The other heads start as the
    identity does.

    A head uses it as a sink where its mean p₀ is above `mass` and ‖v₀‖ below `drain` of the median value's. `value` mean keeps
    p₀·v₀ too, with the mean v₀ of the texts in the place of each one's own, as biases of W_V and W_O; none drops it.
    `documents` is on how many sequences all this is measured and fitted, half of them of the text that is trained on and a
    quarter to test the fits on.
    """

    kind: Literal["surgery"] = "surgery"
    mass: Share = 0.3
    drain: Positive = 0.3
    value: Literal["mean", "none"] = "mean"
    documents: Annotated[int, Field(ge=8)] = 128


class Retrofit(Config):
    """What `gatelab retrofit` does to a model.

    `optim` is for the weights that were there, `gate_optim` for the gates' (rate, schedule, betas and decay; the gradient of
    both together is clipped by `optim.clip`). `train.tokens` 0 stops after the start. `distil` is the share λ of KL(ungated ‖
    gated) in the loss (1 − λ)·cross-entropy + λ·KL. `penalty` times the mean square of the residual stream after each block,
    mean over blocks, is added. The losses are measured on `heldout` sequences of each text. `control`: whether the ungated
    model is trained too, on the same tokens in the same order.
    """

    gate: GateSpec
    start: Annotated[Identity | Random | Surgery, Field(discriminator="kind")] = Identity()
    optim: OptimConfig = OptimConfig(lr=1e-4, weight_decay=0.0)
    gate_optim: OptimConfig = OptimConfig(lr=1e-3, weight_decay=0.0)
    train: TrainConfig = TrainConfig(seq_len=512)
    distil: Share = 0.0
    penalty: Annotated[float, Field(ge=0)] = 0.0
    heldout: Annotated[int, Field(ge=2)] = 64
    control: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @field_validator("start", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("gate")
    @classmethod
    def _on_the_output(cls, gate: GateSpec) -> GateSpec:
        if gate.site != "sdpa":
            raise ValueError(
                f"{gate.slug} stands at the site {gate.site!r}, and a retrofit gates the attention output; take a gate at the "
                "site 'sdpa', such as sdpa-headwise"
            )
        return gate

    @model_validator(mode="after")
    def _possible(self) -> "Retrofit":
        for name in ("optim", "gate_optim"):
            if getattr(self, name).qk_clip is not None:
                raise ValueError(f"{name}.qk_clip is not applied to a retrofit; leave it out")
        if isinstance(self.start, Surgery):
            _check_fitted(self.gate)
        return self


def _check_fitted(gate: GateSpec) -> None:
    """Whether σ(w·x + b) is what the gate computes."""
    is_fitted = (gate.form, gate.activation, gate.source, gate.sharing) == ("mul", "sigmoid", "hidden", "specific")
    is_plain = gate.rank is None and gate.mlp is None and gate.init == "random" and gate.around is None
    if not (is_fitted and is_plain and gate.bias):
        raise ValueError(
            f"start=surgery fits σ(w·x + b), which is not what {gate.slug} computes; take sdpa-headwise-bias or "
            "sdpa-elementwise-bias"
        )
