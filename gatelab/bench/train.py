"""bench train: steps of the trainer itself, gated and ungated models in one process, alone and many at once.

Notable: every model takes its steps in every round, and a gated one has its FFN narrowed to the ungated one's weights. The
data are random tokens. A model's first step is held to the numeric contract (`held_training`) before it is timed, and one that
fails has no time and no ratio. MFU counts 6 operations a weight that a token multiplies (the head's, not the embedding's) and
12 H K a pair of a query and a key that it sees, n²/2 of them in a sequence of n (`train.cost`); it is stated over 989 TFLOP/s
on H100 and H200, and over the measured product elsewhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..config import ConfigError, override
from ..config.gate import parse_gates
from ..config.model import ModelConfig
from ..config.run import Execution, Run, Text, TrainConfig
from ..data import default_cache
from ..models.sizes import count_parameters, match_d_ff
from ..ops.gated_attention import chosen_for
from ..record import Step
from ..train.cost import model_flops_per_token, training_bytes
from ..train.group import Group, pick_device, pick_dtype
from ..train.loop import train
from .floors import HOPPER_FLOPS, Rates
from .goals import JUDGED_ON
from .held_training import Unstacked, first_step, judged_runs, references, verdicts
from .plan import TrainPlan, size
from .room import no_room
from .timing import OVER, RUNS, Budget, Timing, Work, take_turns, wall_clock, why_not
from .train_peers import LLAMA, LlamaLoop, has_transformers, unlike_llama

NOTE = (
    "Floor: all operations at the product's rate. MFU: 6 operations a weight that a token multiplies, the head's with them and "
    "the embedding's not, and 12 H K a pair of a query and a key that it sees, n²/2 of them in a sequence of n; over 989 "
    "TFLOP/s on H100 and H200, over the product's rate elsewhere. Gated models have their FFN narrowed to equal weights. "
    "Contract: loss, gradient norm and gradient of the first step against attention=reference in a wider type, at most twice the "
    "error of attention=reference in the same type. transformers' Llama has the ungated model's shape and weights of its own, so "
    "it is held to as many weights, a first loss near that of random logits and one that falls on a repeated batch, and no more; "
    "its tokens lie on the device before. The compiled loop is the trainer without captured steps."
)
_TOKENS = 1 << 22
_BEGUN = 0.35  # of the time of a size, that must be left when a peer is begun
_UNIT = 8  # channels; a width that is no multiple of it is slow on tensor cores


@dataclass(frozen=True)
class _Arm:
    """A model to train, how many runs of it in one process, and by what: the trainer where `peer` is empty."""

    row: Timing
    model: ModelConfig
    runs: int
    peer: str = ""


def measure(plan: TrainPlan, rates: Rates, budget: Budget, tell: Callable[[str], None]) -> list[Timing]:
    """A row a size, gate and number of runs at once.

    Raises:
        ConfigError: where `attention` serves none of the models here.
    """
    _check_served(plan)
    rows: list[Timing] = []
    for i, word in enumerate(plan.sizes):
        tell(f"{word}: {', '.join(plan.gates)}")
        rows += _of_size(plan, word, rates, budget, share=1 / (len(plan.sizes) - i))
    return rows


def _check_served(plan: TrainPlan) -> None:
    device = torch.device(plan.device)
    refused = []
    for word in plan.sizes:
        for gate in plan.gates:
            model = _arm(plan, word, gate, 1).model
            try:
                chosen_for(model, plan.attention, dtype=pick_dtype("auto", device), device=device)
            except ValueError as error:
                refused.append(str(error))
    if len(refused) == len(plan.sizes) * len(plan.gates):
        raise ConfigError([f"--attention {plan.attention}: {refused[0]}"])


def _of_size(plan: TrainPlan, word: str, rates: Rates, budget: Budget, *, share: float) -> list[Timing]:
    device, until = torch.device(plan.device), budget.share(share)
    arms = [_arm(plan, word, gate, runs) for gate in plan.gates for runs in dict.fromkeys((1, plan.group))]
    # Last, so that it is they that there is no time for.
    arms += [_peer(arms[0], peer) for peer in plan.peers if peer != "transformers" or has_transformers()]
    works, contracts, begun, whole = {}, {}, [], until.left
    for i, arm in enumerate(arms):
        key, floor_ms = _key(arm.row), rates.ms(0, _flops(plan, arm) * plan.steps * arm.runs)
        why = no_room(_bytes(plan, arm), plan.device)
        # Of its own steps one, and two of the reference's for every run that is held to them, are the contract's.
        judged = (1 + 2 * len(judged_runs(arm.runs)) / arm.runs) / plan.steps
        why = why or until.lacks((RUNS + judged) * floor_ms / 1e3)
        why = why or (OVER if i and not until.left else "")
        # What a peer takes to be compiled is not known before, and all others wait for it.
        why = why or (OVER if arm.peer and until.left < _BEGUN * whole else "")
        why = why or (unlike_llama(arm.model) if arm.peer == "transformers" else "")
        if why:
            contracts[key] = why
            continue
        try:
            steps = _steps(plan, arm, until)
            contracts[key] = steps.contract()
        except Exception as error:
            contracts[key] = why_not(error)
            continue
        if contracts[key].startswith("holds"):
            works[key] = Work(lambda _, s=steps: s.take(plan.steps), floor_ms=floor_ms)
            begun.append(steps)
        else:
            steps.close()
    # However long the last took to be compiled, what is ready is timed.
    until = until.at_least(until.asked / 10)
    turns = take_turns(works, device, budget=until, measure=wall_clock(device))
    for steps in begun:
        steps.close()
    rows = []
    for arm in arms:
        row, key = arm.row, _key(arm.row)
        if key not in turns.times:
            rows.append(replace(row, contract=turns.failed.get(key, contracts[key])))
            continue
        flops = _flops(plan, arm)
        # A step of one run, also where several took theirs at once.
        scale = 1 / (plan.steps * arm.runs)
        row = replace(row, contract=contracts[key])
        row = row.timed(turns.times[key], floor_ms=rates.ms(0, flops), scale=scale)
        seconds = row.median_ms / 1e3
        row = replace(row, tokens_per_s=plan.tokens / seconds, mfu=flops / seconds / _peak(device, rates))
        against = "one after another" if arm.runs > 1 else "ungated"
        base = turns.times.get("alone" + (row.gate if arm.runs > 1 else "none"))
        row = row if base is None else row.over(turns.times[key], base, against, scale=1 / arm.runs)
        # On a GPU a captured step allocates nothing while it is timed: what it holds was there before.
        rows.append(replace(row, peak_mib=None, peak_ratio=None) if device.type == "cuda" else row)
    return rows


def _key(row: Timing) -> str:
    return row.candidate + row.gate


def _flops(plan: TrainPlan, arm: _Arm) -> float:
    return model_flops_per_token(arm.model, plan.context) * plan.tokens


def _bytes(plan: TrainPlan, arm: _Arm) -> float:
    """Of the arm's runs from step to step; on a CPU, which has no other way to say that it is full, with what its blocks keep."""
    batch = plan.micro_batch or plan.tokens // plan.context
    needed = training_bytes(arm.model, batch, plan.context, precision="float32")
    return arm.runs * (needed.states + (needed.activations if plan.device == "cpu" else 0))


def _arm(plan: TrainPlan, word: str, gate: str, runs: int) -> _Arm:
    base = override(size(word), {"max_seq_len": plan.context})
    model = base
    if gate != "none":
        gated = override(base, {"gate": parse_gates(gate)})
        model = match_d_ff(gated, count_parameters(base), _UNIT)
    at = {
        "n_parameters": count_parameters(model), "width": model.d_model, "context": plan.context, "tokens": plan.tokens,
        "is_moe": model.moe is not None, "d_ff": model.d_ff,
    } | ({"runs": runs} if runs > 1 else {})  # fmt: skip
    shape = f"{word}, {plan.tokens // plan.context} × {plan.context:,}"
    candidate = "alone" if runs == 1 else f"{runs} at once"
    return _Arm(Timing("train", shape, gate, candidate, "step of a run", is_own=True, at=at), model, runs)


def _peer(arm: _Arm, peer: str) -> _Arm:
    candidate = LLAMA if peer == "transformers" else "alone, compiled loop"
    return replace(arm, row=replace(arm.row, candidate=candidate, is_own=False), peer=peer)


def _steps(plan: TrainPlan, arm: _Arm, until: Budget) -> "_Steps | LlamaLoop":
    if arm.peer != "transformers":
        return _Steps(plan, arm, until)
    (run,), _ = _runs(plan, arm)
    return LlamaLoop(run, torch.device(plan.device), plan.micro_batch)


class _Steps:
    """The steps of a group, which is made when the first is asked for."""

    def __init__(self, plan: TrainPlan, arm: _Arm, until: Budget):
        self._plan, self._arm, self._until = plan, arm, until
        self._steps: Iterator[Step] | None = None

    def contract(self) -> str:
        """Take the first step and hold it to the contract: `holds`, `FAIL` with what is wrong, or why it could not be."""
        runs, execution = _runs(self._plan, self._arm)
        dtype = pick_dtype(runs[0].train.precision, pick_device(execution.device))
        try:
            # Before the arm's own model takes room.
            wanted = {
                i: references(runs[i], execution, dtype, self._plan.device, self._until) for i in judged_runs(len(runs))
            }
            self._until.check()
            group = _group(self._plan, self._arm)
            self._steps = train(group, {1})  # a step that is looked at, and others as a study takes them
            step = next(self._steps)
            broken = [
                (i, v)
                for i, each in wanted.items()
                for v in verdicts(first_step(group, step, i), *each, dtype)
                if not v.holds
            ]
        except Exception as error:
            return why_not(error)
        if broken:
            i, v = broken[0]
            of_run = f" of run {i}" if i else ""
            return f"FAIL {v.tensor}{of_run}: error {v.error:.2g}, allowed {v.allowed:.2g}"
        return "holds" if group.is_stacked or self._arm.runs == 1 else "holds; not stacked, in turns"

    def take(self, n: int) -> None:
        """Train on.

        Raises:
            ValueError: when a run has diverged.
        """
        for _ in range(n):
            step = next(self._steps)
        if any(step.diverged):
            raise ValueError(f"a loss is no longer finite after {step.step} steps")

    def close(self) -> None:
        """Give up the models."""
        self._steps = None


def _group(plan: TrainPlan, arm: _Arm) -> Group:
    return (Unstacked if arm.peer else Group)(*_runs(plan, arm))


def _runs(plan: TrainPlan, arm: _Arm) -> tuple[list[Run], Execution]:
    batch = plan.tokens // plan.context
    # More steps than can be taken: the budget ends the benchmark.
    training = TrainConfig(tokens=plan.tokens * 10**6, batch_size=batch, seq_len=plan.context)
    first = Run(model=arm.model, train=training)
    n_extra = first.resolved_objective.extra_ids(plan.context)
    data = _random_tokens(arm.model.vocab_size - n_extra)
    runs = [first.model_copy(update={"data": data, "seed": seed}) for seed in range(arm.runs)]
    execution = Execution(
        device=plan.device,
        group=arm.runs,
        micro_batch=plan.micro_batch,
        packed=plan.packed,
        attention=plan.attention,
    )
    return runs, execution


def _random_tokens(vocab_size: int) -> Text:
    """The same ids on every call, in a shard that is written once into the data's cache."""
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    path = default_cache() / "bench" / f"random-{vocab_size}.bin"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        drafted = path.with_suffix(".draft")
        np.random.default_rng(0).integers(0, vocab_size, _TOKENS).astype(dtype).tofile(drafted)
        drafted.replace(path)
    return Text(paths=(str(path),), dtype=dtype, vocab_size=vocab_size, bos=False)


def _peak(device: torch.device, rates: Rates) -> float:
    is_hopper = device.type == "cuda" and any(name in torch.cuda.get_device_name(device) for name in JUDGED_ON)
    return HOPPER_FLOPS if is_hopper else rates.flops_per_s
