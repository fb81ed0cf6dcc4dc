"""Passes of a causal model of transformers, with its own cache and its own `generate`.

Notable: that a family's cache can be gone on from, that it takes padding in front or behind a beginning, and that its head can be
run apart from its stack is tried on a few tokens first; where one cannot, every row is read whole, or with all its logits.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ...models.decoder import Decoder
from ...models.generate import Sampling
from ..next_token import StatesUnused
from .own import OwnPasses
from .passes import Ids, Passes, Written, flush_left, flush_right, up_to

# Of the largest number; half precision moves one by a hundredth, what begins anew by more than a tenth.
_SAME = 0.03
# Of a model that takes another cache, or none.
_OTHERWISE = (ValueError, TypeError, AttributeError, RuntimeError, IndexError, KeyError, NotImplementedError)


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
    def go_on(self, memory: Any, contexts: Sequence[int], rows: Sequence[Ids]) -> tuple[Tensor, Any]:
        _, n_padding_B, length = memory
        cache = self._copied(memory, contexts)
        tokens_BT, n_padding_B = flush_left(rows, self.device), n_padding_B[list(contexts)]
        x_BTD = self._run(self._given(tokens_BT, n_padding_B, length) | {"past_key_values": cache})
        return x_BTD, (cache, n_padding_B, length + tokens_BT.shape[1])

    def write(
        self,
        prompts: Sequence[Ids],
        n_tokens: int,
        sampling: Sampling,
        stop_ids: frozenset[int],
        is_done: Callable[[Ids], bool],
        beginning: Any = None,
    ) -> list[Written]:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        given, start = self._prompted(prompts, beginning)
        watch, stops = _Finite(len(prompts), self.device), _Stops(start, is_done)
        drawn = {"do_sample": False}
        if sampling.temperature > 0:
            torch.manual_seed(sampling.seed)
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
            drawn |= {} if sampling.top_k is None else {"top_k": sampling.top_k}
        out_BT = self.model.generate(
            **given,
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

    @cached_property
    def resumes(self) -> bool:
        """Whether `generate` goes on from a beginning as if it had read all of the prompts."""
        return self._writes_on([(0, 11), (0, 11)])

    @cached_property
    def pads_behind(self) -> bool:
        """Whether it does so with a gap behind it. A window counts places, a gap's among them."""
        _, memory = self.begin([self._tried()])
        return not any(layer.is_sliding for layer in memory[0].layers) and self._writes_on([(0, 11), (1, 8)])

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

    def _copied(self, memory: Any, contexts: Sequence[int]) -> Any:
        """A cache with the rows of these numbers."""
        cache = copy.deepcopy(memory[0])
        cache.reorder_cache(torch.tensor(contexts, device=self.device))
        return cache

    def _prompted(self, prompts: Sequence[Ids], beginning: Any) -> tuple[dict[str, Any], int]:
        """What `generate` is called with, and the length of its prompts. They stand flush right, and a beginning before their
        padding."""
        length = 0 if beginning is None else beginning[2]
        tokens_BT, n_padding_B = flush_right([row[length:] for row in prompts], self.device)
        mask_BT = (torch.arange(tokens_BT.shape[1], device=self.device) >= n_padding_B[:, None]).long()
        if beginning is None:
            return {"input_ids": tokens_BT, "attention_mask": mask_BT}, tokens_BT.shape[1]
        read_BT = torch.tensor([row[:length] for row in prompts], device=self.device)
        whole_BT = torch.cat([read_BT, tokens_BT], dim=1)
        return {
            "input_ids": whole_BT,
            "attention_mask": torch.cat([torch.ones_like(read_BT), mask_BT], dim=1),
            "past_key_values": self._copied(beginning, [0] * len(prompts)),
        }, whole_BT.shape[1]

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
        return _is_same(own_TV, apart_TV)

    @torch.no_grad()
    def _goes_on(self) -> bool:
        """Whether rows behind shared contexts of unequal length come out as they do whole."""
        ids = self._tried()
        contexts, rows = (ids[:4], ids[:9]), (ids[9:12], ids[12:])
        try:
            _, memory = self.begin(contexts)
            self.token_bytes = _n_bytes(memory[0]) // (len(contexts) * memory[2])
            after_BTD, _ = self.go_on(memory, (1, 0), rows)
        except torch.OutOfMemoryError:
            raise  # reading rows whole would take more
        except _OTHERWISE:
            return False
        for context, row, after_TD in zip((contexts[1], contexts[0]), rows, after_BTD, strict=True):
            whole_TD = self.whole([[*context, *row]])[0, len(context) :]
            if not _is_same(whole_TD, after_TD[: len(row)]):
                return False
        return True

    @torch.no_grad()
    def _writes_on(self, spans: Sequence[tuple[int, int]]) -> bool:
        """Whether the second token after a beginning of five and these spans has the logits that it has of whole rows."""
        ids = self._tried()
        prompts = [[*ids[:5], *ids[5 + start : 5 + end]] for start, end in spans]
        try:
            given, length = self._prompted(prompts, self.begin([ids[:5]])[1])
            out = self.model.generate(
                **given, max_new_tokens=2, min_new_tokens=2, do_sample=False, use_cache=True, pad_token_id=0,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        except torch.OutOfMemoryError:
            raise
        except _OTHERWISE:
            return False
        for row, prompt in enumerate(prompts):
            x_TD = self.whole([[*prompt, int(out.sequences[row, length])]])[0, -1:]
            if not _is_same(self.logits(x_TD)[0].float(), out.logits[1][row].float()):
                return False
        return True


def passes_of(model: nn.Module) -> Passes:
    """Those of a decoder of ours, or of a model of transformers."""
    return OwnPasses(model) if isinstance(model, Decoder) else ExternalPasses(model)


def _is_same(whole: Tensor, other: Tensor) -> bool:
    return bool((whole - other).abs().max() <= _SAME * whole.abs().max())


def _n_bytes(cache: Any) -> int:
    return sum(held.nbytes for layer in cache.layers for held in vars(layer).values() if isinstance(held, Tensor))


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
