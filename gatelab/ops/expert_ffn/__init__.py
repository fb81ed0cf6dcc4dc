"""The experts of a mixture, given what the router chose. The public function checks its inputs and calls the
implementation that was named."""

import torch
from torch import Tensor

from ...config.moe import ACTIVATIONS, Activation, SwiGLU
from . import grouped, reference
from .hidden import Between, hidden

IMPLEMENTATIONS = {"reference": reference.expert_ffn, "grouped": grouped.expert_ffn}
OF_ROWS = {"reference": reference.expert_rows, "grouped": grouped.expert_rows}


def choose(impl: str, *, d_model: int, d_expert: int, dtype: torch.dtype, device: torch.device) -> str:
    """The implementation that `auto` means for these widths; callers store the name with their results.

    `auto` is `grouped` on CUDA in bfloat16 where the widths allow it, else `reference`.

    Raises:
        ValueError: for a name that does not exist, or `grouped` where it cannot run.
    """
    if impl not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"impl={impl!r}: expected one of auto, {', '.join(IMPLEMENTATIONS)}")
    if impl == "reference":
        return impl
    obstacle = grouped.obstacle(d_model, d_expert, dtype, device)
    if impl == "auto":
        return "grouped" if device.type == "cuda" and obstacle is None else "reference"
    if obstacle is not None:
        raise ValueError(f"impl='grouped': {obstacle}; or take impl='reference'")
    return impl


def expert_ffn(
    x_ND: Tensor,
    chosen_NE: Tensor,
    weight_NE: Tensor,
    w1_XFD: Tensor,
    w3_XFD: Tensor,
    w2_XDF: Tensor,
    *,
    b1_XF: Tensor | None = None,
    b3_XF: Tensor | None = None,
    b2_XD: Tensor | None = None,
    activation: Activation = SwiGLU(),  # noqa: B008  (a frozen value)
    impl: str = "auto",
) -> Tensor:
    """y = Σ over the chosen e of weight_e · (w2_e h(w1_e x + b1_e, w3_e x + b3_e) + b2_e), [N, D] in x's type; h is the
    activation, SiLU(a) ⊙ b where none is stated.

    Rounding rule: each expert computes in x's type; the weighted sum is taken in float32 (float64 for float64 inputs)
    and rounded once, to x's type.

    Args:
        x_ND: N tokens of D channels.
        chosen_NE: int64, the E experts of each token, in 0 … X − 1. Values are not checked: that would make a GPU wait.
        weight_NE: what each chosen expert's output is multiplied by, in any floating type.
        w1_XFD, w3_XFD, w2_XDF: weights of X experts of width F, in x's type.
        b1_XF, b3_XF, b2_XD: their biases in x's type, all three or none.
        activation: a value of `gatelab.config.moe`, such as `ClampedSwiGLU(limit=7)`.
        impl: `reference`, `grouped` or `auto`; never replaced silently.

    Raises:
        ValueError: shapes or types that do not fit, an unknown implementation, or one that cannot run here.
    """
    tensors, biases = (x_ND, chosen_NE, weight_NE, w1_XFD, w3_XFD, w2_XDF), (b1_XF, b3_XF, b2_XD)
    if x_ND.dim() != 2 or w1_XFD.dim() != 3 or not _fits(*tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(
            f"x, chosen, weight, w1, w3, w2 of shapes {shapes}: expected [N,D], [N,E], [N,E], [X,F,D], [X,F,D], [X,D,F]"
        )
    (X, F, D), given = w1_XFD.shape, [b for b in biases if b is not None]
    if given and [None if b is None else tuple(b.shape) for b in biases] != [(X, F), (X, F), (X, D)]:
        shapes = ", ".join(str(b if b is None else tuple(b.shape)) for b in biases)
        raise ValueError(f"b1, b3, b2 of shapes {shapes}: expected {(X, F)}, {(X, F)}, {(X, D)}, or none of the three")
    types = {t.dtype for t in (x_ND, w1_XFD, w3_XFD, w2_XDF, *given)}
    if len(types) > 1 or not x_ND.is_floating_point() or chosen_NE.dtype != torch.int64:
        words = ", ".join(str(t.dtype).removeprefix("torch.") for t in (*tensors, *given))
        raise ValueError(
            f"x, chosen, weight, w1, w3, w2{', b1, b3, b2' if given else ''} of types {words}: convert the experts' weights to "
            "x's floating type and the choices to int64"
        )
    if not isinstance(activation, Activation):
        words = " or ".join(f"{kind.__name__}()" for kind in ACTIVATIONS.values())
        raise ValueError(f"activation={activation!r}: give a value of gatelab.config.moe, {words}")
    name = choose(impl, d_model=x_ND.shape[1], d_expert=w1_XFD.shape[1], dtype=x_ND.dtype, device=x_ND.device)
    return IMPLEMENTATIONS[name](*tensors, b1_XF=b1_XF, b3_XF=b3_XF, b2_XD=b2_XD, activation=activation)


def expert_rows(
    x_MD: Tensor,
    ends_X: Tensor,
    w1_XFD: Tensor,
    w3_XFD: Tensor,
    w2_XDF: Tensor,
    *,
    b1_XF: Tensor | None = None,
    b3_XF: Tensor | None = None,
    b2_XD: Tensor | None = None,
    activation: Activation = SwiGLU(),  # noqa: B008  (a frozen value)
    impl: str = "auto",
    between: Between = hidden,
) -> Tensor:
    """What each expert makes of the rows that are its own, [M, D]: those of the first lie first and end at ends_X[0], as
    `rows.by_expert` has them. Weights, biases and `impl` are those of `expert_ffn`, whose products these are.

    Args:
        between: what makes of an expert's two products what its third one reads, `hidden` or compiled code of it.

    Raises:
        ValueError: an implementation that does not exist or cannot run here.
    """
    name = choose(impl, d_model=x_MD.shape[1], d_expert=w1_XFD.shape[1], dtype=x_MD.dtype, device=x_MD.device)
    biases = {"b1_XF": b1_XF, "b3_XF": b3_XF, "b2_XD": b2_XD}
    return OF_ROWS[name](x_MD, ends_X, w1_XFD, w3_XFD, w2_XDF, **biases, activation=activation, between=between)


def _fits(x_ND: Tensor, chosen_NE: Tensor, weight_NE: Tensor, w1_XFD: Tensor, w3_XFD: Tensor, w2_XDF: Tensor) -> bool:
    (N, D), (X, F, _) = x_ND.shape, w1_XFD.shape
    chosen_fits = chosen_NE.dim() == 2 and chosen_NE.shape[0] == N and weight_NE.shape == chosen_NE.shape
    return chosen_fits and w1_XFD.shape == w3_XFD.shape == (X, F, D) and w2_XDF.shape == (X, D, F)


__all__ = ["IMPLEMENTATIONS", "choose", "expert_ffn", "expert_rows"]
