"""bench decode: one query a sequence through an attention layer with a cache, gated over ungated.

Notable: the floor is every weight and the whole cache, read once. The layer is rotary and as wide as its heads together;
on CUDA its step is timed as it is launched from Python and as one captured graph, which is what serving does. A gated
layer is held to the numeric contract through the reference implementation, on a short cache.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ..nn.attention import GatedAttention
from ..nn.cache import KVCache
from .candidates import Candidate
from .floors import Rates
from .ops import held
from .plan import DecodePlan
from .room import no_room
from .timing import RUNS, Budget, Timing, Work, take_turns

NOTE = (
    "Floor: every weight of the layer and the whole cache, read once. q, k, v and gate are one product. On CUDA a step is timed "
    "as Python launches it and as one captured graph."
)
# Random numbers that a cache is filled with, over and over; no multiple of a head's channels.
_DRAWN = (1 << 22) + 1
_CHECKED = 1024  # tokens in the contract's cache, at most; the kernels that decode cut so many into several parts


def measure(plan: DecodePlan, rates: Rates, budget: Budget, tell: Callable[[str], None]) -> list[Timing]:
    """A row a batch, length of the cache, gate and way to launch."""
    shapes = [(batch, length) for length in plan.cache for batch in plan.batch]
    contracts = {gate: _contract(plan, gate, budget) for gate in plan.gates}
    rows: list[Timing] = []
    for i, (batch, length) in enumerate(shapes):
        tell(f"a step of {batch} sequences behind {length} tokens")
        rows += _of_shape(plan, batch, length, contracts, rates, budget, share=1 / (len(shapes) - i))
    return rows


def _of_shape(
    plan: DecodePlan, batch: int, length: int, contracts: dict[str, str], rates: Rates, budget: Budget, *, share: float
) -> list[Timing]:
    device, dtype = torch.device(plan.device), getattr(torch, plan.dtype)
    ways = ("eager", "graph") if plan.device == "cuda" else ("eager",)
    rows = {(g, way): _row(plan, batch, length, g, way, contracts[g]) for g in plan.gates for way in ways}
    # Rotary tables, a sine and a cosine a token, are the gates' own; the cache is all gates'.
    n_bytes = dtype.itemsize * 2 * batch * length * plan.kv_heads * plan.head_dim
    tables = 2 * 4 * len(plan.gates) * length * plan.head_dim
    why = no_room(n_bytes + tables + len(plan.gates) * _layer_bytes(plan), plan.device)
    # Filled once, which is more than a pass.
    why = why or budget.lacks((RUNS + 2) * rates.ms(n_bytes, 0) / 1e3)
    if why:
        return [replace(row, contract=why) if row.contract == "holds" else row for row in rows.values()]
    works, floors, cache = {}, {}, _filled(plan, batch, length)
    for gate in plan.gates:
        if contracts[gate] != "holds":
            continue
        layer = _layer(plan, gate, length + 1)
        x_B1D = torch.randn(batch, 1, plan.heads * plan.head_dim, device=device, dtype=dtype)
        step = partial(_step, layer, x_B1D, cache)
        n_all = n_bytes + dtype.itemsize * sum(p.numel() for p in layer.parameters())
        for way in ways:
            floors[gate, way] = rates.ms(n_all, 0)
            works[f"{gate}, {way}"] = Work(step if way == "eager" else _captured(step), floor_ms=floors[gate, way])
    turns = take_turns(works, device, budget=budget, share=share)
    out = []
    for (gate, way), row in rows.items():
        times, base = turns.times.get(f"{gate}, {way}"), turns.times.get(f"none, {way}")
        if times is None:
            out.append(replace(row, contract=turns.failed.get(f"{gate}, {way}", row.contract)))
            continue
        row = row.timed(times, floor_ms=floors[gate, way])
        row = replace(row, tokens_per_s=1e3 * batch / row.median_ms)
        out.append(row if base is None else row.over(times, base, "ungated"))
    return out


def _row(plan: DecodePlan, batch: int, length: int, gate: str, way: str, contract: str) -> Timing:
    at: dict[str, Any] = {name: getattr(plan, name) for name in ("heads", "kv_heads", "head_dim", "dtype")}
    shape = f"{batch} behind {length:,}, {plan.heads}/{plan.kv_heads}×{plan.head_dim}, {plan.dtype}"
    at |= {"batch": batch, "cache": length}
    return Timing("decode", shape, gate, way, "one query", contract, is_own=True, at=at)


def _layer(plan: DecodePlan, gate: str, max_seq_len: int, *, impl: str = "auto") -> GatedAttention:
    torch.manual_seed(0)
    layer = GatedAttention(
        d_model=plan.heads * plan.head_dim, n_heads=plan.heads, n_kv_heads=plan.kv_heads, head_dim=plan.head_dim,
        gate=gate, max_seq_len=max_seq_len, impl=impl,
    )  # fmt: skip
    # Rotary tables stay in float32, as they are in a model.
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(getattr(torch, plan.dtype))
    layer.is_packed = True
    return layer.to(plan.device).requires_grad_(False)


def _filled(plan: DecodePlan, batch: int, length: int) -> KVCache:
    """A cache with random keys and values and room for one token more."""
    cache = KVCache(
        n_layers=1, batch=batch, max_seq_len=length + 1, n_kv_heads=plan.kv_heads, head_dim=plan.head_dim,
        dtype=getattr(torch, plan.dtype), device=plan.device,
    )  # fmt: skip
    for kept_N in (cache.k_LBSGK.view(-1), cache.v_LBSGK.view(-1)):
        drawn_N = kept_N[:_DRAWN].normal_()
        for part_N in kept_N.split(_DRAWN):
            part_N.copy_(drawn_N[: len(part_N)])
    cache.length = length
    return cache


@torch.no_grad()
def _step(layer: GatedAttention, x_B1D: Tensor, cache: KVCache, _: None = None) -> Tensor:
    # The cache is not advanced, so that every step is the same one.
    return layer(x_B1D, cache=cache)


def _captured(step: Callable[[], Tensor]) -> Callable[[None], None]:
    """The step as one CUDA graph, captured when it is first run."""
    graphs: list[torch.cuda.CUDAGraph] = []

    def replay(_: None) -> None:
        if not graphs:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            graphs.append(graph)
        graphs[0].replay()

    return replay


def _layer_bytes(plan: DecodePlan) -> int:
    """Of the weights of q, k, v, gate and output."""
    width, narrow = plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim
    return getattr(torch, plan.dtype).itemsize * width * (2 * width + 2 * narrow)


def _contract(plan: DecodePlan, gate: str, budget: Budget) -> str:
    length = min(_CHECKED, *plan.cache)
    # Two layers, a third in float64 and a copy or two to be called with.
    if why := no_room(6 * _layer_bytes(plan), plan.device):
        return why
    layer, reference = (_layer(plan, gate, length + 1, impl=impl) for impl in ("auto", "reference"))
    cache = _filled(plan, 2, length)
    x_B1D = torch.randn(2, 1, plan.heads * plan.head_dim, device=plan.device, dtype=cache.k_LBSGK.dtype)
    arguments = dict(layer.named_parameters()) | {"x_B1D": x_B1D, "k_LBSGK": cache.k_LBSGK, "v_LBSGK": cache.v_LBSGK}
    # Only the output is compared.
    arguments = {name: t.detach() for name, t in arguments.items()} | {"grad_BTHK": torch.zeros_like(x_B1D)}
    return held(Candidate("auto", partial(_through, layer)), partial(_through, reference), arguments, budget)


@torch.no_grad()
def _through(layer: GatedAttention, **arguments: Tensor) -> Tensor:
    """A step of the layer with the weights and the cache that are given, in their type; without gradients, as the step that
    is timed."""
    k_LBSGK, v_LBSGK = arguments.pop("k_LBSGK"), arguments.pop("v_LBSGK")
    x_B1D = arguments.pop("x_B1D")
    L, B, S, G, K = k_LBSGK.shape
    cache = KVCache(
        n_layers=L, batch=B, max_seq_len=S, n_kv_heads=G, head_dim=K, dtype=k_LBSGK.dtype, device=k_LBSGK.device
    )
    cache.k_LBSGK.copy_(k_LBSGK)
    cache.v_LBSGK.copy_(v_LBSGK)
    cache.length = S - 1
    return functional_call(layer, arguments, (x_B1D,), {"cache": cache})
