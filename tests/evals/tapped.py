"""What a pass of our own shows by its taps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gatelab.models.model import Model
from gatelab.nn.attention import GatedAttention


def queries_and_keys(model: Model, tokens: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Of each layer q [T, H, K] and k [T, G, K] of one sequence, turned."""
    seen: list[dict[str, Tensor]] = []
    handles = []
    for layer in (m for m in model.modules() if isinstance(m, GatedAttention)):
        own: dict[str, Tensor] = {}
        seen.append(own)
        for name in ("q", "k"):
            tap = getattr(layer, f"tap_{name}")
            handles.append(tap.register_forward_hook(lambda _m, _i, out, own=own, name=name: own.update({name: out})))
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    return [(own["q"][0], own["k"][0]) for own in seen]
