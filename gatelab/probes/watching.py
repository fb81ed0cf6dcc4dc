"""watching: first-token mass of every training pass, for next to nothing, in anyone's loop.

    with watching(model) as seen:
        for step, (tokens, targets) in enumerate(batches):
            loss_of(model(tokens), targets).backward()
            if step % 100 == 0:
                print(step, seen.first_token_mass().mean(dim=1))

Notable: of the batch that is trained on, from the log-sum-exp that attention has computed anyway; `capture` measures more, on
sequences of your choice, and builds every weight. Nothing waits for the device until a number is asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.attention import GatedAttention
from ..nn.watch import Watch
from .capture import _is_compiled, refuse_shared


class Seen:
    """What the layers told of their last forward pass."""

    def __init__(self, skip_queries: int):
        self.skip_queries = skip_queries
        self.last: dict[int, Watch] = {}  # by place among the layers

    def first_token_mass(self) -> Tensor:
        """Mean over sequences and queries of the mass on the first token in the last forward pass, [L, H] in float32 on the
        model's device: L layers of causal self-attention, in order, H heads.

        Not-a-number for a layer that does not tell it (see `GatedAttention.forward`), and past the heads of one that has
        fewer than others.

        Raises:
            ValueError: when no causal self-attention was seen.
        """
        masses = [watch.first_mass_BH[0].mean(dim=0) for _, watch in sorted(self.last.items()) if watch.first_mass_BH]
        if not masses:
            raise ValueError("no causal self-attention was seen; run the model inside the block first")
        H = max(len(mass_H) for mass_H in masses)
        return torch.stack([F.pad(mass_H, (0, H - len(mass_H)), value=torch.nan) for mass_H in masses])


@contextmanager
def watching(model: nn.Module, *, skip_queries: int = 1) -> Iterator[Seen]:
    """Have every GatedAttention inside `model` tell its first-token mass, pass by pass; what is trained does not change.

    A pass in which gradients are accumulated counts by itself, and each forgets the one before it.

    Args:
        skip_queries: how many of a sequence's first queries are left out of the mean; the first one's mass is 1.

    Raises:
        ValueError: a compiled model (compile it inside of the block, as what is compiled ignores later hooks), a model
            without gated attention, heads that are shared among processes, `skip_queries` below 1.
    """
    if any(_is_compiled(m) for m in model.modules()):
        raise ValueError(
            "this model is compiled and may ignore the hooks; give the module that was compiled, and compile it inside of "
            "the block"
        )
    layers = [m for m in model.modules() if isinstance(m, GatedAttention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} holds no GatedAttention layer, so there is nothing to watch")
    refuse_shared(layers)
    if skip_queries < 1:
        raise ValueError(f"skip_queries={skip_queries}: the first query sees the first token alone; take 1 or more")
    seen = Seen(skip_queries)
    handles = [
        layer.register_forward_pre_hook(_hook(index, seen), with_kwargs=True) for index, layer in enumerate(layers)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _hook(index: int, seen: Seen) -> Any:
    def hook(_module: nn.Module, args: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if keywords.get("watch") is not None:
            return None  # somebody else watches this pass
        seen.last[index] = Watch(seen.skip_queries)
        return args, keywords | {"watch": seen.last[index]}

    return hook
