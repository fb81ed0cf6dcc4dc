"""Batches under an objective: what a source gives, with tokens masked, spans taken out, or cut in two. NumPy only.

Notable: what is drawn for row `step · batch_size + row` is a pure function of the seed and that number, in a key space
of its own. It depends neither on how rows are cut into batches nor on what the source draws for its tokens. Everything
is drawn for a whole batch at once, and for all seeds of a stack; the counts are those of `gatelab.config.objective`
(BERT, arXiv 1810.04805; T5, arXiv 1910.10683).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gatelab.config.objective import Answers, Continuation, MaskedTokens, NextToken, Objective, SpanCorruption

from .batch import IGNORED, Batch, DataError, Source
from .order import HELDOUT_OBJECTIVE, TRAIN_OBJECTIVE, integer_rows_of


def objective_batch(source: Source, objective: Objective, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
    """`Source.train_batch` under an objective; a pure function of its arguments.

    Next token: the source's own batch, untouched.

    Masked: `inputs_BT` with masks (id `source.vocab_size`), and `targets_BT` the original token where one was chosen,
    IGNORED elsewhere. The BOS of position 0 is never chosen. Segments and domains stay those of the positions.

    Answers: `inputs_BT` with masks (id `source.vocab_size`) where a sequence goes on with what is asked; targets as they are.

    Span corruption: `inputs_BT` what the encoder reads, `targets_BT` what the decoder says, `decoder_inputs_BT` the
    same one later behind a start id, of the lengths that `objective.lengths(seq_len)` gives. Sentinels are
    `source.vocab_size` and following; the start is the source's BOS, or the last of the extra ids. No domains: a span
    is not predicted from the token before it alone.

    Continuation: `inputs_BT` the beginning, `targets_BT` the rest and the token after it, `decoder_inputs_BT` the token
    before each, the first of which the encoder has read too. Domains are those of the decoder's queries.

    Raises:
        DataError: when every token is a target and the objective is answers; when the source masks documents and the objective
            is for an encoder-decoder; and as the source does.
        ValueError: when `seq_len` is less than 2 and the objective is not the next token.
    """
    draws = _Draws([seed], TRAIN_OBJECTIVE, step * batch_size, batch_size)
    return _applied(objective, source, source.train_batch(seed, step, batch_size, seq_len), draws)


def objective_batches(
    source: Source, objective: Objective, seeds: list[int], step: int, batch_size: int, seq_len: int
) -> Batch:
    """`objective_batch` of each seed, the rows of one after those of the other."""
    draws = _Draws(seeds, TRAIN_OBJECTIVE, step * batch_size, batch_size)
    return _applied(objective, source, source.train_batches(seeds, step, batch_size, seq_len), draws)


def objective_heldout(source: Source, objective: Objective, index: int, batch_size: int, seq_len: int) -> Batch:
    """`Source.heldout_batch` under an objective: the same for every seed and arm, else as `objective_batch`.

    When the distinct sequences begin again, what is masked of them is drawn anew.
    """
    draws = _Draws([0], HELDOUT_OBJECTIVE, index * batch_size, batch_size)
    return _applied(objective, source, source.heldout_batch(index, batch_size, seq_len), draws)


@dataclass(frozen=True, slots=True)
class _Draws:
    """Where a batch's random numbers come from: those of each seed's rows `first` to `first + batch_size` − 1."""

    seeds: Sequence[int]
    purpose: int
    first: int
    batch_size: int

    def integers(self, n_columns: int) -> np.ndarray:
        """Below 2³², (seeds · batch_size, n_columns)."""
        return integer_rows_of(self.seeds, self.purpose, self.first, self.batch_size, n_columns)


def _applied(objective: Objective, source: Source, batch: Batch, draws: _Draws) -> Batch:
    match objective:
        case NextToken():
            return batch
        case MaskedTokens():
            return _masked(objective, source, batch, draws)
        case Answers():
            return _answers_hidden(source, batch, len(draws.seeds))
        case SpanCorruption():
            _refuse_document_mask(objective, batch)
            return _spans_taken(objective, source, batch, draws)
        case Continuation():
            _refuse_document_mask(objective, batch)
            return _continued(objective, batch)
    raise TypeError(f"objective={objective!r}: expected a value of gatelab.config.objective, as in NextToken()")


def _masked(objective: MaskedTokens, source: Source, batch: Batch, draws: _Draws) -> Batch:
    B, T = batch.inputs_BT.shape
    first = 0 if source.bos_id is None else 1
    where_BT, fate_BT, id_BT = np.split(draws.integers(3 * T), 3, axis=1)
    chosen_BN = first + _smallest(where_BT[:, first:], objective.n_chosen(T, has_bos=first == 1))
    at = np.arange(B)[:, None], chosen_BN
    tokens_BN = batch.inputs_BT[at]
    # Exact in float64, so that shares and ids are of these numbers as they are of all.
    fate_BN, id_BN = fate_BT[at] * 2.0**-32, id_BT[at] * 2.0**-32
    random_BN = (id_BN * source.vocab_size).astype(np.int64)
    instead_BN = np.where(fate_BN < objective.keep + objective.random, random_BN, source.vocab_size)
    inputs_BT, targets_BT = np.empty((2, B, T), np.int64)  # of one allocation, as those of `TokenSource`
    inputs_BT[:], targets_BT[:] = batch.inputs_BT, IGNORED
    inputs_BT[at] = np.where(fate_BN < objective.keep, tokens_BN, instead_BN)
    targets_BT[at] = tokens_BN
    return replace(batch, inputs_BT=inputs_BT, targets_BT=targets_BT)


def _answers_hidden(source: Source, batch: Batch, n_seeds: int) -> Batch:
    asked_BT = batch.targets_BT != IGNORED
    if asked_BT.reshape(n_seeds, -1).all(axis=1).any():
        raise DataError(
            "objective=answers hides what is asked, and every token of this data is; take data=tasks with data.targets=answer"
        )
    is_said_BT = np.zeros(asked_BT.shape, bool)
    is_said_BT[:, 1:] = asked_BT[:, :-1] & (batch.inputs_BT[:, 1:] == batch.targets_BT[:, :-1])
    return replace(batch, inputs_BT=np.where(is_said_BT, source.vocab_size, batch.inputs_BT))


def _spans_taken(objective: SpanCorruption, source: Source, batch: Batch, draws: _Draws) -> Batch:
    B, T = batch.inputs_BT.shape
    n_taken, n_spans = objective.counts(T)
    integers_BT = draws.integers(T)
    lengths_BN = np.empty((B, 2 * n_spans), np.int64)  # clear and taken spans in turn, a clear one first
    lengths_BN[:, 0::2] = _segment_lengths(integers_BT[:, n_taken - 1 : T - 2], n_spans)
    lengths_BN[:, 1::2] = _segment_lengths(integers_BT[:, : n_taken - 1], n_spans)

    starts_BN = np.cumsum(lengths_BN, axis=1) - lengths_BN
    taken_BT = np.repeat(np.tile([False, True], B * n_spans), lengths_BN.ravel()).reshape(B, T)
    # The encoder reads a sentinel for each taken span, and the decoder says one for each clear span: the same trick.
    inputs_BT = _with_sentinels(batch.inputs_BT, ~taken_BT, starts_BN[:, 1::2], source.vocab_size)
    spoken_BT = _with_sentinels(batch.inputs_BT, taken_BT, starts_BN[:, 0::2], source.vocab_size)

    final = source.vocab_size + n_spans
    start_id = final + 1 if source.bos_id is None else source.bos_id
    return Batch(
        inputs_BT=inputs_BT,
        targets_BT=np.pad(spoken_BT, ((0, 0), (0, 1)), constant_values=final),
        decoder_inputs_BT=np.pad(spoken_BT, ((0, 0), (1, 0)), constant_values=start_id),
    )


def _with_sentinels(tokens_BT: np.ndarray, is_own_BT: np.ndarray, starts_BN: np.ndarray, first_id: int) -> np.ndarray:
    """A row's own tokens, and where each of the N other spans starts the next sentinel in its place."""
    B, N = starts_BN.shape
    at = np.arange(B)[:, None], starts_BN
    said_BT, is_said_BT = tokens_BT.copy(), is_own_BT.copy()
    said_BT[at], is_said_BT[at] = first_id + np.arange(N), True
    return said_BT.take(np.flatnonzero(is_said_BT)).reshape(B, -1)


def _continued(objective: Continuation, batch: Batch) -> Batch:
    n_read, _ = objective.lengths(batch.inputs_BT.shape[1])
    # The query at the last token read is the first whose target is not read.
    domain_BT = None if batch.domain_BT is None else batch.domain_BT[:, n_read - 1 :].copy()
    return Batch(
        inputs_BT=batch.inputs_BT[:, :n_read].copy(),
        targets_BT=batch.targets_BT[:, n_read - 1 :].copy(),
        domain_BT=domain_BT,
        decoder_inputs_BT=batch.inputs_BT[:, n_read - 1 :].copy(),
    )


def _smallest(integers_BN: np.ndarray, n: int) -> np.ndarray:
    """Where the `n` smallest numbers below 2³² of each row stand, the left one of equals: columns in order, int64 (B, n)."""
    B, width = integers_BN.shape
    if n == 0:
        return np.empty((B, 0), np.int64)
    # Numbers of 32 bits do come twice; with the column below them no two keys are alike, whatever the sort does.
    keys_BN = integers_BN << width.bit_length() | np.arange(width)
    is_chosen_BN = keys_BN <= np.partition(keys_BN, n - 1, axis=1)[:, n - 1 : n]
    return np.flatnonzero(is_chosen_BN).reshape(B, n) - width * np.arange(B)[:, None]


def _segment_lengths(integers_BN: np.ndarray, n_segments: int) -> np.ndarray:
    """Lengths of `n_segments` non-empty segments of N + 1 items, int64 (B, n_segments); every division equally likely.

    A number stands between two neighbouring items, and the smallest numbers are where the segments part.
    """
    cuts = _smallest(integers_BN, n_segments - 1) + 1
    return np.diff(cuts, axis=1, prepend=0, append=integers_BN.shape[1] + 1)


def _refuse_document_mask(objective: Objective, batch: Batch) -> None:
    if batch.segment_ids_BT is not None:
        raise DataError(
            f"data.document_mask keeps a decoder's attention within a document, and {objective.kind!r} trains an "
            f"encoder-decoder, whose two sequences are not cut alike; set data.document_mask=false"
        )
