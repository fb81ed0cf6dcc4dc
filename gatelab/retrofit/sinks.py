"""What the first key is to each head of a model, measured on texts: its mass, its value, and the gate that it amounts to.

Notable: the logit of 1 − p₀ is LSE(the other keys) − z₀, and the other keys with the queries after the first are causal
attention themselves; so it is exact where p₀ rounds to 1, and no T×S matrix is built. In float32 at least.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..evals.disguise import GateFits, LayerFit
from ..evals.ridge import PENALTIES, Equations, Errors, chosen, features
from ..models.model import Model
from ..nn.attention import GatedAttention
from ..ops.gated_attention import gated_attention_and_lse
from ..record import Row
from .starts import attention_layers

_AT_ONCE, _HELD_BACK, _TESTED = 8, 4, 4


@dataclass(frozen=True)
class FirstKey:
    """The first key of one layer's H query and G kv heads: `drain_H` ‖v₀‖ over the median ‖v_j‖, j > 0; `value_GK` the mean
    v₀; `constancy_G` how much of E‖v₀‖² that mean accounts for, 1 where all texts have one v₀; `fit` the gate of the state x,
    with the mean p₀ of the test documents."""

    drain_H: Tensor
    value_GK: Tensor
    constancy_G: Tensor
    fit: LayerFit


@dataclass(frozen=True)
class FirstKeys:
    """Of all layers; `n_train` and `n_test` queries."""

    layers: tuple[FirstKey, ...]
    n_train: int
    n_test: int

    def heads(self, *, mass: float, drain: float) -> tuple[tuple[int, ...], ...]:
        """By layer the heads whose mean p₀ is above `mass` and whose v₀ is below `drain` of the median."""
        return tuple(
            tuple(((k.fit.mass_H > mass) & (k.drain_H < drain)).nonzero().flatten().tolist()) for k in self.layers
        )

    def rows(self, run: str = "") -> list[Row]:
        """`sink_gate_r2`, and by head `first_token_mass`, `value_drain` and `sink_value_constancy`."""
        rows = GateFits(tuple(k.fit for k in self.layers), self.n_train, self.n_test).rows(run)
        for layer, k in enumerate(self.layers):
            G, H = len(k.constancy_G), len(k.drain_H)
            of_head = {
                "first_token_mass": (k.fit.mass_H, "share"),
                "value_drain": (k.drain_H, "ratio"),
                "sink_value_constancy": (k.constancy_G.repeat_interleave(H // G), "share"),
            }
            rows += [
                Row(run, 0, "retrofit", metric, value, unit, layer, head)
                for metric, (values_H, unit) in of_head.items()
                for head, value in enumerate(values_H.tolist())
            ]
        return rows


@torch.no_grad()
def first_keys(model: Model, ids_NT: Tensor) -> FirstKeys:
    """Measured on all sequences; the gate fitted to three quarters of them, of which every fourth chooses the penalty, and
    tested on the rest (`gatelab.evals.ridge`).

    Args:
        model: with a plain softmax over all earlier keys (`starts.check_sinks`).
        ids_NT: eight sequences at least, of three ids at least.

    Raises:
        ValueError: fewer or shorter ones.
    """
    if len(ids_NT) < 2 * _HELD_BACK or ids_NT.shape[1] < 3:
        raise ValueError(
            f"{len(ids_NT)} sequences of {ids_NT.shape[1]} ids: the first key is measured on {2 * _HELD_BACK} at least, of "
            "three at least; give a longer text"
        )
    n_test = max(1, len(ids_NT) // _TESTED)
    train, test = ids_NT[n_test:], ids_NT[:n_test]
    n_held_back = len(train) // _HELD_BACK
    layers = range(model.config.n_layers)
    values = [_Values() for _ in layers]
    fitted, held_back = [Equations() for _ in layers], [Equations() for _ in layers]

    def take(sums: list[Any]) -> Callable[[int, Tensor, Tensor, Tensor], None]:
        def layer_ran(layer: int, x_NF: Tensor, openness_NH: Tensor, v_BSGK: Tensor) -> None:
            values[layer].add(v_BSGK)
            sums[layer].add(x_NF, openness_NH)

        return layer_ran

    _read(model, train[n_held_back:], take(fitted))
    _read(model, train[:n_held_back], take(held_back))
    errors = [Errors(*chosen(f, h, PENALTIES)) for f, h in zip(fitted, held_back, strict=True)]
    _read(model, test, take(errors))
    H = model.config.n_heads
    found = tuple(
        values[layer].first_key(H, LayerFit(layer, e.weight_FH, e.penalty_H, e.r2_H(), 1 - e.mean_score_H))
        for layer, e in enumerate(errors)
    )
    return FirstKeys(found, fitted[0].n + held_back[0].n, errors[0].n)


def _read(model: Model, ids_NT: Tensor, layer_ran: Callable[[int, Tensor, Tensor, Tensor], None]) -> None:
    """Runs the sequences, and calls layer_ran(layer, features_NF, logit of 1 − p₀ by head_NH, v_BSGK) after each layer."""
    handles, computed = [], model.compute_dtype
    for index, layer in enumerate(attention_layers(model)):
        handles += _watched(layer, lambda *seen, index=index: layer_ran(index, *seen))
    # Of a trained model's float32 weights: a sum of squares of 16-bit numbers would be one of their errors.
    model.compute_dtype = None
    try:
        for part_BT in ids_NT.split(_AT_ONCE):
            model.hidden(part_BT.to(model.head.weight.device))
    finally:
        model.compute_dtype = computed
        for handle in handles:
            handle.remove()


def _watched(layer: GatedAttention, ran: Callable[[Tensor, Tensor, Tensor], None]) -> list[Any]:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: seen.update({name: output})

    def finish(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        x_BTD, q_BTHK, k_BSGK, v_BSGK = inputs[0], seen["q"], seen["k"], seen["v"]
        n_others_T = torch.arange(1, x_BTD.shape[1], device=x_BTD.device)
        features_BTF = features(x_BTD[:, 1:], n_others_T)
        openness_BTH = openness_logits(q_BTHK, k_BSGK, v_BSGK)
        ran(features_BTF.flatten(0, 1), openness_BTH.double().flatten(0, 1), v_BSGK)
        seen.clear()

    taps = {"q": layer.tap_q, "k": layer.tap_k, "v": layer.tap_v}
    return [
        *(tap.register_forward_hook(keep(name)) for name, tap in taps.items()),
        layer.register_forward_hook(finish),
    ]


def openness_logits(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor) -> Tensor:
    """The logit of 1 − p₀ of every query but the first, LSE(other keys) − z₀, [B, T − 1, H]."""
    R = q_BTHK.shape[2] // k_BSGK.shape[2]
    rest = (q_BTHK[:, 1:].contiguous(), k_BSGK[:, 1:].contiguous(), v_BSGK[:, 1:].contiguous())
    _, lse_BHT = gated_attention_and_lse(*rest)
    first_BHK = k_BSGK[:, 0].repeat_interleave(R, dim=1)
    first_BTH = torch.einsum("bthk,bhk->bth", q_BTHK[:, 1:], first_BHK) / math.sqrt(q_BTHK.shape[3])
    return lse_BHT.transpose(1, 2) - first_BTH


class _Values:
    """Sums over documents of the first value, its square, and its norm over the others' median."""

    def __init__(self) -> None:
        self.n, self.value_GK, self.square_G, self.drain_G = 0, 0.0, 0.0, 0.0

    def add(self, v_BSGK: Tensor) -> None:
        norm_BSG = torch.linalg.vector_norm(v_BSGK.double(), dim=-1)
        self.n += len(v_BSGK)
        self.value_GK = self.value_GK + v_BSGK[:, 0].double().sum(dim=0)
        self.square_G = self.square_G + norm_BSG[:, 0].square().sum(dim=0)
        self.drain_G = self.drain_G + (norm_BSG[:, 0] / norm_BSG[:, 1:].median(dim=1).values).sum(dim=0)

    def first_key(self, n_heads: int, fit: LayerFit) -> FirstKey:
        mean_GK = self.value_GK / self.n
        constancy_G = mean_GK.square().sum(dim=-1) * self.n / self.square_G
        drain_G = self.drain_G / self.n
        return FirstKey(drain_G.repeat_interleave(n_heads // len(drain_G)), mean_GK, constancy_G, fit)
