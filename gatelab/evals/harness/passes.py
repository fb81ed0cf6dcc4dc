"""Forward passes over rows of token ids, Gatelab's own decoders or transformers': whole rows, rows that go on from shared
contexts, and what a model writes.

Notable: the stack is run over whole batches and its head only on the positions that are asked for, since logits over a
vocabulary are most of a pass of a small model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.generate import Sampling
from ..next_token import next_token

Ids = Sequence[int]

# Tokens that a CPU reads in the time that one more pass and a copied cache cost.
WORTH = 32
# Tokens that it reads in the time of a step of decoding; of eight rows of SmolLM2-135M on a CPU core it is 46 to 73 by
# benchmarks/results/harness_cpu_2026-11.md, and the batch that comes on top is seldom full.
_STEP = 48
# A GPU waits for a pass's launches: seconds a layer of transformers' code, and operations a second of what it reads meanwhile
# (benchmarks/results/harness_h200_2026-11.md).
_LAUNCHES_S, _FLOPS_PER_S = 8e-4, {2: 2.5e14, 4: 4e13}


@dataclass(frozen=True)
class Written:
    """What a model wrote after a prompt, a stop id last where it came to one; and whether all its logits were finite."""

    ids: list[int]
    is_finite: bool


class Passes(ABC):
    """A model in evaluation mode; `max_tokens` is what its positions allow (None: not said), `n_ids` its vocabulary.

    `shares`: contexts can be read once and gone on from. `pads`: contexts of unequal length may share a pass. `resumes`: what is
    written can go on from a beginning that several prompts share; `pads_behind`: of unequal length, too. `heads_apart`: its head
    can be run on what is asked for alone. `token_bytes`: keys and values of a token in all layers. `worth`: tokens that reading
    something once has to save, `step`: those that are read in the time of a step of decoding; of a small model on a GPU, which
    reads a whole batch in the time in which it starts a pass, they are thousands.

    Raises:
        ValueError: a model that has no next-token loss of a text.
    """

    shares, pads, resumes, pads_behind, heads_apart = True, True, True, True, True
    token_bytes = 0
    worth, step = WORTH, _STEP

    def __init__(self, model: nn.Module):
        self.model = model
        self.asked = next_token(model)
        self.n_ids, self.max_tokens, self.device = self.asked.n_ids, self.asked.max_tokens, self.asked.device
        if self.device.type == "cuda":
            n_read = read_in_a_pass(model)
            # What goes on has batches of its own, whose last is seldom full.
            self.worth, self.step = max(WORTH, 2 * n_read), max(_STEP, n_read)

    @abstractmethod
    def whole(self, rows: Sequence[Ids]) -> Tensor:
        """What the head reads at every token of rows, the first ones of [B, T, D]; the rest of a row is padding."""

    @abstractmethod
    def begin(self, contexts: Sequence[Ids]) -> tuple[Tensor, Any]:
        """What the head reads at the last token of each context, [B, D], and the keys and values to go on from."""

    @abstractmethod
    def go_on(self, memory: Any, contexts: Sequence[int], rows: Sequence[Ids]) -> tuple[Tensor, Any]:
        """As `whole`, of rows that follow the contexts of these numbers; and the keys and values to go on from behind rows of
        one length."""

    @abstractmethod
    def write(
        self,
        prompts: Sequence[Ids],
        n_tokens: int,
        sampling: Sampling,
        stop_ids: frozenset[int],
        is_done: Callable[[Ids], bool],
        beginning: Any = None,
    ) -> list[Written]:
        """Continuations of `n_tokens` ids, or fewer up to a stop id or where `is_done(ids so far)`. `beginning`: what `begin` has
        kept of the first tokens of all prompts, which leave one at least; without `pads_behind` they have one length."""

    @abstractmethod
    def logits(self, x_ND: Tensor) -> Tensor:
        """Logits [N, V] of what the head reads."""


def read_in_a_pass(model: nn.Module) -> int:
    """Tokens that a GPU reads in the time that it takes to start a pass."""
    n_layers = getattr(model.config, "n_layers", None) or getattr(model.config, "num_hidden_layers", 1)
    first = next(model.parameters())
    per_token = 2 * sum(p.numel() for p in model.parameters()) / _FLOPS_PER_S.get(first.element_size(), 4e13)
    return int(n_layers * _LAUNCHES_S / per_token)


def flush_left(rows: Sequence[Ids], device: torch.device) -> Tensor:
    """[B, T] of the rows, zeros behind the shorter ones."""
    T = max(map(len, rows))
    return torch.stack([F.pad(torch.tensor(row), (0, T - len(row))) for row in rows]).to(device)


def flush_right(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """[B, T] of the rows, zeros before the shorter ones, and how many, [B]."""
    T = max(map(len, rows))
    tokens_BT = torch.stack([F.pad(torch.tensor(row), (T - len(row), 0)) for row in rows])
    return tokens_BT.to(device), torch.tensor([T - len(row) for row in rows], device=device)


def up_to(ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    """The ids up to the first stop id, with it."""
    end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
