"""Blocks compiled one by one, where a mesh exchanges between and within them: torch.compile leaves what it cannot compile as it is,
and one block's code serves all that are equal.

Notable: only the function that a block calls is replaced. Hooks that gather its weights run around it, and its names are what they
were. A block gets a watch of its own, so that its code does not depend on how many came before.
"""

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from ...models.block import Block, Pass
from ...models.model import Model
from ...nn.mlp import MLP
from ...nn.watch import Watch

Forward = Callable[[Tensor, Pass], Tensor]


def compile_blocks(model: Model) -> None:
    """Let every block of a feed-forward layer compute compiled; experts compute as they did, whose exchanges say how many rows
    come only while they run."""
    for block in [m for m in model.modules() if isinstance(m, Block)]:
        if isinstance(block.mlp, MLP):
            block.forward = _watched(torch.compile(block.forward, dynamic=False))


def _watched(compiled: Forward) -> Forward:
    def forward(x_BTD: Tensor, given: Pass) -> Tensor:
        if given.watch is None:
            return compiled(x_BTD, given)
        own = copy(given)
        own.watch = Watch(given.watch.skip_queries)
        out_BTD = compiled(x_BTD, own)
        given.watch.first_mass_BH += own.watch.first_mass_BH
        return out_BTD

    return forward
