"""Keys and values of the tokens so far, for decoding; memory is taken once.

Notable: every cache answers the same questions, and `n_bytes` says what it takes. `KVCache` keeps everything;
`gatelab.nn.recent` has those that drop what is no longer looked at. Prompts of unequal length stand flush right, with
`Padding` before the shorter ones.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .widths import check_widths


class Keys(NamedTuple):
    """What queries look at: keys and values [B, S, G, K], and a score gate's logits [B, S, H] where there is one."""

    k_BSGK: Tensor
    v_BSGK: Tensor
    score_logits_BSH: Tensor | None = None


class Padding:
    """The slots before each row's first token, `n_padding_B` of them; no token looks at them, and they look at themselves.

    Both masks are made once for all `max_seq_len` slots, and layers take slices of them.
    """

    def __init__(self, n_padding_B: Tensor, max_seq_len: int, dtype: torch.dtype):
        slot_S = torch.arange(max_seq_len, device=n_padding_B.device)
        self.is_token_BS = slot_S >= n_padding_B[:, None]
        hidden_BS = torch.zeros(self.is_token_BS.shape, dtype=dtype, device=slot_S.device)
        self._bias_B11S = hidden_BS.masked_fill(~self.is_token_BS, -math.inf)[:, None, None]

    def mask_BTS(self, end: int, n_queries: int, n_keys: int) -> Tensor:
        """True where the last queries before slot `end` may see the last keys before it."""
        query_BT, key_BS = self.is_token_BS[:, end - n_queries : end], self.is_token_BS[:, end - n_keys : end]
        return query_BT[:, :, None] == key_BS[:, None, :]

    def bias_B11S(self, end: int, n_keys: int) -> Tensor:
        """The same for a single token, as a bias: 0, or −∞ where it is hidden."""
        return self._bias_B11S[..., end - n_keys : end]


class Cache(ABC):
    """What layers and models ask of a cache of `batch` sequences.

    `length` is the position of the next token; it moves when the model's last layer has run (`advance`). `context` keeps
    what cross-attention layers made of their context, by layer, and `context_tokens` which of it are tokens, [B, S], where it
    came with padding; `joint` the weights that a layer with `is_packed` has joined
    for this text, and whose they are: they are not looked at again while it is decoded. `turns_late`: RoPE turns keys after
    they are looked up, by their place among what `append` returns. `has_first`: whether the text's first token was not
    dropped in every layer. `padding`: the slots before a row's first token, None without. `stored`: the layers that have
    appended since, `n_stored` tokens each.

    Raises:
        ValueError: when made, for a number of sequences, layers, tokens, heads or channels that is no whole number from 1.
    """

    turns_late = False

    def __init__(self, batch: int, heads: tuple[int, int], n_score_heads: int, dtype: torch.dtype):
        check_widths(batch=batch, n_kv_heads=heads[0], head_dim=heads[1])
        self.batch, self.heads, self.n_score_heads, self.dtype = batch, heads, n_score_heads, dtype
        self.context: dict[int, Keys] = {}
        self.context_tokens: dict[int, Tensor] = {}
        self.joint: dict[int, tuple[nn.Module, Tensor]] = {}
        self.padding: Padding | None = None
        self.length, self.has_first = 0, True
        # Copies of a cache must not share it.
        self.stored: tuple[int, ...] = ()
        self.n_stored = 0

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """What keys, values and score logits take, whether there are tokens yet or not."""

    @abstractmethod
    def append(self, layer: int, new: Keys) -> Keys:
        """Store the new tokens of one layer; returns all that they may look at, themselves last.

        Raises:
            ValueError: when they do not fit, are of another number of sequences, other heads or another type, are not as many as
                the layer before stored, belong to a layer that the cache does not have or that has stored its tokens, or have
                score logits and the cache no room for them.
        """

    @abstractmethod
    def advance(self, n_tokens: int) -> None:
        """Count the tokens that all layers have stored; 0 takes back those of a pass that failed or was only timed, so that the
        same call may be made again.

        Raises:
            ValueError: for another number than the layers have stored, which would be looked at as keys of zeros.
        """

    def keep_context(self, layer: int, keys: Keys, is_token_BS: Tensor | None = None) -> Keys:
        """Keep what a cross-attention layer made of its context, and which of it are tokens; returns the former."""
        self.context[layer] = keys
        self.context_tokens.pop(layer, None)  # of a context before this one
        if is_token_BS is not None:
            self.context_tokens[layer] = is_token_BS
        return keys

    def _note(self, layer: int, new: Keys) -> None:
        """Remember that a layer has stored its new tokens."""
        self.stored, self.n_stored = (*self.stored, layer), new.k_BSGK.shape[1]

    def _check_count(self, n_tokens: int) -> None:
        n_stored = self.n_stored if self.stored else 0
        if n_tokens not in (0, n_stored):
            raise ValueError(
                f"advance({n_tokens}) where the layers have stored {n_stored} tokens since the last: call it after the last layer "
                "with as many, as in cache.advance(x_BTD.shape[1]), or with 0 to take them back"
            )

    def _check(self, layer: int, n_layers: int, new: Keys) -> None:
        if layer >= n_layers:
            raise ValueError(f"layer {layer} of a cache for {n_layers} layers; make it with more n_layers")
        heads, batch = tuple(new.k_BSGK.shape[2:]), new.k_BSGK.shape[0]
        if heads != self.heads:
            raise ValueError(
                f"keys of (heads, channels) = {heads}, and the cache is for {self.heads}; make it with the layer's "
                "n_kv_heads and head_dim, or with the model's new_cache"
            )
        if batch != self.batch:
            raise ValueError(f"{batch} sequences, and the cache is for {self.batch}; make it with batch={batch}")
        # Under autocast the op rounds what it takes.
        is_cast = torch.is_autocast_enabled(new.k_BSGK.device.type)
        if not is_cast and any(t is not None and t.dtype != self.dtype for t in new):
            raise ValueError(
                f"keys of {new.k_BSGK.dtype}, and the cache is of {self.dtype}; make it with dtype={new.k_BSGK.dtype}"
            )
        if layer in self.stored:
            raise ValueError(
                f"layer {layer} has stored the tokens from position {self.length} already: give each layer its number with "
                "layer=, and call cache.advance(n_tokens) after the last layer, or cache.advance(0) after a pass that failed, "
                "which takes back what it stored"
            )
        if self.stored and new.k_BSGK.shape[1] != self.n_stored:
            raise ValueError(
                f"layer {layer} stores {new.k_BSGK.shape[1]} tokens and layer {self.stored[-1]} stored {self.n_stored}: run all "
                "layers over the same tokens, then cache.advance(n_tokens)"
            )
        if new.score_logits_BSH is not None and new.score_logits_BSH.shape[2] != self.n_score_heads:
            raise ValueError(
                f"this layer gates the scores of {new.score_logits_BSH.shape[2]} heads and the cache has room for "
                f"{self.n_score_heads}; make it with n_score_heads, or with the model's new_cache"
            )

    def _check_room(self, n_tokens: int, max_seq_len: int) -> None:
        if n_tokens > max_seq_len:
            raise ValueError(
                f"{n_tokens} tokens do not fit into a cache for {max_seq_len}; make it with a larger max_seq_len"
            )


class KVCache(Cache):
    """Room for `max_seq_len` tokens of `batch` sequences in every layer. A layer whose scores are gated stores a logit a
    head."""

    def __init__(
        self,
        *,
        n_layers: int,
        batch: int,
        max_seq_len: int,
        n_kv_heads: int,
        head_dim: int,
        n_score_heads: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__(batch, (n_kv_heads, head_dim), n_score_heads, dtype)
        check_widths(n_layers=n_layers, max_seq_len=max_seq_len)
        shape = (n_layers, batch, max_seq_len, n_kv_heads, head_dim)
        self.k_LBSGK = torch.zeros(shape, dtype=dtype, device=device)
        self.v_LBSGK = torch.zeros(shape, dtype=dtype, device=device)
        self.score_logits_LBSH = torch.zeros((*shape[:3], n_score_heads), dtype=dtype, device=device)
        stores = (self.k_LBSGK, self.v_LBSGK, self.score_logits_LBSH)
        self._layers = [tuple(store[layer] for store in stores) for layer in range(n_layers)]

    @property
    def n_bytes(self) -> int:
        """L · B · max_seq_len · (2 G K + score heads) numbers."""
        return self.k_LBSGK.nbytes + self.v_LBSGK.nbytes + self.score_logits_LBSH.nbytes

    def append(self, layer: int, new: Keys) -> Keys:
        """Store the new tokens of one layer; returns all so far. Errors as of `Cache.append`."""
        self._check(layer, len(self._layers), new)
        n_new, end = new.k_BSGK.shape[1], self.length + new.k_BSGK.shape[1]
        self._check_room(end, self.k_LBSGK.shape[2])
        self._note(layer, new)
        so_far: list[Tensor | None] = []
        for store_BSGK, value in zip(self._layers[layer], new, strict=True):
            if value is not None:
                store_BSGK.narrow(1, self.length, n_new).copy_(value)
            so_far.append(None if value is None else store_BSGK.narrow(1, 0, end))
        return Keys(*so_far)

    def advance(self, n_tokens: int) -> None:
        """Count the tokens that all layers have stored, or take them back with 0, as of `Cache.advance`."""
        self._check_count(n_tokens)
        self.length, self.stored = self.length + n_tokens, ()
