"""The numeric contract of every op: against float64, at most twice the error of the plain path in the same type.

The plain path is the op's reference evaluated in the low precision. Its own error is the budget, so nobody picks a
tolerance by hand. Outputs and all gradients count; a not-a-number anywhere fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Where the plain path happens to be exact, an implementation may still round once.
_ROUNDINGS = 2.0


@dataclass(frozen=True)
class Verdict:
    """Relative errors ‖x − x₆₄‖/‖x₆₄‖ of one output or gradient, and what the contract allows."""

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
    verdicts = []
    for name, truth in exact.items():
        rounding = torch.finfo(arguments["grad_BTHK"].dtype).eps
        allowed = 2 * _error(plain[name], truth) + _ROUNDINGS * rounding
        verdicts.append(Verdict(name, _error(found[name], truth), allowed))
    return verdicts


def _in(arguments: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        copy = value.detach().to(dtype or value.dtype).clone()
        return copy.requires_grad_(value.requires_grad)

    return {name: convert(value) for name, value in arguments.items()}


def _outputs(function: Callable[..., Tensor], arguments: dict[str, Any]) -> dict[str, Tensor]:
    upstream = arguments.pop("grad_BTHK")
    out = function(**arguments)
    out.backward(upstream)
    gradients = {f"d {n}": v.grad for n, v in arguments.items() if isinstance(v, Tensor) and v.requires_grad}
    return {"output": out.detach(), **gradients}


def _error(value: Tensor, truth: Tensor) -> float:
    scale = truth.norm().item()
    return (value.double() - truth).norm().item() / (scale if scale > 0 else 1.0)
