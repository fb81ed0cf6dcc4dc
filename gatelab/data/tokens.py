"""TokenSource: batches from a long text of tokens that lies in memory-mapped files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gatelab.config import Text

from .batch import Batch, DataError
from .order import epoch_starts, spread_starts


class Tokens:
    """Arrays of ids laid end to end, without copying them."""

    def __init__(self, parts: list[np.ndarray]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        types = {part.dtype for part in parts}
        self._dtype = types.pop() if len(types) == 1 else np.dtype(np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def split(self, where: int) -> tuple["Tokens", "Tokens"]:
        """The first `where` tokens, and the rest."""
        begins = self._ends - [len(part) for part in self._parts]
        cuts = np.clip(where - begins, 0, self._ends - begins)
        left = [part[:cut] for part, cut in zip(self._parts, cuts, strict=True)]
        right = [part[cut:] for part, cut in zip(self._parts, cuts, strict=True)]
        return Tokens(left), Tokens(right)

    def windows(self, starts: np.ndarray, span: int) -> np.ndarray:
        """`span` ids from each start on, shape (len(starts), span); of the parts' type, int64 where theirs differ."""
        if len(self._parts) == 1:
            return sliding_window_view(self._parts[0], span)[starts]
        out = np.empty((len(starts), span), self._dtype)
        first_N = np.searchsorted(self._ends, starts, side="right")
        for row, start, i in zip(out, starts.tolist(), first_N.tolist(), strict=True):
            filled = 0
            while filled < span:
                part = self._parts[i]
                begin = start + filled - (int(self._ends[i]) - len(part))
                piece = part[begin : begin + span - filled]
                row[filled : filled + len(piece)] = piece
                filled, i = filled + len(piece), i + 1
        return out


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokens in two parts and what is known of them; see `Source` for the meaning of the fields."""

    train: Tokens
    heldout: Tokens
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    digest: str
    description: str
    bytes_per_token: float | None


class TokenSource:
    """Windows of a corpus. With BOS a sequence is BOS and seq_len − 1 tokens, and all of its targets are read once an
    epoch; without, seq_len tokens, the last of which is the first of the next window's targets.

    With a document mask, segments are told by end-of-document tokens; a document cut by the window's edge is a
    segment like any other, and positions are not reset.

    Raises:
        DataError: when BOS or a document mask is asked for and the vocabulary has no such token.
    """

    domains: tuple[str, ...] = ()

    def __init__(self, corpus: Corpus, config: Text):
        if config.bos and corpus.bos_id is None:
            raise DataError(
                "the vocabulary has no known token for the beginning of a sequence; name it in data.bos_id, or set "
                "data.bos=false"
            )
        if config.document_mask and corpus.eos_id is None:
            raise DataError("data.document_mask needs the end-of-document token; name it in data.eos_id")
        self._corpus = corpus
        self._mask_eos_id = corpus.eos_id if config.document_mask else None
        self.bos_id = corpus.bos_id if config.bos else None
        self.vocab_size = corpus.vocab_size
        self.digest = corpus.digest
        self.description = "; ".join(
            [
                f"{config.about}: {corpus.description}" if config.about else corpus.description,
                *(["attention stays within a document"] if config.document_mask else []),
            ]
        )
        self.bytes_per_token = corpus.bytes_per_token
        self.n_train_tokens = len(corpus.train)
        self.n_heldout_tokens = len(corpus.heldout)

    def train_batch(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        """Sample numbers step · batch_size and following of the seed's endless sequence of epochs.

        Raises:
            DataError: when the text is shorter than one window.
        """
        return self.train_batches([seed], step, batch_size, seq_len)

    def train_batches(self, seeds: list[int], step: int, batch_size: int, seq_len: int) -> Batch:
        span, n = self._span(self.n_train_tokens, seq_len), self.n_train_tokens
        starts = epoch_starts(seeds, step * batch_size, batch_size, n, seq_len, span)
        return self._batch(self._corpus.train.windows(starts.ravel(), span))

    def heldout_batch(self, index: int, batch_size: int, seq_len: int) -> Batch:
        span = self._span(self.n_heldout_tokens, seq_len)
        numbers = np.arange(index * batch_size, (index + 1) * batch_size)
        return self._batch(
            self._corpus.heldout.windows(spread_starts(numbers, self.n_heldout_tokens, seq_len, span), span)
        )

    def heldout_sequences(self, seq_len: int) -> int:
        return max(0, (self.n_heldout_tokens - (self.bos_id is None)) // seq_len)

    def _span(self, n_tokens: int, seq_len: int) -> int:
        span = seq_len + (self.bos_id is None)
        if n_tokens < span:
            raise DataError(
                f"a text of {n_tokens:,} tokens has no window of {span:,} (`check_lengths` says what to do)"
            )
        return span

    def _batch(self, windows: np.ndarray) -> Batch:
        # Of one allocation: what two give back together the allocator returns to the system, and their pages are missed anew
        # in every step, which takes longer than all the rest.
        inputs_BT, targets_BT = np.empty((2, len(windows), windows.shape[1] - (self.bos_id is None)), np.int64)
        if self.bos_id is None:
            inputs_BT[:], targets_BT[:] = windows[:, :-1], windows[:, 1:]
        else:
            inputs_BT[:, 0], inputs_BT[:, 1:], targets_BT[:] = self.bos_id, windows[:, :-1], windows
        return Batch(inputs_BT, targets_BT, segment_ids_BT=self._segments(inputs_BT))

    def _segments(self, inputs_BT: np.ndarray) -> np.ndarray | None:
        if self._mask_eos_id is None:
            return None
        starts_BT = np.zeros(inputs_BT.shape, np.int32)
        starts_BT[:, 1:] = inputs_BT[:, :-1] == self._mask_eos_id
        if self.bos_id == self._mask_eos_id and inputs_BT.shape[1] > 1:
            starts_BT[:, 1] = 0  # this one is the BOS at position 0, and ends nothing
        return np.cumsum(starts_BT, axis=1, dtype=np.int32)


def mapped(path: Path, dtype: str) -> np.ndarray:
    """The ids in a file, read as they are needed. The file must not be empty."""
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
