"""Passes of a causal model of transformers, with its own cache and its own `generate`.

Notable: that a family's cache can be gone on from, that it takes padding in front, and that its head can be run apart from its
stack is tried on a few tokens first; where one cannot, every row is read whole, or with all its logits.
"""

import copy
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ...models.generate import Sampling
from ..next_token import StatesUnused
from .passes import Ids, Passes, Written, flush_left, flush_right, up_to

# Of the largest number; half precision moves one by a hundredth, what begins anew by more than a tenth.
_SAME = 0.03


class ExternalPasses(Passes):
    """Of a model of transformers with a language-model head; where that cannot be run apart, logits stand for the stack's
    output."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self._takes = signature(model.base_model.forward).parameters
        self._kind: Any = None
        self.heads_apart = self._same_apart()
        self.shares = self.pads = self._goes_on()

    @torch.no_grad()
    def whole(self, rows: Sequence[Ids]) -> Tensor:
        return self._run({"input_ids": flush_left(rows, self.device), "use_cache": False})

    @torch.no_grad()
    def begin(self, contexts: Sequence[Ids]) -> tuple[Tensor, Any]:
        from transformers import DynamicCache

        tokens_BT, n_padding_B = flush_right(contexts, self.device)
        cache = DynamicCache(config=self.model.config)
        x_BTD = self._run(self._given(tokens_BT, n_padding_B, 0) | {"past_key_values": cache})
        return x_BTD[:, -1], (cache, n_padding_B, tokens_BT.shape[1])

    @torch.no_grad()
    def go_on(self, memory: Any, contexts: Sequence[int], rows: Sequence[Ids]) -> Tensor:
        held, n_padding_B, length = memory
        which_B = torch.tensor(contexts, device=self.device)
        cache = copy.deepcopy(held)
        cache.reorder_cache(which_B)
        given = self._given(flush_left(rows, self.device), n_padding_B[which_B], length)
        return self._run(given | {"past_key_values": cache})

    def write(
        self,
        prompts: Sequence[Ids],
        n_tokens: int,
        sampling: Sampling,
        stop_ids: frozenset[int],
        is_done: Callable[[Ids], bool],
    ) -> list[Written]:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        tokens_BT, n_padding_B = flush_right(prompts, self.device)
        start = tokens_BT.shape[1]
        watch, stops = _Finite(len(prompts), self.device), _Stops(start, is_done)
        drawn = {"do_sample": False}
        if sampling.temperature > 0:
            torch.manual_seed(sampling.seed)
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
            drawn |= {} if sampling.top_k is None else {"top_k": sampling.top_k}
        out_BT = self.model.generate(
            input_ids=tokens_BT,
            attention_mask=(torch.arange(start, device=self.device) >= n_padding_B[:, None]).long(),
            max_new_tokens=n_tokens,
            eos_token_id=sorted(stop_ids) or None,
            pad_token_id=min(stop_ids, default=0),
            logits_processor=LogitsProcessorList([watch]),
            stopping_criteria=StoppingCriteriaList([stops]),
            use_cache=True,
            **drawn,
        )
        rows = out_BT[:, start:].tolist()
        ends = [stops.ends.get(row, n_tokens) for row in range(len(rows))]
        return [
            Written(up_to(ids[:end], stop_ids), ok)
            for ids, end, ok in zip(rows, ends, watch.is_finite_B.tolist(), strict=True)
        ]

    def logits(self, x_ND: Tensor) -> Tensor:
        if not self.heads_apart:
            return x_ND
        states = self._kind(last_hidden_state=x_ND[None])
        return self.asked.logits(states, torch.arange(len(x_ND), device=self.device))

    def _run(self, given: dict[str, Any]) -> Tensor:
        if not self.heads_apart:
            return self.model(**given).logits
        states = self.model.base_model(**given)
        self._kind = type(states)
        return states.last_hidden_state

    def _given(self, tokens_BT: Tensor, n_padding_B: Tensor, length: int) -> dict[str, Any]:
        """What the stack is called with for tokens behind `length` others, padding among them."""
        given: dict[str, Any] = {"input_ids": tokens_BT, "use_cache": True}
        if not bool(n_padding_B.any()):
            return given
        place_S = torch.arange(length + tokens_BT.shape[1], device=self.device)
        given["attention_mask"] = (place_S >= n_padding_B[:, None]).long()
        if "position_ids" in self._takes:
            given["position_ids"] = (place_S - n_padding_B[:, None]).clamp(min=0)[:, length:]
        return given

    def _tried(self) -> list[int]:
        return [1 + i % (self.n_ids - 1) for i in range(16)]

    @torch.no_grad()
    def _same_apart(self) -> bool:
        """Whether the head on the stack's output gives the model's own logits; some models call a part of their stack."""
        ids = self._tried()
        own_TV = self.model(input_ids=flush_left([ids], self.device), use_cache=False).logits[0]
        try:
            apart_TV = self.logits(self.whole([ids])[0])
        except StatesUnused:
            return False
        return bool((own_TV - apart_TV).abs().max() <= _SAME * own_TV.abs().max())

    @torch.no_grad()
    def _goes_on(self) -> bool:
        """Whether rows behind shared contexts of unequal length come out as they do whole."""
        ids = self._tried()
        contexts, rows = (ids[:4], ids[:9]), (ids[9:12], ids[12:])
        try:
            _, memory = self.begin(contexts)
            after_BTD = self.go_on(memory, (1, 0), rows)
        except torch.OutOfMemoryError:
            raise  # reading rows whole would take more
        except (ValueError, TypeError, AttributeError, RuntimeError, IndexError, KeyError, NotImplementedError):
            return False  # it takes another cache, or none
        for context, row, after_TD in zip((contexts[1], contexts[0]), rows, after_BTD, strict=True):
            whole_TD = self.whole([[*context, *row]])[0, len(context) :]
            if not bool((whole_TD - after_TD[: len(row)]).abs().max() <= _SAME * whole_TD.abs().max()):
                return False
        return True


class _Finite:
    """A logits processor that changes nothing, and keeps whether each row has been finite."""

    def __init__(self, batch: int, device: torch.device):
        self.is_finite_B = torch.ones(batch, dtype=torch.bool, device=device)

    def __call__(self, _ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        # Families mask ids that they never write with −∞.
        self.is_finite_B &= ~(logits_BV.isnan() | (logits_BV == torch.inf)).any(dim=-1)
        return logits_BV


class _Stops:
    """A stopping criterion that reads each row behind its prompt; `ends`: rows by how many ids they have."""

    def __init__(self, start: int, is_done: Callable[[Ids], bool]):
        self.start, self.is_done, self.ends = start, is_done, {}

    def __call__(self, ids_BT: Tensor, _scores: object, **_told: object) -> Tensor:
        for row, ids in enumerate(ids_BT[:, self.start :].tolist()):
            if row not in self.ends and self.is_done(ids):
                self.ends[row] = len(ids)
        return torch.tensor([row in self.ends for row in range(len(ids_BT))], device=ids_BT.device)
