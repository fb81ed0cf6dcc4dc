"""What ranks exchange within a forward pass, each with the gradient that belongs to it.

Between `enter` and `leave` the ranks of a group compute parts of one sum: each holds a part of every gradient there, and only
their sum is the gradient (Megatron-LM's f and g, arXiv 1909.08053, section 3).
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

_Context = Any


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: ProcessGroup) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return gathered(x, group)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        own = _summed(gradient, ctx.group).chunk(ctx.group.size(), dim=-1)
        return own[ctx.group.rank()].contiguous(), None


class _Travel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, rows: Tensor, to: list[int], come: list[int], group: ProcessGroup) -> Tensor:
        ctx.to, ctx.come, ctx.group = to, come, group
        return _sent(rows, to, come, group)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _sent(gradient, ctx.come, ctx.to, ctx.group), None, None, None


def enter(x: Tensor, group: ProcessGroup) -> Tensor:
    """x, equal on all ranks; its gradient is the sum of theirs."""
    return _Enter.apply(x, group)


def leave(part: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of all ranks' parts; each part's gradient is the sum's."""
    return _Leave.apply(part, group)


def total(part: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of all ranks' parts where each goes on to compute a part of something; gradients are summed too."""
    return _Total.apply(part, group)


def gather(part: Tensor, group: ProcessGroup) -> Tensor:
    """All ranks' last axes side by side, where each goes on to compute a part of something; gradients are summed."""
    return _Gather.apply(part, group)


def travel(rows: Tensor, to: list[int], come: list[int], group: ProcessGroup) -> Tensor:
    """The first `to[0]` rows go to rank 0, the next `to[1]` to rank 1, …; returns the `come[i]` rows of each rank i in order."""
    return _Travel.apply(rows, to, come, group)


def gathered(part: Tensor, group: ProcessGroup) -> Tensor:
    """`gather` without a gradient."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.size())]
    torch.distributed.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim=-1)


def _summed(x: Tensor, group: ProcessGroup) -> Tensor:
    out = x.contiguous().clone()
    torch.distributed.all_reduce(out, group=group)
    return out


def _sent(rows: Tensor, to: list[int], come: list[int], group: ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(come), *rows.shape[1:])
    torch.distributed.all_to_all_single(out, rows.contiguous(), come, to, group=group)
    return out
