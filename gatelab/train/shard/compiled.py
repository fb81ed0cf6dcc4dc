"""Blocks compiled one by one, where a mesh exchanges between and within them: torch.compile leaves what it cannot compile as it is,
and one block's code serves all that are equal.

Notable: only functions that a block or a layer of experts calls are replaced. Hooks that gather its weights run around them, and
its names are what they were. Of a block with experts that is what comes before them, and of them all but the router and what
travels, whose size only the run says. A block gets a watch of its own, so that its code does not depend on how many came before.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from ...models.block import Block, Pass
from ...models.model import Model
from ...nn.mlp import MLP
from ...nn.moe import ExpertMLP
from ...nn.watch import Watch
from .expert import TravellingFFN


def compile_blocks(model: Model) -> None:
    """Let every block compute compiled, but for routers and for what experts exchange."""
    for block in [m for m in model.modules() if isinstance(m, Block)]:
        if isinstance(block.mlp, MLP):
            block.forward = _watched(torch.compile(block.forward, dynamic=False))
        else:
            block.attend = _watched(torch.compile(block.attend, dynamic=False))
            _compile_experts(block.mlp)


def _compile_experts(layer: ExpertMLP) -> None:
    if isinstance(layer.ffn, TravellingFFN):
        layer.ffn.compile()
    else:
        layer.of_chosen = torch.compile(layer.of_chosen, dynamic=False)
    if layer.shared is not None:
        layer.shared.forward = torch.compile(layer.shared.forward, dynamic=False)


def _watched(compiled: Callable[[Tensor, Pass], Any]) -> Callable[[Tensor, Pass], Any]:
    def forward(x_BTD: Tensor, given: Pass) -> Any:
        if given.watch is None:
            return compiled(x_BTD, given)
        own = copy(given)
        own.watch = Watch(given.watch.skip_queries)
        out = compiled(x_BTD, own)
        given.watch.first_mass_BH += own.watch.first_mass_BH
        return out

    return forward
