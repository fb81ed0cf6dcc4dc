"""Rows as attention's CUDA kernels read them: channels side by side, beginning at a multiple of 16 bytes.

Notable: torch's flash and efficient kernels take such rows for granted and do not look, so that a slice of a wider tensor is a
misaligned address, which ends the process's use of the device. Only strides and the offset are asked, no address: both are there
while a compiler traces. torch's compiler alone does not tell the offset of a tensor; its own rows begin where their strides do.
"""

import torch
from torch import Tensor

_BYTES = 16


def aligned(t: Tensor) -> Tensor:
    """A tensor [..., K] as it is where kernels can read it, else a copy. `contiguous` would leave an axis of size 1 the stride
    that it has. On other devices than CUDA ones rows may begin anywhere, and so may those of heads that are no multiple of 16
    bytes, which torch pads itself."""
    is_read = t.stride(-1) == 1
    if _is_cuda(t) and t.shape[-1] * t.dtype.itemsize % _BYTES == 0:
        is_read = is_read and all(n * t.dtype.itemsize % _BYTES == 0 for n in _starts(t))
    return t if is_read else t.clone(memory_format=torch.contiguous_format)


def _starts(t: Tensor) -> tuple[int, ...]:
    strides = t.stride()[:-1]
    return strides if torch.compiler.is_dynamo_compiling() else (t.storage_offset(), *strides)


def _is_cuda(t: Tensor) -> bool:
    return t.device.type == "cuda"
