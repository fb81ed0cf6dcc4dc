"""Bigram-Backcopy: an unlimited stream in which softmax attention is known to form a sink (arXiv 2410.13835).

Notable: sampling is inverse-CDF over the batch, position by position. A table of equal parts of [0, 1) says what is drawn
wherever a part lies within one token's share; only the few numbers in other parts are searched for. The exact expected
loss of the process is computed, not estimated, so excess loss can be plotted.
"""

from functools import cached_property

import numpy as np

from gatelab.config import BigramBackcopy

from .batch import Batch, DataError
from .order import HELDOUT, TABLE, TRAIN, philox, uniform_rows, uniform_rows_of

# Entries of the table of draws: a megabyte stays in a core's cache. More parts than these leave no fewer searches worth it.
_ENTRIES, _MOST_BITS = 2**19, 12
# Sequences from which on it is used.
_MANY = 256


class BigramBackcopySource:
    """The process: BOS; one token from the marginal without triggers; then, after a trigger, the token before it
    again, and after any other token a draw from its bigram row. Tokens are numbered by rank, so the triggers are
    0 … n_triggers − 1, and BOS = vocab_size of the process is the last id. Without `bos` the token after it comes first.

    A trigger never follows a trigger: what a trigger copies is the token before it, and the first token is none.

    Raises:
        DataError: when every token is a trigger, so that nothing can come first.
    """

    digest = ""
    domains = ("bigram", "backcopy")  # 0 and 1: whether the query is a trigger
    bytes_per_token = None
    n_train_tokens = None
    n_heldout_tokens = None

    def __init__(self, config: BigramBackcopy):
        V, n_triggers = config.vocab_size, config.n_triggers
        if n_triggers >= V:
            raise DataError(
                f"data.n_triggers={n_triggers} of data.vocab_size={V} tokens: the first token of a sequence is no "
                f"trigger, so at most {V - 1} can be triggers"
            )
        self.bos_id = V if config.bos else None
        self.vocab_size = V + 1
        self.n_triggers = n_triggers
        self._start = V
        self.description = (
            f"Bigram-Backcopy, an unlimited stream: {V} tokens and {'BOS' if config.bos else 'no BOS'}, {n_triggers} triggers, "
            f"process seed {config.process_seed}"
        )
        marginal = 1 / np.arange(1, V + 1)
        marginal /= marginal.sum()
        first = np.where(np.arange(V) < n_triggers, 0, marginal)
        # RandomState, because its stream is frozen for good while the newer Generator's may change.
        draws = np.random.RandomState(philox(config.process_seed, TABLE))
        rows_VV = draws.standard_gamma(30 * marginal + 0.02, size=(V, V))
        # Row i holds i + its cumulative distribution, and row V that of the first token: one sorted array, in which
        # the token after `i` at uniform `u` is found by one search for i + u.
        self._cdf = np.concatenate([rows_VV, first[None]])
        np.cumsum(self._cdf, axis=1, out=self._cdf)
        self._cdf /= self._cdf[:, -1:]
        self._cdf += np.arange(V + 1)[:, None]
        self._cdf = self._cdf.ravel()

    def train_batch(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        return self.train_batches([seed], step, batch_size, seq_len)

    def train_batches(self, seeds: list[int], step: int, batch_size: int, seq_len: int) -> Batch:
        return self._batch(uniform_rows_of(seeds, TRAIN, step * batch_size, batch_size, self._n_draws(seq_len)))

    def heldout_batch(self, index: int, batch_size: int, seq_len: int) -> Batch:
        return self._batch(uniform_rows(0, HELDOUT, index * batch_size, batch_size, self._n_draws(seq_len)))

    def heldout_sequences(self, seq_len: int) -> None:
        return None

    def oracle_loss(self, seq_len: int | None = None) -> dict[str, float]:
        """Expected loss in nats a token, by domain, of a model that knows the process.

        Exact: the mean over all queries of the domain in sequences of `seq_len` (the draw after BOS, where there is one, is of
        the bigram domain), or without `seq_len` the limit for long sequences. What a trigger copies is certain: 0.
        """
        V, n = self._start, self.n_triggers
        cdf = self._cdf.reshape(V + 1, V) - np.arange(V + 1)[:, None]
        p = np.diff(cdf, axis=1, prepend=0)
        entropy = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=1)
        # Only tokens that are no trigger need tracking: from one, the next is `onward`, or a trigger and then itself.
        onward, back = p[n:V, n:], p[n:V, :n].sum(1)
        entropy, first, entropy_first = entropy[n:V], p[V, n:], entropy[V]
        if seq_len is None:
            # Balance: what leaves a token for others that are no trigger equals what comes from them.
            balance = onward.T - np.diag(onward.sum(1))
            system = np.concatenate([balance, np.ones((1, V - n))])
            visits = np.linalg.lstsq(system, np.eye(V - n + 1)[-1], rcond=None)[0]
            return {"bigram": float(visits @ entropy), "backcopy": 0.0}
        before, now = np.zeros_like(first), first
        loss, count = (entropy_first, 1.0) if self.bos_id is not None else (0.0, 0.0)
        for _ in range(self._n_draws(seq_len) - 1):
            loss, count = loss + now @ entropy, count + now.sum()
            before, now = now, now @ onward + before * back
        return {"bigram": float(loss / count), "backcopy": 0.0}

    def _n_draws(self, seq_len: int) -> int:
        """Draws that inputs and targets of a sequence take: without BOS one more."""
        return seq_len + (self.bos_id is None)

    def _batch(self, uniform_BT: np.ndarray) -> Batch:
        """The sequences that uniform numbers draw, one a target and without BOS one more before."""
        # Position first: each step reads and writes whole rows.
        uniform_TB = np.ascontiguousarray(uniform_BT.T)
        tokens = (self._looked_up if len(uniform_BT) >= _MANY else self._searched)(uniform_TB)
        said = tokens if self.bos_id is not None else tokens[1:]
        inputs_BT = np.ascontiguousarray(said[:-1].T)
        return Batch(
            inputs_BT=inputs_BT,
            targets_BT=np.ascontiguousarray(said[1:].T),
            domain_BT=(inputs_BT < self.n_triggers).astype(np.int8),
        )

    def _searched(self, uniform_TB: np.ndarray) -> np.ndarray:
        """The tokens of sequences, BOS included, [T + 1, B]; every draw a search."""
        V = self._start
        tokens = np.empty((len(uniform_TB) + 1, uniform_TB.shape[1]), np.int64)
        tokens[0] = V
        for t, u_B in enumerate(uniform_TB):
            current = tokens[t]
            drawn = np.searchsorted(self._cdf, current + u_B, side="right") - current * V
            tokens[t + 1] = np.where(current < self.n_triggers, tokens[t - 1], drawn) if t else drawn
        return tokens

    def _looked_up(self, uniform_TB: np.ndarray) -> np.ndarray:
        """The same tokens, by the table of draws, which pays off for many sequences."""
        V, (bits, sure) = self._start, self._sure
        tokens = np.empty((len(uniform_TB) + 1, uniform_TB.shape[1]), np.int64)
        tokens[0] = V
        parts = (uniform_TB * (1 << bits)).astype(np.int64)
        for t, part_B in enumerate(parts):
            part_B += tokens[t] << bits
            tokens[t + 1] = drawn = sure.take(part_B, mode="wrap")  # which asks for no check
            left = np.flatnonzero(drawn < 0)
            before = tokens[t, left]
            again = before < self.n_triggers
            copied, searched, before = left[again], left[~again], before[~again]
            tokens[t + 1, searched] = np.searchsorted(self._cdf, before + uniform_TB[t, searched], "right") - before * V
            if t:
                tokens[t + 1, copied] = tokens[t - 1, copied]
        return tokens

    @cached_property
    def _sure(self) -> tuple[int, np.ndarray]:
        """A number of bits k, and int16 [(V + 1)·2ᵏ]: the token after i at any u of the p-th of 2ᵏ equal parts, at i·2ᵏ + p;
        −1 where the part holds more than one, and after every trigger."""
        V = self._start
        bits = min(_MOST_BITS, (_ENTRIES // (V + 1)).bit_length() - 1)
        before, part = np.divmod(np.arange((V + 1) << bits), 1 << bits)
        first, last = (
            np.searchsorted(self._cdf, before + u, side="right") - before * V
            for u in (part * 2.0**-bits, (part + 1) * 2.0**-bits - 2.0**-32)
        )
        return bits, np.where((first == last) & (before >= self.n_triggers), first, -1).astype(np.int16)
