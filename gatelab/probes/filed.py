"""What probes file: numbers a sequence under names with coordinates, and how they become means on the host.

Notable: numbers stay where they were computed until rows are asked for, and are then fetched in one go; a model has thousands
of names, so means of one shape are computed together, and layers that were filed together stay so.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Key = tuple[tuple[str, object], ...]


class Filed(NamedTuple):
    """The name of what is filed: its layers, one after the other in the batch (None: of no layer), and its other coordinates;
    the axis that numbers are along (None: no rows of them), how they become the layer's number (None: they do not), and the
    threshold of which they say whether they are above it."""

    metric: str
    layers: tuple[int | None, ...]
    key: Key
    axis: str | None
    reduce: str | None
    above: float | None = None


def filed_as(
    metric: str, where: dict[str, object], axis: str | None, reduce: str | None, above: float | None = None
) -> Filed:
    """The name of what is filed at these coordinates, of which `layer` may be several."""
    layer = where.get("layer")
    layers = layer if isinstance(layer, tuple) else (layer,)
    return Filed(metric, layers, key_of({k: v for k, v in where.items() if k != "layer"}), axis, reduce, above)


def key_of(coordinates: dict[str, object]) -> Key:
    return tuple(sorted(coordinates.items()))


def fetched(tensors: list[Tensor]) -> Iterator[Tensor]:
    """The tensors on the host in float64, in one go from each device; one that is given twice is fetched once."""
    here: dict[int, Tensor] = {}
    for device in dict.fromkeys(t.device for t in tensors):
        alike: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for t in {id(t): t for t in tensors if t.device == device}.values():
            alike[t.dtype].append(t)
        # Type by type: joined with float32, whole numbers would be rounded to it.
        parts = [torch.cat([t.flatten() for t in own]).double() for own in alike.values()]
        there = [t for own in alike.values() for t in own]
        flat_N = torch.cat(parts).cpu()
        for t, values in zip(there, flat_N.split([t.numel() for t in there]), strict=True):
            here[id(t)] = values.view(t.shape)
    return iter([here[id(t)] for t in tensors])


def by_layer(filed: dict[Filed, list[Tensor]], n_models: int = 1) -> dict[Filed, np.ndarray]:
    """What is filed on the host under each name, [L, M, B, N] of its L layers and M stacked models, which have equal parts of
    every batch; not-a-number where a part has fewer than N. What a layer has under several names that differ in the layers
    beside it comes under one of its own."""
    layers: dict[Filed, list[int | None]] = defaultdict(list)
    for name in filed:
        layers[name._replace(layers=())] += name.layers
    is_mixed = {name: len(set(own)) < len(own) for name, own in layers.items()}
    found: dict[Filed, list[np.ndarray]] = defaultdict(list)
    for name, parts in filed.items():
        for part in parts:
            value_LMBN = part.numpy().reshape(len(name.layers), n_models, -1, part.shape[1])
            if is_mixed[name._replace(layers=())]:
                for i, layer in enumerate(name.layers):
                    found[name._replace(layers=(layer,))].append(value_LMBN[i : i + 1])
            else:
                found[name].append(value_LMBN)
    return {name: _joined(parts) for name, parts in found.items()}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    width = max(part.shape[3] for part in parts)
    if any(part.shape[3] < width for part in parts):
        parts = [np.pad(p, ((0, 0), (0, 0), (0, 0), (0, width - p.shape[3])), constant_values=np.nan) for p in parts]
    return np.concatenate(parts, axis=2)


def means_of(found: dict[Filed, np.ndarray]) -> Iterator[tuple[list[list[float | None]], list[list[list[float]]]]]:
    """Of each name in order, by layer and model: the mean over sequences of the head's mean or maximum (None where there
    is neither), and the means over sequences by place; names of one shape together, since a model has thousands."""
    alike = defaultdict(list)
    for name, value_LMBN in found.items():
        alike[value_LMBN.shape, name.reduce, name.above is None].append(name)
    means: dict[Filed, tuple[list[list[float | None]], list[list[list[float]]]]] = {}
    for ((L, M, *_), reduce, is_value), names in alike.items():
        value_ALMBN = np.stack([found[name] for name in names])
        if not is_value:
            above_A1111 = np.array([name.above for name in names])[:, None, None, None, None]
            value_ALMBN = np.where(np.isnan(value_ALMBN), np.nan, value_ALMBN > above_A1111)
        by_place_ALMN = _mean(value_ALMBN, 3).tolist()
        whole_ALM = [[[None] * M] * L] * len(names)
        if reduce is not None:
            whole_ALMB = _mean(value_ALMBN, 4) if reduce == "mean" else value_ALMBN.max(axis=4)
            whole_ALM = _mean(whole_ALMB, 3).tolist()
        means |= zip(names, zip(whole_ALM, by_place_ALMN, strict=True), strict=True)
    return (means[name] for name in found)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Over what is a number; not-a-number where nothing is."""
    is_number = values == values
    if is_number.all():
        return values.sum(axis=axis) / values.shape[axis]
    n = is_number.sum(axis=axis)
    return np.where(is_number, values, 0.0).sum(axis=axis) / np.where(n > 0, n, np.nan)
