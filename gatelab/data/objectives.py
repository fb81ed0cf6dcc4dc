"""Batches under an objective: what a source gives, with tokens masked, spans taken out, or cut in two. NumPy only.

Notable: what is drawn for row `step · batch_size + row` is a pure function of the seed and that number, in a key space
of its own. It depends neither on how rows are cut into batches nor on what the source draws for its tokens. Everything
is drawn for a whole batch at once; the counts are those of `gatelab.config.objective` (BERT, arXiv 1810.04805; T5,
arXiv 1910.10683).
"""

from dataclasses import dataclass, replace

import numpy as np

from gatelab.config.objective import Answers, Continuation, MaskedTokens, NextToken, Objective, SpanCorruption

from .batch import IGNORED, Batch, DataError, Source, joined
from .order import HELDOUT_OBJECTIVE, TRAIN_OBJECTIVE, uniform_rows


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
    draws = _Draws(seed, TRAIN_OBJECTIVE, step * batch_size)
    return _applied(objective, source, source.train_batch(seed, step, batch_size, seq_len), draws)


def objective_batches(
    source: Source, objective: Objective, seeds: list[int], step: int, batch_size: int, seq_len: int
) -> Batch:
    """`objective_batch` of each seed, the rows of one after those of the other."""
    if isinstance(objective, NextToken):
        return source.train_batches(seeds, step, batch_size, seq_len)
    return joined([objective_batch(source, objective, seed, step, batch_size, seq_len) for seed in seeds])


def objective_heldout(source: Source, objective: Objective, index: int, batch_size: int, seq_len: int) -> Batch:
    """`Source.heldout_batch` under an objective: the same for every seed and arm, else as `objective_batch`.

    When the distinct sequences begin again, what is masked of them is drawn anew.
    """
    draws = _Draws(0, HELDOUT_OBJECTIVE, index * batch_size)
    return _applied(objective, source, source.heldout_batch(index, batch_size, seq_len), draws)


@dataclass(frozen=True, slots=True)
class _Draws:
    """Where a batch's random numbers come from: those of row `first` and following."""

    seed: int
    purpose: int
    first: int

    def uniform(self, n_rows: int, n_columns: int) -> np.ndarray:
        return uniform_rows(self.seed, self.purpose, self.first, n_rows, n_columns)


def _applied(objective: Objective, source: Source, batch: Batch, draws: _Draws) -> Batch:
    match objective:
        case NextToken():
            return batch
        case MaskedTokens():
            return _masked(objective, source, batch, draws)
        case Answers():
            return _answers_hidden(source, batch)
        case SpanCorruption():
            _refuse_document_mask(objective, batch)
            return _spans_taken(objective, source, batch, draws)
        case Continuation():
            _refuse_document_mask(objective, batch)
            return _continued(objective, batch)
    raise TypeError(f"objective={objective!r}: expected a value of gatelab.config.objective, as in NextToken()")


def _masked(objective: MaskedTokens, source: Source, batch: Batch, draws: _Draws) -> Batch:
    tokens_BT = batch.inputs_BT
    B, T = tokens_BT.shape
    has_bos = source.bos_id is not None
    n_chosen = objective.n_chosen(T, has_bos=has_bos)
    where_BT, fate_BT, id_BT = draws.uniform(B, 3 * T).reshape(B, 3, T).swapaxes(0, 1)
    chosen_BT = np.zeros((B, T), bool)
    first = int(has_bos)
    chosen_BT[:, first:] = _chosen(where_BT[:, first:], n_chosen)
    random_BT = (id_BT * source.vocab_size).astype(np.int64)
    instead_BT = np.where(fate_BT < objective.keep + objective.random, random_BT, source.vocab_size)
    changed_BT = chosen_BT & (fate_BT >= objective.keep)
    return replace(
        batch,
        inputs_BT=np.where(changed_BT, instead_BT, tokens_BT),
        targets_BT=np.where(chosen_BT, tokens_BT, IGNORED),
    )


def _answers_hidden(source: Source, batch: Batch) -> Batch:
    asked_BT = batch.targets_BT != IGNORED
    if asked_BT.all():
        raise DataError(
            "objective=answers hides what is asked, and every token of this data is; take data=tasks with data.targets=answer"
        )
    is_said_BT = np.zeros(asked_BT.shape, bool)
    is_said_BT[:, 1:] = asked_BT[:, :-1] & (batch.inputs_BT[:, 1:] == batch.targets_BT[:, :-1])
    return replace(batch, inputs_BT=np.where(is_said_BT, source.vocab_size, batch.inputs_BT))


def _spans_taken(objective: SpanCorruption, source: Source, batch: Batch, draws: _Draws) -> Batch:
    tokens_BT = batch.inputs_BT
    B, T = tokens_BT.shape
    n_taken, n_spans = objective.counts(T)
    uniform_BT = draws.uniform(B, T)
    lengths_BN = np.empty((B, 2 * n_spans), np.int64)  # clear and taken spans in turn, a clear one first
    lengths_BN[:, 0::2] = _segment_lengths(uniform_BT[:, n_taken - 1 : T - 2], n_spans)
    lengths_BN[:, 1::2] = _segment_lengths(uniform_BT[:, : n_taken - 1], n_spans)

    starts_BT = np.zeros((B, T), bool)
    starts_BT[np.arange(B)[:, None], np.cumsum(lengths_BN, axis=1) - lengths_BN] = True
    span_BT = np.cumsum(starts_BT, axis=1) - 1
    taken_BT = span_BT % 2 == 1
    sentinels_BT = source.vocab_size + span_BT // 2
    # The encoder reads a sentinel for each taken span, and the decoder says one for each clear span: the same trick.
    inputs_BT = np.where(taken_BT, sentinels_BT, tokens_BT)[~taken_BT | starts_BT].reshape(B, -1)
    spoken_BT = np.where(taken_BT, tokens_BT, sentinels_BT)[taken_BT | starts_BT].reshape(B, -1)

    final = source.vocab_size + n_spans
    start_id = final + 1 if source.bos_id is None else source.bos_id
    return Batch(
        inputs_BT=inputs_BT,
        targets_BT=np.pad(spoken_BT, ((0, 0), (0, 1)), constant_values=final),
        decoder_inputs_BT=np.pad(spoken_BT, ((0, 0), (1, 0)), constant_values=start_id),
    )


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


def _chosen(uniform_BN: np.ndarray, n: int) -> np.ndarray:
    """Exactly `n` True a row, bool (B, N): at the row's smallest numbers, the left one of equals."""
    if n == 0:
        return np.zeros(uniform_BN.shape, bool)
    # Numbers of 32 bits do come twice; with the column below them no two keys are alike, whatever the sort does.
    width = uniform_BN.shape[1]
    keys_BN = (uniform_BN * 2.0**32).astype(np.int64) * width + np.arange(width)
    return keys_BN <= np.partition(keys_BN, n - 1, axis=1)[:, n - 1 : n]


def _segment_lengths(uniform_BN: np.ndarray, n_segments: int) -> np.ndarray:
    """Lengths of `n_segments` non-empty segments of N + 1 items, int64 (B, n_segments); every division equally likely.

    A number stands between two neighbouring items, and the smallest numbers are where the segments part.
    """
    B, n_between = uniform_BN.shape
    cuts = np.nonzero(_chosen(uniform_BN, n_segments - 1))[1].reshape(B, n_segments - 1) + 1
    return np.diff(cuts, axis=1, prepend=0, append=n_between + 1)


def _refuse_document_mask(objective: Objective, batch: Batch) -> None:
    if batch.segment_ids_BT is not None:
        raise DataError(
            f"data.document_mask keeps a decoder's attention within a document, and {objective.kind!r} trains an "
            f"encoder-decoder, whose two sequences are not cut alike; set data.document_mask=false"
        )
