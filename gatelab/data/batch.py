"""Batch and Source: what every run reads, whichever kind of data it is. NumPy only.

Notable: a batch depends on no state of its source. Sequence number `step · batch_size + row` of a seed is a pure function of both,
so resuming, comparing arms and cutting a batch into micro-batches need nothing but the step's number.
"""

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

IGNORED = -100  # a target that no loss counts (the default `ignore_index` of cross entropy)


class DataError(ValueError):
    """Data that cannot be used: one sentence that says what came, and what to do."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`batch_size` sequences and what comes after each of their tokens.

    inputs_BT: int64 ids.
    targets_BT: int64 ids, IGNORED where there is nothing to predict. The sources here fill every position and ignore
        none: the first token of a document is predicted from the end-of-document token before it, with or without a
        document mask, so that masked and unmasked runs are scored on the same targets.
    segment_ids_BT: int32, the number of the document within its row, from 0 (with a document mask; else None). An
        end-of-document token belongs to the document it ends, BOS to the first one of the row.
    domain_BT: int8 index into `Source.domains`, of the query position; None for a source without domains.
    decoder_inputs_BT: int64 ids that a decoder reads while an encoder reads `inputs_BT`, which may then be longer or
        shorter than `targets_BT`; None for models of one stack.
    """

    inputs_BT: np.ndarray
    targets_BT: np.ndarray
    segment_ids_BT: np.ndarray | None = None
    domain_BT: np.ndarray | None = None
    decoder_inputs_BT: np.ndarray | None = None


def joined(batches: list[Batch]) -> Batch:
    """The rows of one batch after those of the other.

    Raises:
        ValueError: when some have what others have not, such as document numbers.
    """
    parts = {f.name: [getattr(batch, f.name) for batch in batches] for f in fields(Batch)}
    if uneven := [name for name, p in parts.items() if len({x is None for x in p}) > 1]:
        raise ValueError(f"some of these batches have {uneven[0]} and others have not; keep them apart")
    return Batch(**{name: None if p[0] is None else np.concatenate(p) for name, p in parts.items()})


class Source(Protocol):
    """Where batches come from.

    vocab_size: ids are below it, special ones included.
    digest: SHA-256 of the content, in which paths have no part; '' for a stream, whose configuration says everything.
    domains: the names of `Batch.domain_BT`; () without domains.
    bos_id: the id at position 0 of every sequence; None when sequences start with ordinary tokens.
    description: one line for the page.
    bytes_per_token: UTF-8 bytes of the held-out text per held-out token (end-of-document tokens counted), so that
        bits per byte = loss in nats / ln 2 / bytes_per_token; None when unknown.
    n_train_tokens, n_heldout_tokens: None for a stream.
    """

    vocab_size: int
    digest: str
    domains: tuple[str, ...]
    bos_id: int | None
    description: str
    bytes_per_token: float | None
    n_train_tokens: int | None
    n_heldout_tokens: int | None

    def train_batch(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        """The batch of a step, counted from 0; a pure function of its arguments."""
        ...

    def train_batches(self, seeds: list[int], step: int, batch_size: int, seq_len: int) -> Batch:
        """`train_batch` of each seed, the rows of one after those of the other."""
        ...

    def heldout_batch(self, index: int, batch_size: int, seq_len: int) -> Batch:
        """Held-out sequences index · batch_size and following, the same for every seed and arm.

        They do not depend on how they are cut into batches; after the last distinct one they begin again.
        """
        ...

    def heldout_sequences(self, seq_len: int) -> int | None:
        """How many distinct held-out sequences there are; None: unlimited.

        Raises:
            DataError: a length that no sequence can have.
        """
        ...


def check_lengths(source: Source, seq_len: int) -> None:
    """Refuses a text too short for one training and one held-out sequence, and a length that has no room for a task's item.

    Raises:
        DataError: saying how many tokens there are, how many are needed, and what to do.
    """
    # Without BOS the first token is context only, so a sequence of targets takes one token more.
    needed = seq_len if source.bos_id is not None else seq_len + 1
    for part, n_tokens, remedy in (
        ("training", source.n_train_tokens, "give more text"),
        ("held-out", source.n_heldout_tokens, "give more text, raise data.val_share"),
    ):
        if n_tokens is not None and n_tokens < needed:
            most = n_tokens - (needed - seq_len)
            shorter = f", or set train.seq_len to at most {most}" if most >= 2 else ""
            raise DataError(
                f"the {part} text has {n_tokens:,} tokens, and one sequence of train.seq_len={seq_len} takes "
                f"{needed:,}; {remedy}{shorter}"
            )
    source.heldout_sequences(seq_len)  # makes an item of each task, and refuses where there is none
