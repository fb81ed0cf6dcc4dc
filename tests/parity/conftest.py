"""Every parity test runs without the network and twice: in float32 as it is, and in float64 to the last operation.

Notable: transformers computes norms, rotary tables, softmaxes and routers in float32 whatever it is given, and that
rounding would hide a wrong eps. So the second time every request for float32 is answered with float64, in transformers
and in ours, and two layers are the same to ten digits or are not the same.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class InFloat64(TorchFunctionMode):
    """torch, where float32 means float64."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        wide = [torch.float64 if a is torch.float32 else a for a in args]
        named = {name: torch.float64 if a is torch.float32 else a for name, a in (kwargs or {}).items()}
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*wide, **named)


@pytest.fixture(autouse=True, params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """The type of whatever a test builds and computes."""
    if request.param == "float32":
        yield
        return
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
