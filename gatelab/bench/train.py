"""bench train: steps of the trainer itself, gated and ungated models in one process, alone and many at once.

Notable: every model takes its steps in every round, and a gated one has its FFN narrowed to the ungated one's weights. The
data are random tokens. MFU counts 6 operations a weight that a token multiplies (the head's, not the embedding's) and
12 H K a pair of a query and a key that it sees, n²/2 of them in a sequence of n (`train.cost`); it is stated over 989
TFLOP/s on H100 and H200, and over the measured product elsewhere.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from ..config import override
from ..config.gate import parse_gates
from ..config.model import ModelConfig
from ..config.run import Execution, Run, Text, TrainConfig
from ..data import default_cache
from ..models.sizes import count_parameters, match_d_ff
from ..record import Step
from ..train.cost import model_flops_per_token
from ..train.group import Group
from ..train.loop import train
from .floors import HOPPER_FLOPS, Rates
from .goals import JUDGED_ON
from .plan import TrainPlan, size
from .timing import Budget, Timing, Work, take_turns, wall_clock

NOTE = (
    "Floor: all operations at the product's rate. MFU: 6 operations a weight that a token multiplies, the head's with them and "
    "the embedding's not, and 12 H K a pair of a query and a key that it sees, n²/2 of them in a sequence of n; over 989 "
    "TFLOP/s on H100 and H200, over the product's rate elsewhere. Gated models have their FFN narrowed to equal weights."
)
_TOKENS = 1 << 22
_UNIT = 8  # channels; a width that is no multiple of it is slow on tensor cores


@dataclass(frozen=True)
class _Arm:
    """A model to train, and how many runs of it in one process."""

    row: Timing
    model: ModelConfig
    runs: int


def measure(plan: TrainPlan, rates: Rates, budget: Budget, tell: Callable[[str], None]) -> list[Timing]:
    """A row a size, gate and number of runs at once."""
    rows: list[Timing] = []
    for i, word in enumerate(plan.sizes):
        tell(f"{word}: {', '.join(plan.gates)}")
        rows += _of_size(plan, word, rates, budget, share=1 / (len(plan.sizes) - i))
    return rows


def _of_size(plan: TrainPlan, word: str, rates: Rates, budget: Budget, *, share: float) -> list[Timing]:
    device = torch.device(plan.device)
    arms = [_arm(plan, word, gate, runs) for gate in plan.gates for runs in dict.fromkeys((1, plan.group))]
    steps = {arm.row.candidate + arm.row.gate: _Steps(plan, arm) for arm in arms}
    works = {name: Work(lambda _, s=s: s.take(plan.steps)) for name, s in steps.items()}
    turns = take_turns(works, device, budget=budget, share=share, measure=wall_clock(device))
    for s in steps.values():
        s.close()
    rows = []
    for arm in arms:
        row, key = arm.row, arm.row.candidate + arm.row.gate
        if key not in turns.times:
            rows.append(replace(row, contract=turns.failed[key]))
            continue
        flops = model_flops_per_token(arm.model, plan.context) * plan.tokens
        # A step of one run, also where several took theirs at once.
        scale = 1 / (plan.steps * arm.runs)
        row = replace(row, contract=_contract(steps[key], steps["alone" + row.gate]) if arm.runs > 1 else "")
        row = row.timed(turns.times[key], floor_ms=rates.ms(0, flops), scale=scale)
        seconds = row.median_ms / 1e3
        row = replace(row, tokens_per_s=plan.tokens / seconds, mfu=flops / seconds / _peak(device, rates))
        against = "one after another" if arm.runs > 1 else "ungated"
        base = turns.times.get("alone" + (row.gate if arm.runs > 1 else "none"))
        has_none = base is None or row.contract.startswith("FAIL")
        row = row if has_none else row.over(turns.times[key], base, against, scale=1 / arm.runs)
        # On a GPU a captured step allocates nothing while it is timed: what it holds was there before.
        rows.append(replace(row, peak_mib=None, peak_ratio=None) if device.type == "cuda" else row)
    return rows


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


class _Steps:
    """The steps of a group, which is made when the first is asked for, so that one without room is a row that says so.
    `first_loss` is its first run's in the first step; `eps` that of the type it computes in."""

    def __init__(self, plan: TrainPlan, arm: _Arm):
        self._make = partial(_group, plan, arm)
        self._steps: Iterator[Step] | None = None
        self.first_loss, self.eps, self.is_stacked = math.nan, math.nan, False

    def take(self, n: int) -> None:
        """Train on.

        Raises:
            ValueError: when a run has diverged.
        """
        if self._steps is None:
            group = self._make()
            self.eps, self.is_stacked = torch.finfo(group.dtype).eps, group.is_stacked
            self._steps = train(group)
        for _ in range(n):
            step = next(self._steps)
            if step.step == 1:
                self.first_loss = step.loss[0]
        if any(step.diverged):
            raise ValueError(f"a loss is no longer finite after {step.step} steps")

    def close(self) -> None:
        """Give up the models."""
        self._steps = None


def _contract(together: _Steps, alone: _Steps) -> str:
    """Whether a run among others begins as it does alone: same weights, same batch, same loss but for its rounding."""
    error = abs(together.first_loss - alone.first_loss) / abs(alone.first_loss)
    if not error <= together.eps:
        return f"FAIL first loss {together.first_loss:.6g}, alone {alone.first_loss:.6g}"
    return "holds" if together.is_stacked else "holds; not stacked, in turns"


def _group(plan: TrainPlan, arm: _Arm) -> Group:
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
    return Group(runs, execution)


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
