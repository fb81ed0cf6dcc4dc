"""The numeric contract of every op: against float64, at most twice the error of the plain path in the same type.

The plain path is the op's reference evaluated in the low precision. Its own error is the budget, so nobody picks a
tolerance by hand. Outputs and all gradients count; a not-a-number, a lost gradient, another shape or type fails.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Where the plain path happens to be exact, an implementation may still sum in another order, in float32, …
_REORDERING = 2 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Verdict:
    """Relative error ‖x − x₆₄‖/‖x₆₄‖ of an output or gradient (infinite: lost, or of another shape or type), and what the
    contract allows."""

    tensor: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed  # false for not-a-number


def check(
    candidate: Callable[..., Tensor], reference: Callable[..., Tensor], arguments: dict[str, Any]
) -> list[Verdict]:
    """One verdict for the output and one for the gradient of every differentiable argument.

    Args:
        candidate, reference: functions of the arguments.
        arguments: keyword arguments in the low precision; "grad_BTHK" is the upstream gradient.
    """
    exact = _outputs(reference, _in(arguments, torch.float64))
    plain = _outputs(reference, _in(arguments, None))
    found = _outputs(candidate, _in(arguments, None))
    # … and round once.
    slack = _REORDERING + torch.finfo(arguments["grad_BTHK"].dtype).eps / 2
    verdicts = []
    for name, truth in exact.items():
        is_like = found[name] is not None and (found[name].shape, found[name].dtype) == (truth.shape, plain[name].dtype)
        # An exact zero, such as the gradient of a query that sees one key, is measured against the upstream gradient.
        scale = truth.norm().item() or arguments["grad_BTHK"].double().norm().item()
        error = _distance(found[name], truth) / scale if is_like else math.inf
        verdicts.append(Verdict(name, error, 2 * _distance(plain[name], truth) / scale + slack))
    return verdicts


def _in(arguments: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        copy = value.detach().to(dtype or value.dtype).clone()
        return copy.requires_grad_(value.requires_grad)

    return {name: convert(value) for name, value in arguments.items()}


def _outputs(function: Callable[..., Tensor], arguments: dict[str, Any]) -> dict[str, Tensor | None]:
    """The output, and the gradient of each leaf: None where none arrived."""
    upstream = arguments.pop("grad_BTHK")
    out = function(**arguments)
    if out.requires_grad and out.shape == upstream.shape:
        out.backward(upstream.to(out.dtype))
    gradients = {f"d {n}": v.grad for n, v in arguments.items() if isinstance(v, Tensor) and v.requires_grad}
    return {"output": out.detach(), **gradients}


def _distance(value: Tensor, truth: Tensor) -> float:
    return (value.double() - truth).norm().item()
