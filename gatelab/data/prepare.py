"""From documents to tokens: one survey of the files, the split, the tokenizer, two flat files of ids.

Notable: a document is held out by a hash of its content, so it stays on its side when other documents come or go, and
its copies go with it. Files are read several times rather than kept, so memory does not grow with the text.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gatelab.config import Text
from gatelab.config import digest as hash_of

from .batch import DataError
from .cache import drafted, read_json
from .documents import NotText, documents
from .files import File
from .tokenizer import ByteTokenizer, LoadedTokenizer, Tokenizer, cut_before, train_bpe

_CHUNK = 1 << 22  # bytes of documents encoded at a time


@dataclass(frozen=True, slots=True)
class Survey:
    """What one reading of some files found. `names` are the SHA-256 of their documents, in order, `sizes` their bytes;
    `files` are those that hold text, `n_left_out` is the number of the others."""

    files: list[File]
    names: list[bytes]
    sizes: list[int]
    n_left_out: int


@dataclass(frozen=True, slots=True)
class Meta:
    """What a prepared corpus says about itself. Beside it lie train.bin, heldout.bin and, for `bpe:N`, tokenizer.json.

    `digest` is over the ids themselves and what they mean. `tail`: the end of the text is held out, not documents.
    """

    digest: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    dtype: str
    tail: bool
    n_train_tokens: int
    n_heldout_tokens: int
    n_heldout_documents: int
    train_bytes: int
    heldout_bytes: int


def survey(paths: tuple[str, ...], found: list[File], text_field: str) -> Survey:
    """Reads every file once. `paths` are the names the user gave.

    Raises:
        DataError: for a named file that is no text, anything malformed, and when there is no text at all.
    """
    kept, names, sizes = [], [], []
    for file in found:
        try:
            for document in documents(file, text_field):
                names.append(hashlib.sha256(document).digest())
                sizes.append(len(document))
        except NotText:
            if file.named:
                raise
            continue
        kept.append(file)
    n_left_out = len(found) - len(kept)
    if not names:
        raise DataError(f"no text in {', '.join(map(repr, paths))}: {_why_empty(len(found), n_left_out)}")
    return Survey(kept, names, sizes, n_left_out)


def load(folder: Path) -> Meta | None:
    """The prepared corpus in a folder of the cache; None when there is none, or it is not whole."""
    value = read_json(folder / "meta.json")
    if value is None:
        return None
    meta = Meta(**value)
    for name, n_tokens in (("train.bin", meta.n_train_tokens), ("heldout.bin", meta.n_heldout_tokens)):
        path = folder / name
        if not path.is_file() or path.stat().st_size != n_tokens * np.dtype(meta.dtype).itemsize:
            return None
    return meta


def prepare(config: Text, surveys: list[Survey], folder: Path) -> Meta:
    """Splits and tokenises the documents into `folder`, which appears when it is complete.

    `surveys` are of the training files and, with data.val_paths, of those.

    Raises:
        DataError: when a side of the split would be empty, a file changes meanwhile, the tokenizer does not fit, or
            the cache cannot be written.
    """
    split = _Split.of(surveys, config.val_share)
    if folder.exists() and load(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    with drafted(folder) as draft:
        draft.mkdir()
        tokenizer = _tokenizer(config, surveys, split, draft / "tokenizer.json")
        dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
        with (
            _Writer(draft / "train.bin", tokenizer, dtype) as train,
            _Writer(draft / "heldout.bin", tokenizer, dtype) as heldout,
        ):
            for for_training, for_holding_out in _parts(config, surveys, split):
                train.add(for_training)
                heldout.add(for_holding_out)
        if not train.n_tokens or not heldout.n_tokens:
            raise DataError(f"{sum(surveys[0].sizes)} bytes of text are too few to hold some of it out; give more text")
        meaning = [tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, dtype]
        meta = Meta(
            digest=hash_of([meaning, train.sha256.hexdigest(), heldout.sha256.hexdigest()]),
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            eos_id=train.eos_id,
            dtype=dtype,
            tail=split.tail is not None,
            n_train_tokens=train.n_tokens,
            n_heldout_tokens=heldout.n_tokens,
            n_heldout_documents=heldout.n_documents,
            train_bytes=train.n_bytes,
            heldout_bytes=heldout.n_bytes,
        )
        (draft / "meta.json").write_text(json.dumps(asdict(meta)), encoding="utf-8")
    return meta


@dataclass(frozen=True, slots=True)
class _Split:
    """How the training files' documents are divided.

    held: these documents are held out. tail: of so many bytes of text what follows is held out (when documents are
    too few, or too unequal, for a share of them to be near the share wanted). apart: these documents lie in
    data.val_paths too, and are left out of training.
    """

    held: frozenset[bytes] = frozenset()
    apart: frozenset[bytes] = frozenset()
    tail: int | None = None

    @classmethod
    def of(cls, surveys: list[Survey], val_share: float) -> "_Split":
        train, *val = surveys
        if val:
            apart = frozenset(val[0].names)
            if apart.issuperset(train.names):
                raise DataError("every document of data.paths is in data.val_paths too; nothing is left to train on")
            return cls(apart=apart)
        held = frozenset(name for name in train.names if int.from_bytes(name[:8], "big") < val_share * 2**64)
        total = sum(train.sizes)
        share = sum(size for name, size in zip(train.names, train.sizes, strict=True) if name in held) / total
        if val_share / 4 <= share <= min(4 * val_share, (1 + val_share) / 2):
            return cls(held=held)
        return cls(tail=round(total * (1 - val_share)))

    def divide(self, document: bytes, name: bytes, begin: int) -> tuple[bytes, bytes]:
        """What of a document, which starts at byte `begin` of the text, is for training and what is held out."""
        if self.tail is not None:
            cut = min(max(self.tail - begin, 0), len(document))
            cut = cut_before(document, cut) if 0 < cut < len(document) else cut
            return document[:cut], document[cut:]
        if name in self.held:
            return b"", document
        return (b"" if name in self.apart else document), b""


def _parts(config: Text, surveys: list[Survey], split: _Split) -> Iterator[tuple[bytes, bytes]]:
    """Reads all files again and yields (for training, held out) of each document.

    Raises:
        DataError: when a document is not what the survey saw.
    """
    for is_val, seen in enumerate(surveys):
        expected, begin = iter(seen.names), 0
        for file in seen.files:
            for document in documents(file, config.text_field):
                name = hashlib.sha256(document).digest()
                if name != next(expected, None):
                    raise DataError(f"{str(file.path)!r} changed while it was being read; start again")
                yield (b"", document) if is_val else split.divide(document, name, begin)
                begin += len(document)


def _tokenizer(config: Text, surveys: list[Survey], split: _Split, path: Path) -> Tokenizer:
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer.startswith("bpe:"):
        texts = (part for part, _ in _parts(config, surveys, split) if part)
        train_bpe(texts, int(config.tokenizer.removeprefix("bpe:")), path)
        return LoadedTokenizer(path)
    return LoadedTokenizer(Path(config.tokenizer).expanduser(), config.bos_id, config.eos_id)


class _Writer:
    """A flat file of ids; every document ends with the end-of-document token."""

    def __init__(self, path: Path, tokenizer: Tokenizer, dtype: str):
        if tokenizer.eos_id is None:
            raise DataError("the tokenizer has no known end-of-document token; name its id in data.eos_id")
        self.eos_id = tokenizer.eos_id
        self.sha256 = hashlib.sha256()
        self.n_tokens = self.n_bytes = self.n_documents = 0
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._waiting: list[bytes] = []
        self._n_waiting = 0
        self._stream = path.open("wb")

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._flush()
        finally:
            self._stream.close()

    def add(self, document: bytes) -> None:
        """Adds a document, an empty one not."""
        if document:
            self.n_documents += 1
            self.n_bytes += len(document)
            self._n_waiting += len(document)
            self._waiting.append(document)
        if self._n_waiting >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        end = np.array([self.eos_id])
        for ids in self._tokenizer.encode(self._waiting):
            data = np.concatenate([ids, end]).astype(self._dtype).tobytes()
            self.sha256.update(data)
            self._stream.write(data)
            self.n_tokens += len(ids) + 1
        self._waiting, self._n_waiting = [], 0


def _why_empty(n_files: int, n_left_out: int) -> str:
    if n_left_out:
        return f"{n_left_out} of {n_files} files are binary or not UTF-8; convert text to UTF-8"
    return "nothing but white space"
