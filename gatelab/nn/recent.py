"""Caches that keep recent tokens alone: of layers with a window, or of a text without end.

Notable: a layer with a window needs no more than its queries may still see, and every number stays what it is. A streaming
cache drops tokens that would be seen, and keeps the first ones or not (StreamingLLM, arXiv 2309.17453): positions are then
places inside the cache, not in the text, so keys are stored as they are before RoPE.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .cache import Cache, Keys
from .widths import check_widths


class SlidingCache(Cache):
    """As `KVCache`, but a layer with a window w keeps the last w − 1 tokens, which is what the next one may still see.

    Such a layer has room for a quarter of that and 16 tokens more, so that keys are moved rarely.

    Args:
        windows: of each layer; None keeps all of `max_seq_len`.
    """

    def __init__(
        self,
        *,
        windows: Sequence[int | None],
        batch: int,
        max_seq_len: int,
        n_kv_heads: int,
        head_dim: int,
        n_score_heads: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__(batch, (n_kv_heads, head_dim), n_score_heads, dtype)
        check_widths(n_layers=len(windows), max_seq_len=max_seq_len)
        self.max_seq_len = max_seq_len
        lasts = [max_seq_len if w is None else min(w - 1, max_seq_len) for w in windows]
        rooms = [min(max_seq_len, _room(last)) for last in lasts]
        self._layers = [
            _Recent(_empty(batch, room, self.heads, n_score_heads, dtype, device), first=0, last=last)
            for room, last in zip(rooms, lasts, strict=True)
        ]

    @property
    def n_bytes(self) -> int:
        """B · (2 G K + score heads) numbers for each slot of each layer."""
        return sum(layer.n_bytes for layer in self._layers)

    def append(self, layer: int, new: Keys) -> Keys:
        """Store the new tokens of one layer; returns the window before them, and them. Errors as of `Cache.append`."""
        self._check(layer, len(self._layers), new)
        self._check_room(self.length + new.k_BSGK.shape[1], self.max_seq_len)
        self._note(layer, new)
        return self._layers[layer].append(new)

    def advance(self, n_tokens: int) -> None:
        """Count the tokens that all layers have stored, or take them back with 0, as of `Cache.advance`."""
        self._check_count(n_tokens)
        _settle([self._layers[layer] for layer in self.stored], n_tokens)
        self.length, self.stored = self.length + n_tokens, ()


class StreamingCache(Cache):
    """The first `first` tokens of a text and the last ones: `last` of them, a token that comes alone among them.

    Every layer drops the same tokens; what is kept counts as positions 0, 1, … without a gap, however long the text.

    Raises:
        ValueError: for a negative `first`, or `last` below 1.
    """

    turns_late = True

    def __init__(
        self,
        *,
        first: int,
        last: int,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        n_score_heads: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        if first < 0 or last < 1:
            raise ValueError(
                f"first={first}, last={last}: take 0 or more of the first tokens, and 1 or more of the last"
            )
        super().__init__(batch, (n_kv_heads, head_dim), n_score_heads, dtype)
        check_widths(n_layers=n_layers)
        self.most, self._first = first + last - 1, first
        room = first + _room(last - 1)
        self._layers = [
            _Recent(_empty(batch, room, self.heads, n_score_heads, dtype, device), first=first, last=last - 1)
            for _ in range(n_layers)
        ]

    @property
    def n_bytes(self) -> int:
        """B · (2 G K + score heads) numbers for each slot of each layer."""
        return sum(layer.n_bytes for layer in self._layers)

    def append(self, layer: int, new: Keys) -> Keys:
        """Store the new tokens of one layer; returns what was kept before them, and them. Errors as of `Cache.append`."""
        self._check(layer, len(self._layers), new)
        self._note(layer, new)
        return self._layers[layer].append(new)

    def advance(self, n_tokens: int) -> None:
        """Count the tokens that stay, or take them back with 0, as of `Cache.advance`; what they push out is dropped by the
        next `append`."""
        self._check_count(n_tokens)
        _settle([self._layers[layer] for layer in self.stored], n_tokens)
        self.has_first = self.has_first and (self._first > 0 or self.length + n_tokens <= self.most)
        self.length, self.stored = min(self.length + n_tokens, self.most), ()


class _Recent:
    """The first `first` and the last `last` tokens of one layer, in order; the slots beyond let newer ones be appended
    without moving the others."""

    def __init__(self, stores: Keys, *, first: int, last: int):
        self._stores = tuple(store for store in stores if store is not None)
        self._first, self._last, self._n = first, last, 0
        # How many there were before the newest, and those where the newest took their place.
        self._n_before, self._replaced = 0, ()

    @property
    def n_bytes(self) -> int:
        return sum(store.nbytes for store in self._stores)

    def append(self, new: Keys) -> Keys:
        """What is kept, and the new tokens."""
        values = [value for value in new if value is not None]
        n_new, room, stores = values[0].shape[1], self._stores[0].shape[1], self._stores[: len(values)]
        if self._n + n_new > room:
            self._drop()
        self._n_before = self._n
        if self._n + n_new > room:
            return self._append_many(values)
        start, before, self._n = self._start(self._n), self._n, self._n + n_new
        for store, value in zip(stores, values, strict=True):
            store[:, before : self._n] = value
        if start == self._first:
            return Keys(*(store[:, : self._n] for store in stores))
        recent = [store[:, start : self._n] for store in stores]
        if not self._first:
            return Keys(*recent)
        return Keys(*(torch.cat([s[:, : self._first], r], dim=1) for s, r in zip(stores, recent, strict=True)))

    def settle(self, *, is_kept: bool) -> None:
        """The newest tokens stay, or are gone."""
        if not is_kept:
            self._n = self._n_before
            for store, before in zip(self._stores, self._replaced, strict=False):
                store[:, : self._n] = before
        self._replaced = ()

    def _append_many(self, values: list[Tensor]) -> Keys:
        """More new tokens than there are slots."""
        seen = [torch.cat([s[:, : self._n], v], dim=1) for s, v in zip(self._stores, values, strict=False)]
        start = self._start(seen[0].shape[1])
        self._replaced = tuple(s[:, : self._n].clone() for s in self._stores[: len(values)])
        for store, all_so_far in zip(self._stores, seen, strict=False):
            kept = torch.cat([all_so_far[:, : self._first], all_so_far[:, start:]], dim=1)
            self._n = kept.shape[1]
            store[:, : self._n] = kept
        return Keys(*seen)

    def _drop(self) -> None:
        start = self._start(self._n)
        if start == self._first:
            return
        for store in self._stores:
            store[:, self._first : self._first + self._n - start] = store[:, start : self._n].clone()
        self._n = self._first + self._n - start

    def _start(self, n: int) -> int:
        """Of n tokens the first of the last ones that are kept."""
        return max(self._first, n - self._last)


def _settle(layers: list[_Recent], n_tokens: int) -> None:
    for layer in layers:
        layer.settle(is_kept=n_tokens > 0)


def _room(n_tokens: int) -> int:
    return n_tokens + n_tokens // 4 + 16


def _empty(
    batch: int,
    room: int,
    heads: tuple[int, int],
    n_score_heads: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Keys:
    k_BSGK, v_BSGK = (torch.zeros((batch, room, *heads), dtype=dtype, device=device) for _ in range(2))
    scores_BSH = torch.zeros((batch, room, n_score_heads), dtype=dtype, device=device) if n_score_heads else None
    return Keys(k_BSGK, v_BSGK, scores_BSH)
