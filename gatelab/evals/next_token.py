"""What a language model says of the next tokens of one text, Gatelab's own or transformers': losses, logits in pieces.

Notable: the stack is run once, and its head on so many positions at a time that float32 logits stay small. A family of
transformers may do more to its logits than multiply (cap, scale), so its own forward function is called on each piece, with
the stack's output in the stack's place.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.block import Pass
from ..models.decoder import Decoder
from ..models.model import Model

# Bounds the memory of logits, not the result; a divergence from other logits holds both.
_LOGITS = 2**26


class StatesUnused(ValueError):
    """A model computes its logits from other states than those that its base returns."""


class NextToken(ABC):
    """A model that predicts next tokens; `n_ids` its vocabulary, `max_tokens` what its positions allow (None: not said)."""

    def __init__(self, model: nn.Module, n_ids: int, max_tokens: int | None):
        self.model, self.n_ids, self.max_tokens = model, n_ids, max_tokens
        self.device = next(model.parameters()).device

    @abstractmethod
    def states(self, ids: list[int]) -> Any:
        """What the stack makes of a text, for `logits`."""

    @abstractmethod
    def logits(self, states: Any, positions: Tensor) -> Tensor:
        """Logits [N, V] of the tokens after N positions."""

    def check(self, n_tokens: int, what: str) -> None:
        """Refuse a text that is too long.

        Raises:
            ValueError: naming the limit.
        """
        if self.max_tokens is not None and n_tokens > self.max_tokens:
            raise ValueError(
                f"{what} has {n_tokens} tokens, and this model has positions for {self.max_tokens}; take a shorter text"
            )

    def check_ids(self, ids: Sequence[int], what: str) -> None:
        """Refuse ids that the model does not have.

        Raises:
            ValueError: naming the first.
        """
        wrong = next((t for t in ids if not 0 <= t < self.n_ids), None)
        if wrong is not None:
            raise ValueError(f"{what} has the id {wrong}; this model has ids 0 to {self.n_ids - 1}")

    def check_documents(self, documents: Sequence[Sequence[int]]) -> None:
        """Refuse documents that have no next-token loss here.

        Raises:
            ValueError: none, one of fewer than two tokens, too long or of unknown ids.
        """
        if not documents:
            raise ValueError("no documents: give lists of token ids, two at least in each")
        for i, ids in enumerate(documents):
            if len(ids) < 2:
                raise ValueError(f"document {i} has {len(ids)} tokens, and a next-token loss takes two at least")
            self.check(len(ids), f"document {i}")
            self.check_ids(ids, f"document {i}")

    @torch.no_grad()
    def losses(
        self, states: Any, positions: list[int], targets: list[int], reference: tuple[Any, list[int]] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The cross-entropy of each target at the position before it, [N] in nats, in float64 on the host; and the
        divergence KL(reference ‖ this) there, given other states and their positions, or None."""
        at_once = max(1, _LOGITS // self.n_ids)
        losses, divergences = [], []
        for start in range(0, len(positions), at_once):
            piece = slice(start, start + at_once)
            log_p_NV = self.logits(states, self._index(positions[piece])).float().log_softmax(dim=-1)
            losses.append(F.nll_loss(log_p_NV, self._index(targets[piece]), reduction="none").double().cpu())
            if reference is not None:
                log_r_NV = self.logits(reference[0], self._index(reference[1][piece])).float().log_softmax(dim=-1)
                divergences.append(F.kl_div(log_p_NV, log_r_NV, reduction="none", log_target=True).sum(dim=-1))
        return torch.cat(losses), torch.cat(divergences).double().cpu() if divergences else None

    def _index(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=self.device)


def next_token(model: nn.Module | NextToken) -> NextToken:
    """The model as one that predicts next tokens; one that is such already as it is.

    Raises:
        ValueError: an encoder, a model of two stacks, one without a language-model head.
    """
    name = type(model).__name__
    if isinstance(model, NextToken):
        return model
    if isinstance(model, Decoder):
        return _Own(model)
    if isinstance(model, Model):
        raise ValueError(
            f"a model of architecture {model.config.arch} has no next-token loss of a text; take a decoder"
        )
    if not hasattr(model, "config") or not hasattr(model, "get_output_embeddings"):
        raise ValueError(f"{name} is neither a decoder of Gatelab nor a model of transformers, so it has no known loss")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} has two stacks, and no next-token loss of a text alone; take a decoder")
    import transformers

    # A decoder's configuration may say is_decoder=False, as GPT-NeoX's does.
    is_masked = type(model.config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    is_encoder = "MaskedLM" in name or (is_masked and getattr(model.config, "is_decoder", True) is False)
    if is_encoder:
        raise ValueError(f"{name} is an encoder, which sees the tokens that it would predict; take a decoder")
    if model.get_output_embeddings() is None or model.base_model is model:
        raise ValueError(
            f"{name} has no language-model head, so it has no loss; load it with one, as AutoModelForCausalLM does"
        )
    return _External(model)


class _Own(NextToken):
    def __init__(self, model: Decoder):
        super().__init__(model, model.config.vocab_size, model.config.max_seq_len)

    def states(self, ids: list[int]) -> Tensor:
        (stack,) = self.model.config.architecture.stacks
        return self.model.run(stack, self._index(ids)[None], Pass())

    def logits(self, states: Tensor, positions: Tensor) -> Tensor:
        return self.model.head(states[0, positions])


class _External(NextToken):
    def __init__(self, model: nn.Module):
        text = model.config.get_text_config()
        n_ids = model.get_output_embeddings().weight.shape[0]
        super().__init__(model, n_ids, getattr(text, "max_position_embeddings", None))

    def states(self, ids: list[int]) -> Any:
        return self.model.base_model(input_ids=self._index(ids)[None], use_cache=False)

    def logits(self, states: Any, positions: Tensor) -> Tensor:
        piece = type(states)(**{**states, "last_hidden_state": states.last_hidden_state[:, positions]})
        with _returns(self.model.base_model, piece) as n_calls:
            logits_NV = self.model(input_ids=torch.zeros_like(positions)[None], use_cache=False).logits[0]
        if not n_calls:
            raise StatesUnused(
                f"{type(self.model).__name__} calls a part of its {type(self.model.base_model).__name__} and not the whole, so "
                "its logits cannot be taken from states; its loss is not known here"
            )
        return logits_NV


@contextmanager
def _returns(module: nn.Module, output: Any) -> Iterator[list[None]]:
    """A module that computes nothing and returns this; gives a list with an entry for each call so far."""
    before, calls = module.__dict__.get("forward"), []

    def forward(*_args: Any, **_keywords: Any) -> Any:
        calls.append(None)
        return output

    module.forward = forward
    try:
        yield calls
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
