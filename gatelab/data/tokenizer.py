"""Tokenizers: bytes, a byte-level BPE trained on the text itself, or the tokenizer.json of another model.

Notable: text never turns into special tokens, even where it spells `<|endoftext|>`; the tokenizers library is
imported when a BPE is first used, so that byte-level runs do without.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .batch import DataError

_SPECIALS = ("<|endoftext|>", "<|bos|>", "<|pad|>")  # ids 0, 1, 2 of a BPE that is trained here
_EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|eos|>", "[EOS]", "[SEP]")
_BOS_NAMES = ("<|bos|>", "<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]", "[CLS]")
# Longer documents are encoded in pieces cut at line ends: bounded memory, and work for every core.
_PIECE = 1 << 20


class Tokenizer(Protocol):
    """Ids are below `vocab_size`; `bos_id` and `eos_id` are None when the vocabulary has no such token."""

    vocab_size: int
    bos_id: int | None
    eos_id: int | None

    def encode(self, documents: list[bytes]) -> list[np.ndarray]:
        """The ids of each UTF-8 document, without special tokens."""
        ...

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids, special ones left out."""
        ...


class ByteTokenizer:
    """Ids 0 … 255 are bytes; BOS 256, end of document 257, padding 258."""

    vocab_size, bos_id, eos_id, pad_id = 259, 256, 257, 258

    def encode(self, documents: list[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(document, np.uint8) for document in documents]

    def decode(self, ids: np.ndarray) -> str:
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", "replace")


class LoadedTokenizer:
    """A tokenizer.json in the format of Hugging Face's tokenizers library. `bos_id` and `eos_id` override its own.

    Raises:
        DataError: when the file is missing or no tokenizer, or an id lies outside of the vocabulary.
    """

    def __init__(self, path: Path, bos_id: int | None = None, eos_id: int | None = None):
        if not path.is_file():
            raise DataError(f"{str(path)!r}: no such tokenizer file; expected 'byte', 'bpe:N' or a tokenizer.json")
        from tokenizers import Tokenizer as Library

        try:
            self._library: Any = Library.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"{str(path)!r} is not a tokenizer.json of the tokenizers library: {error}") from None
        self._library.encode_special_tokens = True
        self._library.no_truncation()
        self._library.no_padding()
        ids = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self.bos_id = bos_id if bos_id is not None else _first(ids, _BOS_NAMES)
        self.eos_id = eos_id if eos_id is not None else _first(ids, _EOS_NAMES)
        for name, value in (("bos_id", self.bos_id), ("eos_id", self.eos_id)):
            if value is not None and value >= self.vocab_size:
                raise DataError(f"data.{name}={value} is no id of {str(path)!r}; they go up to {self.vocab_size - 1}")

    def encode(self, documents: list[bytes]) -> list[np.ndarray]:
        pieces = [[piece.decode() for piece in _pieces(document)] for document in documents]
        encodings = iter(self._library.encode_batch_fast([p for ps in pieces for p in ps], add_special_tokens=False))
        return [np.concatenate([np.array(next(encodings).ids, np.uint32) for _ in ps]) for ps in pieces]

    def decode(self, ids: np.ndarray) -> str:
        return self._library.decode(np.asarray(ids).tolist(), skip_special_tokens=True)


def train_bpe(documents: Iterable[bytes], size: int, path: Path) -> None:
    """Trains a byte-level BPE of at most `size` ids on UTF-8 documents and writes it to `path`, a tokenizer.json.

    The same documents give the same file. Every text is representable, whatever the training text held.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library: Any = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIALS),
        # Sorted, since the library returns the alphabet in an order that differs from process to process.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (piece.decode() for document in documents for piece in _pieces(document))
    library.train_from_iterator(texts, trainer)
    path.write_text(library.to_str(), encoding="utf-8")


def _first(ids: dict[str, int], names: tuple[str, ...]) -> int | None:
    return next((ids[name] for name in names if name in ids), None)


def _pieces(document: bytes) -> Iterator[bytes]:
    start = 0
    while len(document) - start > _PIECE:
        end = cut_before(document, start + _PIECE, after=start)
        yield document[start:end]
        start = end
    yield document[start:]


def cut_before(document: bytes, where: int, *, after: int = 0) -> int:
    """The last line end behind byte `after` and at most 4096 before `where`, or else the start of the character there."""
    line_end = document.rfind(b"\n", max(after, where - 4096), where) + 1
    if line_end:
        return line_end
    while where < len(document) and document[where] & 0xC0 == 0x80:  # a continuation byte of UTF-8
        where -= 1
    return where
