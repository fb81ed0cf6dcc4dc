"""Kernels on a CUDA device, else in Triton's interpreter: what the files of their tests begin with; skipped without Triton."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRET = ("TRITON_INTERPRET", "1" if DEVICE == "cpu" else "0")
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)


@contextmanager
def interpreting() -> Iterator[None]:
    """Around the import of kernels: they are interpreted or compiled as it says when their file, and Triton's own, are imported."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(*INTERPRET)
        yield
