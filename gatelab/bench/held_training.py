"""The numeric contract of training: an arm's first step against the same step through `attention=reference`.

Notable: same weights, same batch; compared are the loss, the gradient's norm and the gradient itself, read from AdamW's first
moment, which after one step is the gradient alone, so that captured and stacked steps tell it too. The truth is the
reference's in a wider type, and the plain path the reference's in the arm's own type, uncompiled; an arm may err twice as much
as the plain path (`ops.contract`), in its loss and norm also twice as much as that path's whole gradient does, since the
errors of one number may cancel. The gradient is judged by kind of weight, all layers together; of experts and routers only its
norm is, since rounding changes what a router chooses, and how often is chance. Of many runs at once some are held, each to its
own step alone. The reference makes whole matrices, and computes each block again in the backward pass.
"""

import gc
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config.model import ModelConfig
from ..config.run import Execution, Run
from ..models.memory import available
from ..ops.contract import Verdict
from ..record import Step
from ..train.group import Group
from ..train.loop import train
from ..train.optim import begin_state
from .room import no_room
from .timing import Budget

_WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
# As in `ops.contract`: sums in another order.
_REORDERING = 2 * torch.finfo(torch.float32).eps
# Matrices as large as the logits that a block holds at once, in the truth's type: logits, weights, and the gradients of both.
_MATRICES = 4
# Of the free memory, for these.
_SHARE = 0.25


@dataclass(frozen=True)
class FirstStep:
    """Loss and gradient norm of a run, its gradient by kind of weight, and the kinds that depend on choices."""

    loss: float
    norm: float
    gradients: dict[str, Tensor]
    chosen: frozenset[str]


def judged_runs(n: int) -> list[int]:
    """Which of so many runs at once are held to the contract: the first, one in the middle and the last."""
    return sorted({0, n // 2, n - 1})


def first_step(group: Group, step: Step, i: int = 0) -> FirstStep:
    """Of the run i of a group that has taken one step."""
    member = group.members[i]
    if group.stack is None:
        begin_state(member.model, member.optimizer)  # of what got no gradient
    else:
        group.stack.publish(1)
    clip, (beta, _) = member.run.optim.clip, member.run.optim.betas
    norm = step.grad_norm[i]
    # Undoes the clipping and the mean.
    scale = max(1.0, (norm + 1e-6) / clip if clip else 1.0) / (1 - beta)
    kinds: dict[str, list[Tensor]] = {}
    for name, p in member.model.named_parameters():
        kind = ".".join(word for word in name.split(".") if not word.isdecimal())
        kinds.setdefault(kind, []).append(member.optimizer.state[p]["exp_avg"].flatten())
    gradients = {kind: scale * torch.cat(parts).cpu() for kind, parts in kinds.items()}
    chosen = {kind for kind in kinds if ".mlp." in kind} if member.run.model.moe is not None else set()
    return FirstStep(step.loss[i], norm, gradients, frozenset(chosen))


class Unstacked(Group):
    """A group whose runs take their steps outside of any stack, so that none is captured."""

    is_stacked = False


def references(
    run: Run, execution: Execution, dtype: torch.dtype, device: str, until: Budget
) -> tuple[FirstStep, FirstStep]:
    """The truth and the plain path of a run's first step, alone; nothing of their models stays on the device.

    Args:
        run: one of the arm's.
        execution: the arm's.
        dtype: that the arm computes in.

    Raises:
        MemoryError: where even one sequence's matrices do not fit.
        TimeoutError: when the time is over before both are there.
    """
    n = matrix_bytes(run.model, run.train.seq_len)
    if why := no_room(n, device):
        raise MemoryError(f"the reference {why.removeprefix('not run: ')} for one sequence's matrices")
    room = available(device)
    micro_batch = run.train.batch_size if room is None else max(1, min(run.train.batch_size, int(_SHARE * room / n)))
    plainly = execution.model_copy(
        update={"attention": "reference", "compile": "off", "group": 1, "micro_batch": micro_batch}
    )
    truth, plain = (_step(run, plainly, each, until) for each in (_WIDER[dtype], dtype))
    gc.collect()  # blocks that know how they are recomputed know themselves
    if device == "cuda":
        torch.cuda.empty_cache()
    return truth, plain


def matrix_bytes(model: ModelConfig, seq_len: int) -> int:
    """What a block of the reference holds of one sequence."""
    return _MATRICES * 8 * model.n_heads * seq_len**2


def verdicts(found: FirstStep, truth: FirstStep, plain: FirstStep, dtype: torch.dtype) -> list[Verdict]:
    """Of the loss, the norm, and the gradient of every kind of weight that is judged by itself, in this order."""
    slack = _REORDERING + torch.finfo(dtype).eps / 2
    whole = math.hypot(*(_norm(exact) for exact in truth.gradients.values()))
    of_plain = math.hypot(*(_norm(plain.gradients[kind] - exact) for kind, exact in truth.gradients.items())) / whole
    out = []
    for name, value, plainly, exact in (
        ("first loss", found.loss, plain.loss, truth.loss),
        ("gradient norm", found.norm, plain.norm, truth.norm),
    ):
        error, own = (abs(x - exact) / abs(exact) for x in (value, plainly))
        out.append(Verdict(name, error, 2 * max(of_plain, own) + slack))
    for kind, exact in truth.gradients.items():
        if kind in truth.chosen:
            continue
        # What is lost in the rounding of the whole has no size of its own.
        size = max(_norm(exact), torch.finfo(dtype).eps * whole)
        error, plainly = (_norm(step.gradients[kind] - exact) / size for step in (found, plain))
        out.append(Verdict(f"d {kind}", error, 2 * plainly + slack))
    return out


def _norm(values: Tensor) -> float:
    return torch.linalg.vector_norm(values, dtype=torch.float64).item()


def _step(run: Run, execution: Execution, dtype: torch.dtype, until: Budget) -> FirstStep:
    # A model may take long to be made, to take its step, and to be read.
    until.check()
    group = Unstacked([run], execution)
    until.check()
    model = group.members[0].model
    if dtype == torch.float64:
        model.double()
    model.compute_dtype = dtype
    for stack in model.config.architecture.stacks:
        for block in getattr(model, stack.blocks):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    step = next(train(group))
    until.check()
    return first_step(group, step)
