"""What reading and writing refuse alike, each in one sentence."""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from ...config.base import ConfigError, nearest
from .canonical import Geometry
from .layout import Layout
from .table import LAYOUTS


def known(layout: Layout | str) -> Layout:
    if isinstance(layout, Layout):
        return layout
    if layout not in LAYOUTS:
        raise ConfigError(
            [f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}{nearest(str(layout), list(LAYOUTS))}"]
        )
    return LAYOUTS[layout]


def one_of(layout: Layout, name: str, value: str | None, allowed: tuple[str, ...]) -> str:
    if value is not None and value not in allowed:
        raise ValueError(f"{layout.slug}: {name}={value!r}: expected one of {', '.join(allowed)}")
    return value or allowed[0]


def check_values(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.element_size() < 2:
            kind = str(tensor.dtype).removeprefix("torch.") if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name} is of type {kind}: expected numbers of 16 bits or more; dequantise it before")
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} is a {tensor.layout} tensor: expected a dense one; call to_dense() before")
        if tensor.is_meta:
            raise ValueError(f"{name} has no values, being on the meta device; load it before")
        if not tensor.isfinite().all():
            n_bad = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{name} holds {n_bad} values that are NaN or infinite; copy the file again, or take another"
            )


def check_rope(layout: Layout, geometry: Geometry) -> None:
    if not layout.any_rope and not geometry.is_full_rope:
        turning = f"turns all {geometry.head_dim} channels of a head, and here {geometry.rotary_dim} turn"
        refuse(layout, turning, lambda other: other.any_rope)


def refuse(layout: Layout, why: str, serves: Callable[[Layout], bool]) -> NoReturn:
    others = [other.slug for other in LAYOUTS.values() if serves(other)]
    raise ValueError(f"{layout.slug} {why}; layouts that serve are {', '.join(others[:-1])} and {others[-1]}")
