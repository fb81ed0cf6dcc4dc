"""bench decode: one query a sequence behind a cache, through an attention layer and through its attention alone, gated over
ungated.

Notable: the floor is every weight and the whole cache, read once; of attention alone it is the cache. The layer is rotary and
as wide as its heads together; on CUDA its step is timed as it is launched from Python and as one captured graph, which is what
serving does. A layer, and each candidate for its attention, is held to the numeric contract through the reference
implementation at every shape, in some sequences behind the cache that it is timed on. A shape in which the device fails keeps its
rows, which say so, and takes no earlier shape's times along; a CUDA error is the end of all later ones.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import torch

from ..nn.cache import KVCache
from . import decode_attention
from .candidates import often_compiled
from .captured import captured
from .decode_attention import Made, ends, layer_or_attention, of_ends
from .decode_layers import Layer, matched_width, own, qwen3_next, width_of
from .floors import Rates
from .held import held
from .plan import DecodePlan
from .room import no_room
from .timing import RUNS, Budget, Timing, Work, take_turns, why_not

NOTE = (
    "Floor: every weight of the layer and the whole cache, read once; of attention alone the cache. q, k, v and gate are one "
    "product. On CUDA a layer's step is timed as Python launches it and as one captured graph, and attention alone as one graph of "
    "as many layers as have room, each with a cache of its own, a layer's share of its time. Ungated of equal weights: a layer "
    "whose input is so much wider that it has the gated layer's weights, behind the same cache. Qwen3-Next's layer has norms of "
    "queries and keys besides, three products for one, and the cache of transformers, joined anew in every step."
)
WORK = "one query, a layer"
QWEN = "transformers, Qwen3-Next's layer"
# Random numbers that a cache is filled with, over and over; no multiple of a head's channels.
_DRAWN = (1 << 22) + 1
Layers = dict[tuple[str, str], Timing]
_CACHES, _LAYERS = 6e9, 24  # bytes and number of caches on CUDA, at most: many times the L2 cache


@dataclass(frozen=True)
class _Arm:
    """A layer to time: `name` besides how it is launched, and how it is made behind a cache."""

    gate: str
    name: str
    made: Callable[[KVCache], Layer]
    is_own: bool = True


def measure(plan: DecodePlan, rates: Rates, budget: Budget, tell: Callable[[str], None]) -> list[Timing]:
    """A row a batch, length of the cache, gate and way to launch."""
    shapes = [(batch, length) for length in plan.cache for batch in plan.batch]
    rows: list[Timing] = []
    made = decode_attention.candidates(plan)
    arms = _arms(plan)
    with often_compiled(plan.device):
        for i, (batch, length) in enumerate(shapes):
            tell(f"a step of {batch} sequences behind {length} tokens")
            until = budget.share(1 / (len(shapes) - i))
            layers = _untimed(plan, batch, length, arms)
            alone = decode_attention.rows_of(plan, batch, length, made)
            timed = partial(_of_shape, plan, batch, length, arms, layers, alone, made, rates, until)
            rows += _or_failed([*layers.values(), *alone], timed)
    return rows


def _arms(plan: DecodePlan) -> list[_Arm]:
    width = width_of(plan)
    arms = [_Arm(gate, "", partial(own, plan, gate, width=width)) for gate in plan.gates]
    for gate in plan.gates[1:]:  # none is the first
        if (wider := matched_width(plan, gate)) != width:
            arms.append(_Arm("none", f"equal weights to {gate}", partial(own, plan, "none", width=wider)))
    if "sdpa-elementwise" in plan.gates and _has_qwen():
        arms.append(_Arm("sdpa-elementwise", QWEN, partial(qwen3_next, plan), is_own=False))
    return arms


def _has_qwen() -> bool:
    try:
        return find_spec("transformers.models.qwen3_next") is not None
    except ImportError:
        return False


def _untimed(plan: DecodePlan, batch: int, length: int, arms: list[_Arm]) -> Layers:
    """Layers by arm and way to launch."""
    ways = ("eager", "graph") if plan.device == "cuda" else ("eager",)
    rows = {}
    for arm in arms:
        for way in ways:
            name = f"{way}, {arm.name}" if arm.name else way
            row = layer_or_attention(plan, batch, length, arm.gate, name, WORK)
            rows[_arm_key(arm), way] = replace(row, is_own=arm.is_own)
    return rows


def _lacking(rows: Iterable[Timing], why: str) -> list[Timing]:
    return [replace(row, contract=why) for row in rows]


def _or_failed(rows: Iterable[Timing], timed: Callable[[], list[Timing]]) -> list[Timing]:
    """The rows with their times, or with why there are none."""
    try:
        return timed()
    except RuntimeError as error:  # torch's, and so CUDA's
        return _lacking(rows, why_not(error))


def _of_shape(
    plan: DecodePlan, batch: int, length: int, arms: list[_Arm], rows: Layers, alone: list[Timing], made: Made,
    rates: Rates, until: Budget,
) -> list[Timing]:  # fmt: skip
    n_bytes = batch * length * _token_bytes(plan)
    n_layers = max(1, min(_LAYERS, int(_CACHES / n_bytes))) if plan.device == "cuda" else 1
    # Rotary tables, a sine and a cosine a token, are the layers' own; transformers' cache is another, and made anew.
    tables = 2 * 4 * len(arms) * length * plan.head_dim
    others = 2 * n_bytes * sum(not arm.is_own for arm in arms)
    # Of the contract two layers, a third in float64 and a copy or two to be called with; keys and values likewise.
    checked = 6 * (_layer_bytes(plan) + len(ends(batch)) * length * _token_bytes(plan))
    why = no_room(n_layers * n_bytes + others + tables + len(arms) * _layer_bytes(plan) + checked, plan.device)
    # Filled once, which is more than a pass.
    why = why or until.lacks((RUNS + 2) * rates.ms(n_bytes, 0) / 1e3)
    if why:
        return _lacking((*rows.values(), *alone), why)
    cache = _filled(plan, batch, length, n_layers)
    layers = _or_failed(rows.values(), partial(_layers_timed, plan, arms, rows, cache, n_bytes, rates, until))
    attention = partial(decode_attention.timed, plan, alone, made, cache, rates, until, share=1.0)
    return layers + _or_failed(alone, attention)


def _layers_timed(
    plan: DecodePlan, arms: list[_Arm], rows: Layers, cache: KVCache, n_bytes: int, rates: Rates, until: Budget,
) -> list[Timing]:  # fmt: skip
    works: dict[str, Work] = {}
    layers = {_arm_key(arm): arm.made(cache) for arm in arms}
    contracts = {key: _contract(layer, cache, until) for key, layer in layers.items()}
    for arm_key, way in rows:
        if contracts[arm_key] == "holds":
            layer = layers[arm_key]
            floor_ms = rates.ms(n_bytes + getattr(torch, plan.dtype).itemsize * layer.n_weights, 0)
            run = captured(layer.step) if way == "graph" else partial(_called, layer.step)
            works[f"{arm_key}, {way}"] = Work(run, floor_ms=floor_ms)
    turns = take_turns(works, torch.device(plan.device), budget=until, share=0.5)
    out = []
    for (arm_key, way), row in rows.items():
        key, base = f"{arm_key}, {way}", turns.times.get(f"none/, {way}")
        times = turns.times.get(key)
        if times is None:
            out.append(replace(row, contract=turns.failed.get(key, contracts[arm_key])))
            continue
        row = replace(row, contract="holds").timed(times, floor_ms=works[key].floor_ms)
        row = replace(row, tokens_per_s=1e3 * row.at["batch"] / row.median_ms)
        out.append(row if base is None else row.over(times, base, "ungated"))
        # The same times once more, over those of as many weights.
        equal = turns.times.get(f"none/equal weights to {row.gate}, {way}")
        if equal is not None and arm_key == f"{row.gate}/":
            row = replace(row, candidate=f"{row.candidate}, over equal weights")
            out.append(row.over(times, equal, "ungated of equal weights"))
    return out


def _arm_key(arm: _Arm) -> str:
    return f"{arm.gate}/{arm.name}"


def _called(step: Callable[[], object], _: object) -> None:
    step()


def _filled(plan: DecodePlan, batch: int, length: int, n_layers: int = 1) -> KVCache:
    """A cache with random keys and values and room for one token more."""
    cache = KVCache(
        n_layers=n_layers, batch=batch, max_seq_len=length + 1, n_kv_heads=plan.kv_heads, head_dim=plan.head_dim,
        dtype=getattr(torch, plan.dtype), device=plan.device,
    )  # fmt: skip
    for kept_N in (cache.k_LBSGK.view(-1), cache.v_LBSGK.view(-1)):
        drawn_N = kept_N[:_DRAWN].normal_()
        for part_N in kept_N.split(_DRAWN):
            part_N.copy_(drawn_N[: len(part_N)])
    cache.length = length
    return cache


def _token_bytes(plan: DecodePlan) -> int:
    """Of a token's key and value."""
    return getattr(torch, plan.dtype).itemsize * 2 * plan.kv_heads * plan.head_dim


def _layer_bytes(plan: DecodePlan) -> int:
    """Of the weights of q, k, v, gate and output."""
    width, narrow = width_of(plan), plan.kv_heads * plan.head_dim
    return getattr(torch, plan.dtype).itemsize * width * (2 * width + 2 * narrow)


def _contract(layer: Layer, cache: KVCache, budget: Budget) -> str:
    n = ends(len(cache.k_LBSGK[0]))
    k_BSGK, v_BSGK = cache.k_LBSGK[0, n, : cache.length], cache.v_LBSGK[0, n, : cache.length]
    arguments = layer.arguments | {"x_B1D": layer.arguments["x_B1D"][n], "k_BSGK": k_BSGK, "v_BSGK": v_BSGK}
    arguments = {name: t.detach() for name, t in arguments.items()}
    # Only the output is compared.
    arguments["grad_BTHK"] = torch.zeros_like(arguments["x_B1D"])
    return held(lambda **_: of_ends(layer.step()), layer.reference, arguments, budget)
