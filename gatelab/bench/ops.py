"""bench ops: gated attention by every implementation and peer, next to no gate, and the gate alone.

Notable: everything of the shape is timed in every round, ungated and gated, so that ratios are within rounds: to the
fastest of all ungated candidates. What a goal is about, and what it is about the ratio to, comes first and has rounds of its
own before any other is held to the contract or compiled. All are given slices of one packed projection, as a layer with
`execution.packed` has them, and what they copy of these is their own time. A candidate is first held to the numeric contract on
what it is timed on (`held`); one that fails is not timed. Forward passes keep what a backward pass needs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from ..config.architecture import Stack
from ..config.gate import GateSpec
from ..config.model import ModelConfig
from ..models.block import Block, Pass
from ..ops.gate_apply import apply_gate
from .candidates import Candidate, attention_candidates, gate_candidates, often_compiled
from .floors import Rates
from .held import HeldAttention, held
from .kept import bytes_kept
from .op_costs import (
    all_bytes,
    checked_gate_bytes,
    gate_ms,
    logits_bytes,
    matrix_bytes,
    op_ms,
    own_gate_ms,
    own_op_ms,
    ungated_ms,
)  # fmt: skip
from .plan import OpsPlan
from .room import no_room
from .seen import Seen
from .slices import Arguments, drawn, on_sliced_logits
from .timing import Budget, Timing, Turns, Work, take_turns

NOTE = (
    "Layout: queries, keys, values and logits are slices of one packed projection's output, rows of [q, k, v, logits], for every "
    "candidate and in both tables; copies that one needs of them are its own time; outputs are [B, T, H, K], and gradients are "
    "not joined again. With a window or documents who takes neither is given a mask that was made before; gatelab sdpa makes its "
    "own in its own time. Floors: attention at the product's rate, 2 B H T² K operations forward (4 B H K a pair of a query and a "
    "key that it sees, with a window or documents) and 2.5 times as many backward, or each tensor moved once where that takes "
    "longer; and the gate's own kernels, 3 passes over a tensor as large as the output "
    "forward and 5 backward (elementwise), 2 and 3 (headwise), 1 fewer where a headwise gate goes in with the log-sum-exp; a pass "
    "that a candidate makes beside these, to recover the output, is no part of the floor and is in own traffic. Kept: q, k, v, "
    "logits, output and what the forward pass saves, each storage once. Peers that are compiled are timed on CUDA alone, and on a "
    "CPU no Triton kernel is run: that these hold the contract is what the tests say, through Triton's interpreter. The row of "
    "Qwen3-Next is our reading of its attention between the projections."
)
BOTH = "forward + backward"


def measure(plan: OpsPlan, rates: Rates, budget: Budget, tell: Callable[[str], None]) -> list[Timing]:
    """The rows of both tables. What raises is a row that says why."""
    if why := no_room(all_bytes(plan), plan.device):
        return _refused(plan, why)
    with often_compiled(plan.device):
        # The gate alone is what it is, whatever a query sees.
        alone = _gate_alone(plan, rates, budget, tell) if Seen.of(plan).is_plain else []
        return [*_attention(plan, rates, budget, tell), *alone]


def _refused(plan: OpsPlan, why: str) -> list[Timing]:
    """The rows of own implementations and peers, none of which is run."""
    seen, rows = Seen.of(plan), []
    for word in plan.gates:
        spec = None if word == "none" else GateSpec.parse(word)
        for c in attention_candidates(spec, seen):
            rows += [_row("ops", plan, spec, c, work, why) for work in ("forward", BOTH)]
        for c in gate_candidates(spec, seen.device) if spec is not None and seen.is_plain else []:
            rows += [_row("gate", plan, spec, c, work, why) for work in ("forward", "backward")]
    return rows


def _attention(plan: OpsPlan, rates: Rates, budget: Budget, tell: Callable[[str], None]) -> list[Timing]:
    seen = Seen.of(plan)
    rows: list[Timing] = []
    works: dict[str, Work] = {}
    ranks: dict[str, tuple[bool, bool, int]] = {}
    kept: dict[str, Callable[[], float | None]] = {}
    for word in plan.gates:
        spec = None if word == "none" else GateSpec.parse(word)
        given = drawn(plan, spec, batch=plan.batch, length=plan.length)
        checked = HeldAttention(plan, spec, given, budget)
        for i, c in enumerate(attention_candidates(spec, seen)):
            contract = cache(partial(_contract, plan, spec, c, checked, tell))
            for work in ("forward", BOTH):
                row = _row("ops", plan, spec, c, work, "holds")
                rows.append(row)
                run, floor_ms = partial(_run, c.call, given, work), op_ms(plan, rates, row)
                works[_key(row)] = Work(run, floor_ms=floor_ms, refused=contract, is_first=c.is_first)
                ranks[_key(row)] = not c.is_first, not c.is_own, i
                if c.is_own:
                    kept[_key(row)] = partial(_kept_mib, c.call, given)
    works = {key: works[key] for key in sorted(works, key=ranks.__getitem__)}
    tell(f"timing a layer and {len(works)} passes of attention")
    layer, layer_work = _layer(plan, rates)
    # The layer behind what is first, since it is compiled: of it every row needs the time.
    turns = take_turns({**works, _key(layer): layer_work}, seen.device, budget=budget)
    kept_mib = {key: kept[key]() for key in kept if key in turns.times and key.endswith(BOTH)}
    layer_times = turns.times.get(_key(layer))
    best = {w: _fastest(turns, [r for r in rows if r.work == w and r.gate == "none"]) for w in ("forward", BOTH)}
    own = [r for r in rows if r.is_own and r.work == BOTH]
    fastest_own = {_key(f) for g in plan.gates if (f := _fastest(turns, [r for r in own if r.gate == g]))}
    if layer_times is None:
        out = [replace(layer, contract=turns.failed[_key(layer)])]
    else:
        out = [layer.timed(layer_times, floor_ms=layer_work.floor_ms)]
    for row in rows:
        if _key(row) not in turns.times:
            out.append(replace(row, contract=turns.failed.get(_key(row), row.contract)))
            continue
        times = turns.times[_key(row)]
        row = row.timed(times, floor_ms=works[_key(row)].floor_ms)
        row = replace(row, kept_mib=kept_mib.get(_key(row)), own_floor_ms=own_op_ms(plan, rates, row))
        base = best[row.work]
        if base is not None:
            row = row.over(times, turns.times[_key(base)], f"ungated, {base.candidate}")
        ungated = turns.times.get(_key(replace(row, gate="none")))
        if row.work == BOTH and row.gate != "none" and layer_times is not None and ungated is not None:
            row = replace(row, of_layer=(times.median - ungated.median) / layer_times.median)
        ungated_mib = kept_mib.get(_key(replace(row, gate="none")))
        if row.gate != "none" and row.kept_mib is not None and ungated_mib is not None:
            row = replace(row, kept_goal_mib=ungated_mib + logits_bytes(plan, row.at["granularity"]) / 2**20)
        out.append(replace(row, at=row.at | ({"fastest_own": True} if _key(row) in fastest_own else {})))
    return out


def _contract(
    plan: OpsPlan, spec: GateSpec | None, c: Candidate, checked: HeldAttention, tell: Callable[[str], None]
) -> str:
    """Why a candidate is not timed, or nothing."""
    if why := no_room(matrix_bytes(plan), plan.device) if c.has_matrices else "":
        return why
    tell(f"the contract: {'none' if spec is None else spec.slug}, {c.name}")
    verdict = checked.verdict(c)
    return "" if verdict == "holds" else verdict


def _gate_alone(plan: OpsPlan, rates: Rates, budget: Budget, tell: Callable[[str], None]) -> list[Timing]:
    device, rows, works = torch.device(plan.device), [], {}
    for word in plan.gates:
        if word == "none":
            continue
        spec = GateSpec.parse(word)
        all_given = drawn(plan, spec, batch=plan.batch, length=plan.length)
        why = no_room(checked_gate_bytes(plan), plan.device)
        for c in gate_candidates(spec, device):
            given = _of_gate(all_given, c)
            sliced = partial(on_sliced_logits, c.call)
            contract = why or held(sliced, partial(apply_gate, spec=spec), given, budget)
            for work in ("forward", "backward"):
                row = _row("gate", plan, spec, c, work, contract)
                rows.append(row)
                if contract == "holds":
                    works[_key(row)] = _gate_work(c.call, given, work, gate_ms(plan, rates, row))
    tell(f"timing {len(works)} passes of the gate alone")
    turns = take_turns(works, device, budget=budget, share=0.25)
    out = []
    for row in rows:
        if _key(row) not in turns.times:
            out.append(replace(row, contract=turns.failed.get(_key(row), row.contract)))
            continue
        row = row.timed(turns.times[_key(row)], floor_ms=works[_key(row)].floor_ms)
        row = replace(row, own_floor_ms=own_gate_ms(plan, rates, row))
        against = next((n for n in ("torch.compile", "eager") if _key(replace(row, candidate=n)) in turns.times), None)
        if against is not None:
            base = turns.times[_key(replace(row, candidate=against))]
            row = row.over(turns.times[_key(row)], base, against)
            row = replace(row, at=row.at | {"peer_upper_ms": base.upper})
        out.append(row)
    return out


def _row(what: str, plan: OpsPlan, spec: GateSpec | None, c: Candidate, work: str, contract: str) -> Timing:
    heads = f"{plan.heads}/{plan.kv_heads}×{plan.head_dim}"
    at = {name: getattr(plan, name) for name in ("tokens", "length", "heads", "kv_heads", "head_dim", "dtype")}
    at |= {} if plan.window is None else {"window": plan.window}
    at |= {} if plan.documents == 1 else {"documents": plan.documents}
    at |= {} if spec is None else {"granularity": spec.granularity}
    at |= {"more_passes": c.more_passes} if c.more_passes else {}
    at |= {"is_operator": True} if c.is_operator else {}
    gate = "none" if spec is None else spec.slug
    shape = f"{plan.batch} × {plan.length:,}, {heads}, {plan.dtype}"
    shape += "" if plan.documents == 1 else f", {plan.documents} documents"
    shape += "" if plan.window is None else f", window {plan.window:,}"
    return Timing(what, shape, gate, c.name, work, contract, is_own=c.is_own, at=at)


def _key(row: Timing) -> str:
    return f"{row.gate}, {row.candidate}, {row.work}"


def _fastest(turns: Turns, rows: list[Timing]) -> Timing | None:
    there = [row for row in rows if _key(row) in turns.times]
    return min(there, key=lambda row: turns.times[_key(row)].median, default=None)


def _run(call: Callable[..., Tensor], arguments: Arguments, work: str, _: None) -> object:
    inputs = {name: t for name, t in arguments.items() if name != "grad_BTHK"}
    z_BTHK = call(**inputs)
    return z_BTHK if work == "forward" else torch.autograd.grad(z_BTHK, list(inputs.values()), arguments["grad_BTHK"])


def _kept_mib(call: Callable[..., Tensor], arguments: Arguments) -> float | None:
    try:
        return bytes_kept(call, {name: t for name, t in arguments.items() if name != "grad_BTHK"}) / 2**20
    except torch.OutOfMemoryError:  # beside what the timing still holds
        return None


def _gate_work(call: Callable[..., Tensor], arguments: Arguments, work: str, floor_ms: float) -> Work:
    inputs = {name: t for name, t in arguments.items() if name != "grad_BTHK"}
    if work == "forward":
        return Work(lambda _: call(**inputs), floor_ms=floor_ms)
    leaves = [t for t in inputs.values() if t.requires_grad]
    return Work(
        lambda z_BTHK: torch.autograd.grad(z_BTHK, leaves, arguments["grad_BTHK"]),
        before=lambda: call(**inputs),
        floor_ms=floor_ms,
    )


def _of_gate(arguments: Arguments, candidate: Candidate) -> Arguments:
    names = {"y_BTHK": "q_BTHK", "logits_BTHK": "gate_logits_BTHK", "grad_BTHK": "grad_BTHK"}
    given = {name: arguments[there] for name, there in names.items()}
    # Attention writes its output apart.
    given["y_BTHK"] = given["y_BTHK"].detach().contiguous().requires_grad_()
    return {name: t.detach() if name in candidate.without else t for name, t in given.items()}


def _layer(plan: OpsPlan, rates: Rates) -> tuple[Timing, Work]:
    """The row and the pass of an ungated decoder layer as wide as the heads together; compiled on CUDA."""
    width, is_cuda = plan.heads * plan.head_dim, plan.device == "cuda"
    config = ModelConfig(
        d_model=width,
        n_layers=1,
        n_heads=plan.heads,
        n_kv_heads=plan.kv_heads,
        head_dim=plan.head_dim,
        window=plan.window,
    ).resolved(256, plan.length)
    block = Block(config, Stack("blocks", "self"), 0).to(plan.device)
    layer = torch.compile(block, dynamic=False) if is_cuda else block
    dtype = getattr(torch, plan.dtype)
    x_BTD, grad_BTD = torch.randn(2, plan.batch, plan.length, width, device=plan.device).to(dtype)
    leaves = [x_BTD.requires_grad_(), *block.parameters()]
    floor_ms = rates.ms(0, 6 * plan.tokens * sum(p.numel() for p in block.parameters() if p.dim() == 2))
    floor_ms += ungated_ms(plan, rates, BOTH)
    given = Pass(Seen.of(plan).given.get("segment_ids_BT"))
    work = Work(lambda _: torch.autograd.grad(layer(x_BTD, given), leaves, grad_BTD), floor_ms=floor_ms, is_first=True)
    candidate = Candidate("a decoder layer, compiled" if is_cuda else "a decoder layer", layer)
    return _row("layer", plan, None, candidate, BOTH, ""), work
