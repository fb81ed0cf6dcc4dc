"""Sink-to-gate surgery: the first key is hidden from the heads that use it as a sink, and a gate does what it did.

Attention is exactly (1 − p₀)·(attention without the first key) + p₀·v₀. With g = σ(w·x + b) fitted to 1 − p₀ and the mean
v̄ of v₀ in its place, W_O (g·y + (1 − g)·v̄) = W_O g·(y − v̄) + W_O v̄, and weights that sum to one make y − v̄ the attention
over v − v̄: so v̄ goes into the biases of W_V and W_O, and nothing but a gate is added.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ..config import GateSpec
from ..models.model import Model
from ..nn.attention import GatedAttention
from .sinks import FirstKey, FirstKeys
from .starts import attention_layers, gated

Reads = Literal["token", "constant", "open"]
# What is compared right after the surgery: (what the gates read, what stands for v₀).
VARIANTS: tuple[tuple[Reads, str], ...] = (
    ("open", "none"), ("constant", "none"), ("token", "none"), ("constant", "mean"), ("token", "mean"),
)  # fmt: skip


@torch.no_grad()
def operated(
    model: Model,
    gate: GateSpec,
    found: FirstKeys,
    heads: tuple[tuple[int, ...], ...],
    *,
    value: str,
    reads: Reads = "token",
    seed: int = 0,
) -> Model:
    """The model with the first key hidden from these heads (by layer) and a gate in its place.

    Args:
        gate: σ(w·x + b), as `config.retrofit.Surgery` takes it; of an elementwise one all channels of a head start alike.
        value: `mean` puts the mean first value where each text's own was, `none` drops it.
        reads: `token` is the fitted gate, `constant` the head's mean of 1 − p₀, `open` no gate: the first key is hidden and
            that is all.

    Raises:
        ValueError: no heads.
    """
    if not any(heads):
        most = max(float(k.fit.mass_H.max()) for k in found.layers)
        raise ValueError(
            f"no head takes the first key for a sink (the largest mean mass is {most:.2f}); lower start.mass, raise "
            "start.drain, or take start=identity"
        )
    out = gated(model, gate, seed=seed, hidden=heads, bias=value == "mean")
    for layer, key, hidden in zip(attention_layers(out), found.layers, heads, strict=True):
        _start(layer, key, hidden, reads)
        if value == "mean":
            _keep_value(layer, key.value_GK, hidden)
        # The other heads stand at ½, and twice as much is read of them: powers of two round nothing.
        for h in range(layer.n_heads):
            if h not in hidden or reads == "open":
                layer.o_proj.weight[:, h * layer.head_dim : (h + 1) * layer.head_dim] *= 2
    return out


def _start(layer: GatedAttention, key: FirstKey, hidden: tuple[int, ...], reads: Reads) -> None:
    projection = layer.gates["sdpa"].g_proj
    D = projection.in_features
    weight_HWD = torch.zeros(layer.n_heads, layer.gates["sdpa"].shape.width, D, dtype=torch.float64)
    bias_HW = torch.zeros(weight_HWD.shape[:2], dtype=torch.float64)
    for h in hidden:
        if reads == "token":
            fitted_F = key.fit.weight_FH["token"][:, h].cpu()
            weight_HWD[h], bias_HW[h] = fitted_F[:D], fitted_F[-1]
        elif reads == "constant":
            bias_HW[h] = torch.logit(1 - key.fit.mass_H[h].cpu().double(), eps=1e-6)
    projection.weight.copy_(weight_HWD.flatten(0, 1))
    projection.bias.copy_(bias_HW.flatten())


def _keep_value(layer: GatedAttention, value_GK: Tensor, hidden: tuple[int, ...]) -> None:
    """v − v̄ in the kv heads that the named heads read, and W_O v̄ for every head that reads them. Before W_O is doubled."""
    R, K = layer.n_heads // layer.n_kv_heads, layer.head_dim
    groups = sorted({h // R for h in hidden})
    weight_DHK = layer.o_proj.weight.unflatten(1, (layer.n_heads, K))
    for g in groups:
        mean_K = value_GK[g].to(weight_DHK)
        layer.v_proj.bias[g * K : (g + 1) * K] -= mean_K
        layer.o_proj.bias += torch.einsum("dhk,k->d", weight_DHK[:, g * R : (g + 1) * R], mean_K)


def variants(
    model: Model, gate: GateSpec, found: FirstKeys, heads: tuple[tuple[int, ...], ...]
) -> Iterator[tuple[str, Model]]:
    """The model after the surgery, with and without the fitted gate and the mean first value, by their words."""
    for reads, value in VARIANTS:
        yield f"gate {reads}, value {value}", operated(model, gate, found, heads, value=value, reads=reads)
