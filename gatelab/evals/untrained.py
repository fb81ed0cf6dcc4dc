"""The same model before it learned anything, which stands beside what it scores: a run's own beginning, or weights drawn anew."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from ..models import build_model
from ..models.model import Model

ITEMS = 20  # of a task that an untrained model is asked unless more is asked for
WEIGHTS = 200_000_000  # and from more weights on none is made unless asked for


@dataclass(frozen=True)
class Untrained:
    """What is asked of an untrained model: its `seed`, that of a run or 0; `is_whole`: of every item what is written too, else
    (None: unless there are too many weights; False: in no case) the choices of the first `ITEMS`."""

    seed: int = 0
    is_whole: bool | None = None

    def is_made(self, model: nn.Module) -> bool:
        """Whether one is asked beside this model."""
        return self.is_whole if self.is_whole is not None else n_weights(model) <= WEIGHTS

    def note(self, model: nn.Module, *, in_ids: bool = False) -> str:
        """What a reader should know of the column; empty where it was left out on purpose."""
        if self.is_made(model):
            of = (
                "every item"
                if self.is_whole or in_ids
                else f"the choices of the first {ITEMS} items (--untrained: of all)"
            )
            return f"untrained: the same model before training, weights drawn from seed {self.seed}, of {of}"
        if self.is_whole is False:
            return ""
        return f"no untrained model of {n_weights(model):,} weights was made; --untrained makes one"


def n_weights(model: nn.Module) -> int:
    """Weights, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """A model of the same configuration, device and dtype, in evaluation mode, with weights as they are before training: ours by
    (seed, name), as a run begins; those of transformers by its own rule after torch.manual_seed(seed), which is undone."""
    first = next(model.parameters())
    if isinstance(model, Model):
        fresh = build_model(model.config, seed=seed)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = type(model)(copy.deepcopy(model.config))
    return fresh.to(first.device, first.dtype).eval()
