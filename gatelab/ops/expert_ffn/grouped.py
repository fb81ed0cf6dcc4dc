"""Tokens sorted by expert, then one grouped product a weight; no token is dropped and none is computed in vain.

Notable: the groups' ends stay on the device, so a GPU never waits for the host. Experts without tokens get zero gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.moe import Activation, SwiGLU
from .hidden import Between, hidden
from .rows import by_expert, to_experts, weighted_sum

# What torch's grouped_mm multiplies. On CUDA other types fall back to a loop over groups that waits for the host; on CPU
# they run, and torch.compile refuses them.
_TYPES = {"cuda": (torch.bfloat16,), "cpu": (torch.bfloat16, torch.float16, torch.float32)}
# Every row starts at a multiple of this.
_ROW_BYTES = 16
# torch refuses 1,024 groups and more on a GPU.
MOST_EXPERTS = 1023


def obstacle(d_model: int, d_expert: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why grouped products cannot run here, or None."""
    types = _TYPES.get(device.type)
    if types is None:
        return f"torch has no grouped product for device {device.type!r}, only for {' and '.join(_TYPES)}"
    if dtype not in types:
        names = ", ".join(str(t).removeprefix("torch.") for t in types)
        return f"{str(dtype).removeprefix('torch.')} on {device.type}: grouped products take {names}"
    multiple = _ROW_BYTES // dtype.itemsize
    if d_model % multiple or d_expert % multiple:
        return (
            f"widths {d_model} and {d_expert}: rows must start at multiples of {_ROW_BYTES} bytes; "
            f"take multiples of {multiple}"
        )
    return None


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
) -> Tensor:
    """Same function as the reference; see `gatelab.ops.expert_ffn.expert_ffn`."""
    order_M, position_M, ends_X = by_expert(chosen_NE, n_experts=w1_XFD.shape[0])
    x_MD = to_experts(x_ND, order_M, position_M, chosen_NE.shape[1])
    biases = {"b1_XF": b1_XF, "b3_XF": b3_XF, "b2_XD": b2_XD}
    y_MD = expert_rows(x_MD, ends_X, w1_XFD, w3_XFD, w2_XDF, **biases, activation=activation)
    return weighted_sum(y_MD, position_M, order_M, weight_NE)


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
    between: Between = hidden,
) -> Tensor:
    """Same function as the reference's; see `gatelab.ops.expert_ffn.expert_rows`."""
    a_MF, b_MF = (_product(x_MD, w, ends_X, bias) for w, bias in ((w1_XFD, b1_XF), (w3_XFD, b3_XF)))
    return _product(between(a_MF, b_MF, activation), w2_XDF, ends_X, b2_XD)


def _product(x_MI: Tensor, weight_XOI: Tensor, ends_X: Tensor, bias_XO: Tensor | None = None) -> Tensor:
    """x Wᵀ with each expert's W, and its bias where there are any, for its own rows, [M, O]."""
    product_MO = F.grouped_mm(x_MI, weight_XOI.transpose(1, 2), offs=ends_X)
    if bias_XO is None:
        return product_MO
    # A row's bias is a product with a one, so that its gradient is a grouped product too, not a scattered sum.
    width = _ROW_BYTES // bias_XO.element_size()
    return product_MO + _product(bias_XO.new_ones(len(x_MI), width), F.pad(bias_XO[..., None], (0, width - 1)), ends_X)
