"""Tensor parallel: the ranks of a group share each layer, attention head by head with its gates, feed-forward layers channel by
channel.

Notable: a rank's layer is the layer of one process with fewer heads. What enters is whole, what leaves is a sum over ranks, and
in between every rank computes a summand: so whatever is not linear in the heads must be made whole there, and only that is
written down here (a gate that reads all heads, a norm over all heads, biases that are added once).
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ...config.gate_axes import SITES
from ...config.normaliser import Heads
from ...nn.attention import GatedAttention
from ...nn.gate import Gate
from ...nn.kv_experts import RoutedHeads
from ...nn.linear import HeadLinear, Linear
from ...nn.mlp import MLP
from ...nn.moe import ExpertMLP
from ...nn.norm import Norm
from ..mesh import Mesh
from .exchange import enter, gather, leave, total
from .parts import Parts


def share_layers(model: nn.Module, mesh: Mesh, parts: Parts) -> None:
    """Make every layer this rank's part of it, in place; what lies outside of layers stays whole."""
    layers = [m for m in model.modules() if isinstance(m, GatedAttention | ExpertMLP | MLP)]
    inner = {id(m.shared) for m in layers if isinstance(m, ExpertMLP)}
    for layer in layers:
        if id(layer) in inner:
            continue
        if isinstance(layer, GatedAttention):
            share_heads(layer, mesh.tensor, parts)
        elif isinstance(layer, MLP):
            _share_mlp(layer, mesh, parts)
        else:
            _share_experts(layer, mesh, parts)
        make_part(layer, mesh.tensor, parts)


def share_heads(layer: GatedAttention, group: ProcessGroup, parts: Parts) -> None:
    """Make an attention layer hold this rank's heads; `make_part` then makes it return the sum of all ranks'."""
    _Attention(layer, group, parts).share()


def make_part(layer: nn.Module, group: ProcessGroup, parts: Parts) -> None:
    """Make a layer whose weights were shared out take and return what the whole one does."""
    parts.sum_over(layer)
    layer.computes, layer.group = False, group
    layer.__class__ = _part_of(type(layer))


@cache
def _part_of(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of layers that are a part of one: one a kind, and no hooks, so that compiled code of one layer serves the next."""
    return type(kind.__name__, (PartOfLayer, kind), {"__module__": kind.__module__})


class PartOfLayer(nn.Module):
    """A layer that holds one rank's part of it: takes what the whole layer takes, and returns the sum of all ranks' summands."""

    group: ProcessGroup
    computes: bool

    def forward(self, x_BTD: Tensor, *rest: Any, **named: Any) -> Tensor:
        """As the layer's own; the hidden state, a context and a relative bias enter it."""
        for name in ("context_BSD", "bias_BHTS"):
            if named.get(name) is not None:
                named[name] = enter(named[name], self.group)
        if named.get("bias_BHTS") is not None and named["bias_BHTS"].shape[1] > 1:
            first = self.group.rank() * self.n_heads
            named["bias_BHTS"] = named["bias_BHTS"][:, first : first + self.n_heads]
        self.computes = True
        try:
            part = super().forward(enter(x_BTD, self.group), *rest, **named)
        finally:
            self.computes = False
        return leave(part, self.group)


class _Attention:
    """One attention layer on its way to being this rank's part."""

    def __init__(self, layer: GatedAttention, group: ProcessGroup, parts: Parts):
        self.layer, self.parts, self.group = layer, parts, group
        n, rank, H, G = group.size(), group.rank(), layer.n_heads, layer.n_kv_heads
        self.n, self.rank, self.divides = n, rank, G % n == 0
        # Ranks that share a kv head are neighbours, and so are their query heads.
        self.heads = {"H": slice(rank * H // n, (rank + 1) * H // n)}
        first = rank * G // n
        self.heads["G"] = slice(first, first + max(1, G // n))
        self.all = {"H": H, "G": G}

    def share(self) -> None:
        layer, K = self.layer, self.layer.head_dim
        for site, gate in layer.gates.items():
            self._share_gate(site, gate)
        self._map(layer.q_proj, "H", K)
        for projection in (layer.k_proj, layer.v_proj):
            if isinstance(projection, RoutedHeads):
                self._share_routed(projection)
            else:
                self._map(projection, "G", K)
        self.parts.slice(layer.o_proj, "weight", 1)
        self.parts.see(layer, layer.o_proj, "bias", lambda bias: bias / self.n)
        for norm, side in ((layer.q_norm, "H"), (layer.k_norm, "G")):
            if norm is not None and norm.width == self.all[side] * K and norm.width != K:
                self._share_norm(norm, side)
        if layer.sink is not None:
            for name in layer.sink.names:
                letter = name.rpartition("_")[2][0]  # as in sink_logit_H
                if letter in self.heads:
                    self._hold(layer.sink, name, letter)
        if layer.hidden_H is not None:
            own = self.heads["H"]
            layer.hidden_H = layer.hidden_H[own]
            layer.first_hidden_from = tuple(h - own.start for h in layer.first_hidden_from if own.start <= h < own.stop)
        layer.n_heads, layer.n_kv_heads = self._count("H"), self._count("G")
        layer.heads = Heads(layer.n_heads, layer.n_kv_heads, K, layer.layer, layer.heads.max_seq_len)
        if layer.sink is not None:
            layer.sink.heads = layer.heads

    def _count(self, side: str) -> int:
        return self.heads[side].stop - self.heads[side].start

    def _hold(self, module: nn.Module, name: str, side: str, width: int = 1) -> None:
        """A weight whose first axis counts heads of so many channels: this rank's, or sight of them."""
        if side == "H" or self.divides:
            self.parts.slice(module, name, 0)
            return
        rows = slice(self.heads[side].start * width, self.heads[side].stop * width)
        self.parts.see(self.layer, module, name, lambda whole: whole[rows])

    def _map(self, projection: Linear, side: str, width: int) -> None:
        for name in ("weight", "bias"):
            self._hold(projection, name, side, width)
        projection.out_features = self._count(side) * width

    def _share_routed(self, projection: RoutedHeads) -> None:
        own, shape = self.heads["G"], (projection.n_experts, projection.n_heads, projection.head_dim)
        for name in ("weight", "bias"):
            self.parts.see(
                self.layer, projection.proj, name, lambda whole: whole.unflatten(0, shape)[:, own].flatten(0, 2)
            )
        self.parts.see(
            self.layer, projection.router, "weight", lambda whole: whole.unflatten(0, shape[:2])[:, own].flatten(0, 1)
        )
        projection.n_heads = self._count("G")

    def _share_norm(self, norm: Norm, side: str) -> None:
        self._hold(norm, "weight", side, self.layer.head_dim)
        norm.width = self._count(side) * self.layer.head_dim
        kind = type(norm)
        norm.__class__ = type("NormOfAllHeads", (NormOfAllHeads, kind), {"__module__": kind.__module__})
        norm.group = self.group

    def _share_gate(self, site: str, gate: Gate) -> None:
        side, spec = SITES[site].heads, gate.spec
        first_map = None if not spec.has_projection else gate.g_proj if gate.g_down is None else gate.g_down
        if spec.source_kind in ("value", "output", "hybrid"):
            n_before = self.layer.q_proj.in_features if spec.source_kind == "hybrid" else 0
            n_parts = self.n if spec.source_kind != "value" else min(self.n, self.all["G"])
            first_map.register_forward_pre_hook(partial(_gather_heads, self.group, n_before, n_parts))
        if site == "out" and spec.form == "add":
            # Added once, not by every rank.
            gate.register_forward_hook(lambda _gate, given, out: given[0] + (out - given[0]) / self.n)
        if side == "1" or spec.sharing == "shared":
            return  # of all heads: every rank has it whole
        own, width = self.heads[side], gate.shape.width
        if not spec.has_projection:
            self._hold(gate, "constant_HK", side)
        for of_heads in (gate.g_down, getattr(gate, "g_proj", None)):
            if isinstance(of_heads, HeadLinear):
                for name in ("weight", "bias"):
                    self._hold(of_heads, name, side)
        if isinstance(first_map, HeadLinear):
            columns = slice(own.start * first_map.in_features, own.stop * first_map.in_features)
            first_map.register_forward_pre_hook(lambda _map, given: (given[0][..., columns],))
        elif spec.has_projection:
            self._map(gate.g_proj, side, width)
        gate.shape = replace(gate.shape, heads=self._count(side))


def _gather_heads(group: ProcessGroup, n_before: int, n_parts: int, _map: nn.Module, given: tuple[Tensor]) -> tuple:
    """What a gate reads of all heads, of which this rank has its own after the first `n_before` channels; where kv heads are
    fewer than ranks, each is taken once."""
    own = given[0][..., n_before:]
    of_all = gather(own, group)
    if n_parts < group.size():
        of_all = of_all.unflatten(-1, (n_parts, -1, own.shape[-1]))[..., 0, :].flatten(-2)
    return (torch.cat([given[0][..., :n_before], of_all], dim=-1),)


class NormOfAllHeads(Norm):
    """RMSNorm over the channels of all heads, of which a rank has some."""

    group: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type; [..., H, K] where a rank has one head, else [..., H·K]."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # Kv heads that several ranks have are counted as often each.
        mean = total(wide.square().mean(dim=-1, keepdim=True), self.group) / self.group.size()
        return (wide * (mean + self.eps).rsqrt() * self.weight).to(x.dtype)


def _share_mlp(layer: MLP, mesh: Mesh, parts: Parts, outer: nn.Module | None = None) -> None:
    outer = layer if outer is None else outer
    for into in (layer.w1, getattr(layer, "w3", None)):
        if into is not None:
            parts.slice(into, "weight", 0)
            parts.slice(into, "bias", 0)
            into.out_features //= mesh.n_tensor
    parts.slice(layer.w2, "weight", 1)
    parts.see(outer, layer.w2, "bias", lambda bias: bias / mesh.n_tensor)


def _share_experts(layer: ExpertMLP, mesh: Mesh, parts: Parts) -> None:
    """Each rank has some channels of every expert; routers compute the same on all ranks."""
    for into in (layer.w1, layer.w3):
        parts.slice(into, "weight", 1)
        parts.slice(into, "bias", 1)
    parts.slice(layer.w2, "weight", 2)
    parts.see(layer, layer.w2, "bias", lambda bias: bias / mesh.n_tensor)
    if layer.shared is not None:
        _share_mlp(layer.shared, mesh, parts, layer)
