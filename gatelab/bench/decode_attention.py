"""The attention of a decoding step alone: one query a sequence against a cache, by our kernels and by the peers that are here.

Notable: on CUDA a work is one captured graph of as many layers as fit, each with a cache of its own, so that nothing of a cache
is in L2; a time is that of a layer. The floor is a layer's keys and values read once. Peers that are compiled are candidates on
CUDA alone. Each is held to the numeric contract through `gated_attention`, behind the cache that it is timed on.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.gate import GateSpec
from ..nn.cache import KVCache
from ..ops.gate_apply import apply_gate
from ..ops.gated_attention import gated_attention
from ..ops.gated_decode import choose, gated_decode
from .candidates import Call, Candidate
from .captured import captured
from .floors import Rates
from .held import held
from .plan import DecodePlan
from .timing import Budget, Timing, Work, take_turns

WORK = "one query, attention alone"
Made = dict[tuple[str, str], Candidate]


def candidates(plan: DecodePlan) -> Made:
    """By gate and name, ours first: what is left out when the time is over is what comes last."""
    device = torch.device(plan.device)
    own, peers = {}, {}
    for word in plan.gates:
        spec = _spec(word)
        query, keys = _empty(plan, plan.heads), _empty(plan, plan.kv_heads)
        name = f"gatelab {choose('auto', query, keys, keys, spec)}"
        own[word, name] = Candidate(name, partial(_own, spec=spec), is_own=True)
        made = [Candidate("torch SDPA" if spec is None else "torch SDPA, eager gate", partial(_sdpa, spec=spec))]
        if device.type == "cuda":
            made += [Candidate("torch.compile", _compiled(spec)), Candidate("FlexAttention", _flex(spec))]
        peers |= {(word, c.name): c for c in made}
    return own | peers


def ends(batch: int) -> list[int]:
    """The sequences that are held to the contract: the first, one in the middle and the last."""
    return sorted({0, batch // 2, batch - 1})


def of_ends(out_BTN: Tensor) -> Tensor:
    """Their output, none of it a number where some of all is not finite."""
    kept = out_BTN[ends(len(out_BTN))]
    return kept if out_BTN.isfinite().all() else torch.full_like(kept, torch.nan)


@torch.no_grad()
def _contract(call: Call, given: dict[str, Any], word: str, budget: Budget) -> str:
    """Of what is timed, given what it is timed on."""
    n = ends(len(given["q_B1HK"]))
    few = {name: t[n] for name, t in given.items() if t is not None}
    # There is no gradient to compare.
    few["grad_BTHK"] = torch.zeros_like(few["q_B1HK"])
    return held(lambda **_: of_ends(call(**given)), partial(_whole, spec=_spec(word)), few, budget)


def _whole(
    q_B1HK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, logits: Tensor | None = None, *, spec: GateSpec | None
) -> Tensor:
    return gated_attention(q_B1HK, k_BSGK, v_BSGK, logits, spec, impl="reference")


def rows_of(plan: DecodePlan, batch: int, length: int, made: Made) -> list[Timing]:
    """Not timed yet, nor held to the contract."""
    rows = []
    for (word, name), candidate in made.items():
        row = layer_or_attention(plan, batch, length, word, name, WORK)
        rows.append(replace(row, is_own=candidate.is_own))
    return rows


def layer_or_attention(plan: DecodePlan, batch: int, length: int, gate: str, name: str, work: str) -> Timing:
    """A row of a shape."""
    at: dict[str, Any] = {name: getattr(plan, name) for name in ("heads", "kv_heads", "head_dim", "dtype")}
    shape = f"{batch} behind {length:,}, {plan.heads}/{plan.kv_heads}×{plan.head_dim}, {plan.dtype}"
    at |= {"batch": batch, "cache": length}
    return Timing("decode", shape, gate, name, work, at=at)


def timed(
    plan: DecodePlan, rows: list[Timing], made: Made, cache: KVCache, rates: Rates, budget: Budget, *, share: float
) -> list[Timing]:
    """The rows with their times, in turns, of what holds the contract; all layers of the cache are read."""
    n_layers, batch, length = *cache.k_LBSGK.shape[:2], cache.length
    caches = [
        (k_BSGK[:, :length], v_BSGK[:, :length]) for k_BSGK, v_BSGK in zip(cache.k_LBSGK, cache.v_LBSGK, strict=True)
    ]
    q_B1HK = torch.randn(batch, 1, plan.heads, plan.head_dim, device=plan.device, dtype=cache.k_LBSGK.dtype)
    logits = {word: _logits(plan, word, batch) for word in plan.gates}
    floor_ms = rates.ms(2 * caches[0][0].numel() * q_B1HK.element_size(), 0)
    works, contracts = {}, {}
    for row in rows:
        call, (k_BSGK, v_BSGK) = made[row.gate, row.candidate].call, caches[0]
        given = {"q_B1HK": q_B1HK, "k_BSGK": k_BSGK, "v_BSGK": v_BSGK, "logits": logits[row.gate]}
        contracts[_key(row)] = _contract(call, given, row.gate, budget)
        if contracts[_key(row)] == "holds":
            step = partial(_all_layers, call, q_B1HK, caches, logits[row.gate])
            run = captured(step) if plan.device == "cuda" else partial(_called, step)
            works[_key(row)] = Work(run, floor_ms=n_layers * floor_ms, is_first=row.is_own)
    turns = take_turns(works, torch.device(plan.device), budget=budget, share=share)
    base = next(turns.times.get(_key(row)) for row in rows if row.is_own and row.gate == "none")
    out = []
    for row in rows:
        times = turns.times.get(_key(row))
        if times is None:
            out.append(replace(row, contract=turns.failed.get(_key(row), contracts[_key(row)])))
            continue
        row = replace(row, contract="holds").timed(times, floor_ms=floor_ms, scale=1 / n_layers)
        # Of what is replayed nothing is allocated.
        row = replace(row, at=row.at | {"layers": n_layers}, peak_mib=None)
        out.append(row if base is None else row.over(times, base, "ungated"))
    return out


def _key(row: Timing) -> str:
    return f"{row.gate}, {row.candidate}"


@torch.no_grad()
def _all_layers(call: Call, q_B1HK: Tensor, caches: list[tuple[Tensor, Tensor]], logits: Tensor | None) -> None:
    for k_BSGK, v_BSGK in caches:
        call(q_B1HK=q_B1HK, k_BSGK=k_BSGK, v_BSGK=v_BSGK, logits=logits)


def _called(step: Callable[[], object], _: object) -> None:
    step()


def _spec(word: str) -> GateSpec | None:
    return None if word == "none" else GateSpec.parse(word)


def _logits(plan: DecodePlan, word: str, batch: int) -> Tensor | None:
    if (spec := _spec(word)) is None:
        return None
    width = plan.head_dim if spec.granularity == "elementwise" else 1
    return torch.randn(batch, 1, plan.heads, width, device=plan.device, dtype=getattr(torch, plan.dtype))


def _empty(plan: DecodePlan, n_heads: int) -> Tensor:
    return torch.empty(1, 1, n_heads, plan.head_dim, device=plan.device, dtype=getattr(torch, plan.dtype))


def _own(q_B1HK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, logits: Tensor | None, *, spec: GateSpec | None) -> Tensor:
    return gated_decode(q_B1HK, k_BSGK, v_BSGK, logits, spec)


def _sdpa(q_B1HK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, logits: Tensor | None, *, spec: GateSpec | None) -> Tensor:
    q_BH1K, k_BGSK, v_BGSK = (t.transpose(1, 2) for t in (q_B1HK, k_BSGK, v_BSGK))
    is_grouped = k_BGSK.shape[1] != q_BH1K.shape[1]
    y_B1HK = F.scaled_dot_product_attention(q_BH1K, k_BGSK, v_BGSK, enable_gqa=is_grouped).transpose(1, 2)
    return y_B1HK if spec is None else apply_gate(y_B1HK, logits, spec)


def _compiled(spec: GateSpec | None) -> Call:
    def attended(q_B1HK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, logits: Tensor | None) -> Tensor:
        return _sdpa(q_B1HK, k_BSGK, v_BSGK, logits, spec=spec)

    # In one graph, or it raises: torch would else run what it recompiled too often eagerly, under the same name.
    return torch.compile(attended, fullgraph=True, dynamic=False)


def _flex(spec: GateSpec | None) -> Call:
    from torch.nn.attention.flex_attention import flex_attention

    def attended(q_B1HK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, logits: Tensor | None) -> Tensor:
        q_BH1K, k_BGSK, v_BGSK = (t.transpose(1, 2) for t in (q_B1HK, k_BSGK, v_BSGK))
        is_grouped = k_BGSK.shape[1] != q_BH1K.shape[1]
        y_B1HK = flex_attention(q_BH1K, k_BGSK, v_BGSK, enable_gqa=is_grouped).transpose(1, 2)
        return y_B1HK if spec is None else apply_gate(y_B1HK, logits, spec)

    return torch.compile(attended, fullgraph=True, dynamic=False)
