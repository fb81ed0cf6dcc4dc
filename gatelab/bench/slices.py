"""What gated attention is benchmarked on: queries, keys, values and logits that are slices of one packed projection.

Notable: a layer with `execution.packed` has them so: rows of [q, k, v, logits], made a multiple of 128 bytes. What is timed is
given leaves that lie so; the contract, whose tensors are its own, has them joined on the way.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config.gate import GateSpec
from .plan import OpsPlan

Arguments = dict[str, Any]
_EVEN = 64  # channels of a row: a multiple of so many
_PROJECTED = ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")


def drawn(plan: OpsPlan, spec: GateSpec | None, *, batch: int, length: int) -> Arguments:
    """Random q, k, v, logits and an upstream gradient of a plan's heads and type, by the names that the op has; the gradient
    apart, the others slices of one tensor and leaves."""
    dtype, device, K = getattr(torch, plan.dtype), torch.device(plan.device), plan.head_dim
    g = torch.Generator(device).manual_seed(0)

    def normal(width: int) -> Tensor:
        return torch.randn(batch, length, width, generator=g, device=device).to(dtype)

    shapes = {"q_BTHK": (plan.heads, K), "k_BSGK": (plan.kv_heads, K), "v_BSGK": (plan.kv_heads, K)}
    if spec is not None:
        shapes["gate_logits_BTHK"] = (plan.heads, K if spec.granularity == "elementwise" else 1)
    width = sum(n * channels for n, channels in shapes.values())
    slices = _slices(normal(width + -width % _EVEN), shapes)
    leaves = {name: t.detach().requires_grad_() for name, t in slices.items()}
    return leaves | {"grad_BTHK": normal(plan.heads * K).unflatten(-1, (-1, K))}


def _slices(rows_BTN: Tensor, shapes: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Views of rows, one after the other, by heads and channels."""
    widths = [n * channels for n, channels in shapes.values()]
    pieces = rows_BTN.split([*widths, rows_BTN.shape[-1] - sum(widths)], dim=-1)[:-1]
    return {name: piece.unflatten(-1, shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers as slices of one tensor, through which gradients go to each."""
    flat = [t.flatten(2) for t in tensors.values()]
    width = sum(t.shape[-1] for t in flat)
    rows_BTN = torch.cat([*flat, flat[0].new_zeros(*flat[0].shape[:2], -width % _EVEN)], dim=-1)
    return _slices(rows_BTN, {name: tuple(t.shape[2:]) for name, t in tensors.items()})


def on_slices(call: Callable[..., Tensor], **given: Tensor) -> Tensor:
    """A candidate's call, given what it is given when it is timed."""
    return call(**_joined({name: given[name] for name in _PROJECTED if name in given}))


def on_sliced_logits(call: Callable[..., Tensor], y_BTHK: Tensor, logits_BTHK: Tensor) -> Tensor:
    """The same for the gate alone: attention's output lies apart, the logits behind as many channels."""
    behind = {"y_BTHK": y_BTHK.detach(), "logits_BTHK": logits_BTHK}
    return call(y_BTHK=y_BTHK, logits_BTHK=_joined(behind)["logits_BTHK"])
