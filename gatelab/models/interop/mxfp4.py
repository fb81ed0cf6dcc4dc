"""MXFP4, as gpt-oss stores its experts: four bits a number and an exponent for each 32, unpacked where a tensor is read.

Layout (OCP Microscaling Formats 1.0): `…_blocks` [X, O, I/32, 16] has two numbers a byte, the lower four bits the first, of a
sign, two bits of exponent and one of mantissa; `…_scales` [X, O, I/32] is the exponent plus 127, and 255 no number. bfloat16
has all of these numbers exactly but those beyond 2¹²⁸, which come out as infinite.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .tensors import Tensors

PACKED = r"_(blocks|scales)$"
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_A_BLOCK = 16  # bytes
_NO_NUMBER = 255


def unpacked(tensors: Tensors) -> Tensors:
    """The tensors with each pair of blocks and scales as one in bfloat16, [X, I, O], under the name that both begin with.

    Raises:
        ValueError: blocks and scales of shapes that do not go together.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    reads: dict[str, Callable[[], Tensor]] = {}
    for name, shape in tensors.shapes.items():
        own, _, word = name.rpartition("_")
        if word == "scales" and f"{own}_blocks" in tensors.shapes:
            continue
        if word != "blocks" or f"{own}_scales" not in tensors.shapes:
            shapes[name], dtypes[name], reads[name] = shape, tensors.dtypes[name], partial(tensors.read, name)
            continue
        scales = tensors.shapes[f"{own}_scales"]
        if len(shape) != 4 or shape[3] != _A_BLOCK or scales != shape[:3]:
            raise ValueError(
                f"{tensors.title}: tensors {name} {list(shape)} and {own}_scales {list(scales)} do not go together: expected "
                f"[experts, rows, blocks, {_A_BLOCK}] and [experts, rows, blocks]; take an undamaged checkpoint"
            )
        X, O, blocks = scales  # noqa: E741
        shapes[own], dtypes[own] = (X, blocks * 2 * _A_BLOCK, O), torch.bfloat16
        reads[own] = partial(_experts, tensors, own)
    return Tensors(tensors.title, shapes, dtypes, lambda name: reads[name]())


def numbers(blocks: Tensor, scales: Tensor) -> Tensor:
    """[O, I/32, 16] bytes and their exponents [O, I/32] to [O, I] in bfloat16."""
    of_half = torch.tensor([*_MAGNITUDES, *(-m for m in _MAGNITUDES)])
    of_byte = torch.stack([of_half.repeat(16), of_half.repeat_interleave(16)], dim=1)
    scaled = torch.ldexp(of_byte[blocks.long()].flatten(-2), scales.int()[..., None] - 127)
    return scaled.masked_fill_(scales[..., None] == _NO_NUMBER, torch.nan).flatten(-2).bfloat16()


def _experts(tensors: Tensors, name: str) -> Tensor:
    """An expert at a time, since the way there takes many times the bytes of what it makes."""
    X, O, n_blocks = tensors.shapes[f"{name}_scales"]  # noqa: E741
    made_XOI = torch.empty(X, O, n_blocks * 2 * _A_BLOCK, dtype=torch.bfloat16)
    for expert in range(X):
        made_XOI[expert] = numbers(*(tensors.part(f"{name}_{word}", expert) for word in ("blocks", "scales")))
    return made_XOI.transpose(1, 2)
