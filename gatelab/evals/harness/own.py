"""Passes of a decoder of ours. Contexts stand flush right behind padding that no token looks at, as prompts do.

Notable: where prompts of unequal length go on from one beginning, its keys are turned on by the padding before each row, since
rotary keys know their place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from torch import Tensor

from ...models.decoder import Decoder
from ...models.generate import Sampling, stream
from ...models.generate.continuation import continued
from ...nn.attention import GatedAttention
from ...nn.cache import KVCache, Padding
from .passes import Ids, Passes, Written, flush_left, flush_right, up_to


class OwnPasses(Passes):
    """Of a `Decoder`."""

    model: Decoder

    def __init__(self, model: Decoder):
        super().__init__(model)
        c = model.config
        # What stands before a context would count in these.
        self.pads = self.pads_behind = c.positions != "learned" and not (
            c.registers or c.softmax.kind == "key-bias" or c.first_hidden_from
        )
        self.token_bytes = model.new_cache(1, 1).n_bytes // (1 + c.registers)
        self._ropes = [m.rope for m in model.modules() if isinstance(m, GatedAttention)]

    @torch.no_grad()
    def whole(self, rows: Sequence[Ids]) -> Tensor:
        return self.model.hidden(flush_left(rows, self.device))

    @torch.no_grad()
    def begin(self, contexts: Sequence[Ids]) -> tuple[Tensor, KVCache]:
        tokens_BT, n_padding_B = flush_right(contexts, self.device)
        cache = self._cache(len(contexts), tokens_BT.shape[1], n_padding_B)
        return self.model.hidden(tokens_BT, cache=cache)[:, -1], cache

    @torch.no_grad()
    def go_on(self, memory: KVCache, contexts: Sequence[int], rows: Sequence[Ids]) -> tuple[Tensor, KVCache]:
        tokens_BT, length = flush_left(rows, self.device), memory.length
        which_B = torch.tensor(contexts, device=self.device)
        n_padding_B = None if memory.padding is None else (~memory.padding.is_token_BS).sum(dim=1)[which_B]
        cache = self._cache(len(rows), length - self.model.config.registers + tokens_BT.shape[1], n_padding_B)
        for store, held in zip(_stores(cache), _stores(memory), strict=True):
            store[:, :, :length] = held[:, which_B, :length]
        cache.length = length
        return self.model.hidden(tokens_BT, cache=cache), cache

    def write(
        self,
        prompts: Sequence[Ids],
        n_tokens: int,
        sampling: Sampling,
        stop_ids: frozenset[int],
        is_done: Callable[[Ids], bool],
        beginning: KVCache | None = None,
    ) -> list[Written]:
        rows: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        if beginning is None:
            steps = stream(self.model, list(map(list, prompts)), n_tokens, sampling=sampling, stop_ids=stop_ids)
        else:
            steps = self._resumed(beginning, prompts, n_tokens, sampling)
        with self._watched(len(prompts)) as is_finite_B, closing(steps):
            for step in steps:
                for row in sorted(running):
                    rows[row].append(step[row])
                    if step[row] in stop_ids or is_done(rows[row]):
                        running.discard(row)
                if not running:
                    break
            finite = is_finite_B.tolist()
        return [Written(up_to(row, stop_ids), ok) for row, ok in zip(rows, finite, strict=True)]

    def _resumed(
        self, beginning: KVCache, prompts: Sequence[Ids], n_tokens: int, sampling: Sampling
    ) -> Iterator[list[int]]:
        """As `stream`. Every row is fed as many of its last tokens as the longest has behind the beginning; what it has before
        them are the beginning's keys, on the other side of its padding."""
        n_registers, held = self.model.config.registers, beginning.length
        n_fed = max(map(len, prompts)) + n_registers - held
        tokens_BT, _ = flush_right([row[-n_fed:] for row in prompts], self.device)
        _, n_padding_B = flush_right(prompts, self.device)
        cache = self._cache(len(prompts), held - n_registers + n_fed + n_tokens, n_padding_B)
        for row, n_padding in enumerate(n_padding_B.tolist()):
            if n_padding < held:
                for store, kept in zip(_stores(cache), _stores(beginning), strict=True):
                    store[:, row, n_padding:held] = kept[:, 0, : held - n_padding]
                if n_padding:
                    self._turn(cache.k_LBSGK[:, row, n_padding:held], n_padding)
        cache.length = held
        uniform_BN = sampling.uniforms(len(prompts), n_tokens)
        for new_B in continued(
            self.model, lambda t_BT: self.model.hidden(t_BT, cache=cache), [tokens_BT], n_tokens, sampling, uniform_BN
        ):
            yield new_B.tolist()

    @torch.no_grad()
    def _turn(self, k_LSGK: Tensor, by: int) -> None:
        """Turn rotary keys to places `by` later."""
        for rope, k_SGK in zip(self._ropes, k_LSGK, strict=True):
            if rope is not None:
                turned_SGK = rope(k_SGK[:, None], by)[:, 0]
                # Its tables have the amplitude that these keys have been given already.
                turned_SGK[..., : rope.rotary_dim] /= rope.scaling.amplitude
                k_SGK.copy_(turned_SGK)

    def logits(self, x_ND: Tensor) -> Tensor:
        return self.asked.logits(x_ND[None], torch.arange(len(x_ND), device=self.device))

    def _cache(self, batch: int, n_tokens: int, n_padding_B: Tensor | None) -> KVCache:
        cache = self.model.new_cache(batch, n_tokens)
        if n_padding_B is not None and bool(n_padding_B.any()):
            cache.padding = Padding(n_padding_B, n_tokens, self.model.compute_dtype or self.model.head.weight.dtype)
        return cache

    @contextmanager
    def _watched(self, batch: int) -> Iterator[Tensor]:
        """Whether the logits of each row have all been finite, [B]."""
        is_finite_B = torch.ones(batch, dtype=torch.bool, device=self.device)

        def look(_module: object, _given: object, logits_BV: Tensor) -> None:
            is_finite_B.logical_and_(logits_BV.isfinite().all(dim=-1))

        handle = self.model.head.register_forward_hook(look)
        try:
            yield is_finite_B
        finally:
            handle.remove()


def _stores(cache: KVCache) -> tuple[Tensor, Tensor, Tensor]:
    return cache.k_LBSGK, cache.v_LBSGK, cache.score_logits_LBSH
