"""Text as a source: prepared once into the cache under the hash of its content, mapped ever after."""

import hashlib
from dataclasses import replace
from pathlib import Path

from gatelab.config import Text
from gatelab.config import digest as hash_of

from . import files
from .batch import DataError
from .cache import Known
from .files import File
from .prepare import Meta, load, prepare, survey
from .shards import open_shards
from .tokens import Corpus, Tokens, TokenSource, mapped

_FORMAT = 1  # raised when the same text would be prepared otherwise


def open_text(config: Text, cache: Path) -> TokenSource:
    """The source of a text: found in the cache, or prepared into it.

    Raises:
        DataError: for anything about the files, the tokenizer or the cache that cannot be used; see `files`,
            `prepare` and `shards` for what is checked.
    """
    train, heldout = files.find(config.paths), files.find(config.val_paths)
    notes = [file for file in train + heldout if file.kind == "note"]
    train, heldout = ([file for file in side if file.kind != "note"] for side in (train, heldout))
    shards = [file for file in train + heldout if file.kind == "shard"]
    texts = [file for file in train + heldout if file.kind != "shard"]
    if shards and texts:
        raise DataError(
            f"token shards and text in one run: {str(shards[0].path)!r} and {str(texts[0].path)!r}; "
            f"give one kind in data.paths and data.val_paths"
        )
    open_corpus = open_shards if shards else _open_documents
    corpus = open_corpus(config, train, heldout, cache)
    if notes:
        left_out = f"; {len(notes):,} files left out, such as {notes[0].path.name}"
        corpus = replace(corpus, description=corpus.description + left_out)
    return TokenSource(corpus, config)


def _open_documents(config: Text, train: list[File], heldout: list[File], cache: Path) -> Corpus:
    tokenizer_files = _tokenizer_files(config)
    settings = [_FORMAT, config.val_share, config.bos_id, config.eos_id]
    read = [file.path for file in train + heldout] + tokenizer_files
    known = Known(cache, read, [settings, config.tokenizer, config.text_field, len(train), len(heldout)])
    found = known.recall()
    meta = load(cache / "corpora" / found["key"]) if found else None
    if found is None or meta is None:
        surveys = [survey(config.paths, train, config.text_field)]
        if config.val_paths:
            surveys.append(survey(config.val_paths, heldout, config.text_field))
        tokenizer = [hashlib.sha256(path.read_bytes()).hexdigest() for path in tokenizer_files] or config.tokenizer
        key = hash_of([settings, tokenizer, [[name.hex() for name in s.names] for s in surveys]])
        meta = load(cache / "corpora" / key) or prepare(config, surveys, cache / "corpora" / key)
        found = {"key": key, "n_left_out": sum(s.n_left_out for s in surveys)}
        known.remember(found)
    folder = cache / "corpora" / found["key"]
    return Corpus(
        train=Tokens([mapped(folder / "train.bin", meta.dtype)]),
        heldout=Tokens([mapped(folder / "heldout.bin", meta.dtype)]),
        vocab_size=meta.vocab_size,
        bos_id=meta.bos_id,
        eos_id=meta.eos_id,
        digest=meta.digest,
        description=_describe(config, meta, found["n_left_out"]),
        bytes_per_token=meta.heldout_bytes / meta.n_heldout_tokens,
    )


def _tokenizer_files(config: Text) -> list[Path]:
    """The tokenizer.json, if there is one; refuses what contradicts the tokenizer."""
    if config.vocab_size is not None:
        raise DataError(f"data.vocab_size={config.vocab_size} is for token shards; a tokenizer knows its vocabulary")
    if config.tokenizer.endswith(".json"):
        path = Path(config.tokenizer).expanduser()
        if not path.is_file():
            raise DataError(
                f"data.tokenizer={config.tokenizer!r}: no such file; expected 'byte', 'bpe:N' or a tokenizer.json"
            )
        return [path]
    if config.bos_id is not None or config.eos_id is not None:
        raise DataError(f"data.bos_id and data.eos_id are fixed with data.tokenizer={config.tokenizer}; leave them out")
    return []


def _describe(config: Text, meta: Meta, n_left_out: int) -> str:
    held = f"its last {config.val_share * 100:g}%" if meta.tail else f"{meta.n_heldout_documents:,} documents"
    tokens = f"{meta.n_train_tokens:,} training tokens, {meta.n_heldout_tokens:,} held out ({held})"
    left_out = f"; {n_left_out:,} files left out that are not UTF-8 text" if n_left_out else ""
    return f"{files.size(meta.train_bytes + meta.heldout_bytes)} of {files.label(config.paths)}, {tokens}{left_out}"
