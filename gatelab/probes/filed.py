"""What probes file: numbers a sequence under names with coordinates, and how they become means on the host.

Notable: numbers stay where they were computed until rows are asked for, and are then fetched in one go; a model has thousands
of names, so means of one shape are computed together.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Key = tuple[tuple[str, object], ...]


class Filed(NamedTuple):
    """The name of what is filed: the axis that numbers are along (None: no rows of them), how they become the layer's number
    (None: they do not), and the threshold of which they say whether they are above it."""

    metric: str
    key: Key
    axis: str | None
    reduce: str | None
    above: float | None = None


def on_host(filed: dict[Filed, list[Tensor]]) -> dict[Filed, np.ndarray]:
    """What is filed under each name, [B, N] in float64, not-a-number where a part has fewer than N; fetched in one go from
    each device. What was filed for several layers at once comes under a name for each."""
    parts = [part for parts in filed.values() for part in parts]
    here: dict[int, np.ndarray] = {}
    for device in dict.fromkeys(part.device for part in parts):
        there = [part for part in parts if part.device == device]
        flat_N = torch.cat([part.flatten() for part in there]).double().cpu().numpy()
        ends = np.cumsum([part.numel() for part in there])
        for part, values in zip(there, np.split(flat_N, ends[:-1]), strict=True):
            here[id(part)] = values.reshape(part.shape)
    found: dict[Filed, list[np.ndarray]] = defaultdict(list)
    for name, parts in filed.items():
        for part in parts:
            for own, values in _by_layer(name, here[id(part)]):
                found[own].append(values)
    return {name: _joined(parts) for name, parts in found.items()}


def _by_layer(name: Filed, values: np.ndarray) -> Iterator[tuple[Filed, np.ndarray]]:
    at = dict(name.key)
    layers = at.get("layer")
    if not isinstance(layers, tuple):
        yield name, values
        return
    for layer, own in zip(layers, np.split(values, len(layers)), strict=True):
        yield name._replace(key=key_of(at | {"layer": layer})), own


def fetched(tensors: list[Tensor]) -> Iterator[Tensor]:
    """The tensors on the host, fetched in one go from each device and type."""
    here: dict[int, Tensor] = {}
    for kind in dict.fromkeys((t.device, t.dtype) for t in tensors):
        there = [t for t in tensors if (t.device, t.dtype) == kind]
        flat_N = torch.cat([t.flatten() for t in there]).cpu()
        for t, values in zip(there, flat_N.split([t.numel() for t in there]), strict=True):
            here[id(t)] = values.view(t.shape)
    return iter([here[id(t)] for t in tensors])


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [
            p if p.shape[1] == width else np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=np.nan)
            for p in parts
        ]
    )


def means_of(found: dict[Filed, np.ndarray]) -> tuple[list[float | None], list[list[float]]]:
    """Of each, its mean over sequences of the head's mean or maximum, and its means over sequences by place; those of one
    shape together, since a model has thousands."""
    wholes, means = [None] * len(found), [[]] * len(found)
    alike = defaultdict(list)
    for i, (name, value_BN) in enumerate(found.items()):
        alike[value_BN.shape, name.reduce, name.above].append((i, value_BN))
    for (_, reduce, above), members in alike.items():
        value_MBN = np.stack([value_BN for _, value_BN in members])
        if above is not None:
            value_MBN = np.where(np.isnan(value_MBN), np.nan, value_MBN > above)
        by_place_MN = _mean(value_MBN, 1).tolist()
        whole_MB = None if reduce is None else _mean(value_MBN, 2) if reduce == "mean" else value_MBN.max(axis=2)
        whole_M = [None] * len(members) if whole_MB is None else _mean(whole_MB, 1).tolist()
        for (i, _), whole, by_place_N in zip(members, whole_M, by_place_MN, strict=True):
            wholes[i], means[i] = whole, by_place_N
    return wholes, means


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Over what is a number; not-a-number where nothing is."""
    is_number = values == values
    n = is_number.sum(axis=axis)
    return np.where(is_number, values, 0.0).sum(axis=axis) / np.where(n > 0, n, np.nan)


def key_of(coordinates: dict[str, object]) -> Key:
    return tuple(sorted(coordinates.items()))
