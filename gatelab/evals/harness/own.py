"""Passes of a decoder of ours. Contexts stand flush right behind padding that no token looks at, as prompts do."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from torch import Tensor

from ...models.decoder import Decoder
from ...models.generate import Sampling, stream
from ...nn.cache import KVCache, Padding
from .passes import Ids, Passes, Written, flush_left, flush_right, up_to


class OwnPasses(Passes):
    """Of a `Decoder`."""

    model: Decoder

    def __init__(self, model: Decoder):
        super().__init__(model)
        c = model.config
        # What stands before a context would count in these.
        self.pads = c.positions != "learned" and not (
            c.registers or c.softmax.kind == "key-bias" or c.first_hidden_from
        )

    @torch.no_grad()
    def whole(self, rows: Sequence[Ids]) -> Tensor:
        return self.model.hidden(flush_left(rows, self.device))

    @torch.no_grad()
    def begin(self, contexts: Sequence[Ids]) -> tuple[Tensor, KVCache]:
        tokens_BT, n_padding_B = flush_right(contexts, self.device)
        cache = self._cache(len(contexts), tokens_BT.shape[1], n_padding_B)
        return self.model.hidden(tokens_BT, cache=cache)[:, -1], cache

    @torch.no_grad()
    def go_on(self, memory: KVCache, contexts: Sequence[int], rows: Sequence[Ids]) -> Tensor:
        tokens_BT, length = flush_left(rows, self.device), memory.length
        which_B = torch.tensor(contexts, device=self.device)
        n_padding_B = None if memory.padding is None else (~memory.padding.is_token_BS).sum(dim=1)[which_B]
        cache = self._cache(len(rows), length - self.model.config.registers + tokens_BT.shape[1], n_padding_B)
        for store, held in (
            (cache.k_LBSGK, memory.k_LBSGK),
            (cache.v_LBSGK, memory.v_LBSGK),
            (cache.score_logits_LBSH, memory.score_logits_LBSH),
        ):
            store[:, :, :length] = held[:, which_B, :length]
        cache.length = length
        return self.model.hidden(tokens_BT, cache=cache)

    def write(
        self,
        prompts: Sequence[Ids],
        n_tokens: int,
        sampling: Sampling,
        stop_ids: frozenset[int],
        is_done: Callable[[Ids], bool],
    ) -> list[Written]:
        rows: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        with (
            self._watched(len(prompts)) as is_finite_B,
            closing(
                stream(self.model, list(map(list, prompts)), n_tokens, sampling=sampling, stop_ids=stop_ids)
            ) as steps,
        ):
            for step in steps:
                for row in sorted(running):
                    rows[row].append(step[row])
                    if step[row] in stop_ids or is_done(rows[row]):
                        running.discard(row)
                if not running:
                    break
            finite = is_finite_B.tolist()
        return [Written(up_to(row, stop_ids), ok) for row, ok in zip(rows, finite, strict=True)]

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
