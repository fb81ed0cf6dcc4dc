"""Token shards as a source: flat little-endian ids in .bin files, or .bin.xz, which are unpacked once into the cache, and NumPy's
.npy of one axis, which say their own type.

Notable: a shard is hashed and checked once; what was found is remembered by its path, size and times, since a plan
would else read gigabytes to learn a name. Shards are mapped where they lie, never copied together.
"""

import hashlib
import lzma
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gatelab.config import Text
from gatelab.config import digest as hash_of

from . import files
from .batch import DataError
from .cache import Known, drafted, read_json
from .files import File
from .tokenizer import LoadedTokenizer
from .tokens import Corpus, Tokens, mapped

_CHUNK = 1 << 22
# What meta.json may say about ids, and the field of the configuration that says it too.
_FIELDS = ("vocab_size", "bos_id", "eos_id")
# Numbers from the beginning of a shard by which one of wider ids is recognised; how many such ids are the fewest, how many
# different ones they take, and the share of them whose lowest part is not 0.
_LOOKED_AT, _FEWEST, _DIFFERENT, _NOT_ZERO = 4096, 256, 8, 0.75
_TURNS = {2: "second", 4: "fourth"}
_HELD_OUT = re.compile(r"(val|valid|validation|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Shard:
    """A checked shard: its ids, mapped where they lie, `sha256` of their bytes, `largest` the largest of them."""

    ids: np.ndarray
    sha256: str
    largest: int


def open_shards(config: Text, train: list[File], heldout: list[File], cache: Path) -> Corpus:
    """The shards of data.paths, with those of data.val_paths or else the tail of the tokens held out.

    Raises:
        DataError: for a length that is no whole number of ids, ids outside of the vocabulary, ids that look wider than data.dtype,
            an unknown vocabulary, a damaged .xz file, a .npy that is no row of whole numbers, the same shard on both sides, or one
            of a folder that is named as held out where none is.
    """
    _refuse_validation(train, heldout)
    dtype = {"uint16": "<u2", "uint32": "<u4"}[config.dtype]
    vocabulary = _vocabulary(config, train + heldout)
    checked = {file.path: _check(file.path, dtype, vocabulary["vocab_size"], cache) for file in train + heldout}
    train_shards, heldout_shards = [checked[f.path] for f in train], [checked[f.path] for f in heldout]
    both = {shard.sha256 for shard in train_shards} & {shard.sha256 for shard in heldout_shards}
    if both:
        name = next(path for path, shard in checked.items() if shard.sha256 in both)
        raise DataError(f"{str(name)!r} is in data.paths and in data.val_paths (the same content); take it out of one")
    tokens = Tokens([shard.ids for shard in train_shards])
    if heldout:
        held = Tokens([shard.ids for shard in heldout_shards])
        told: Any = [shard.sha256 for shard in heldout_shards]
    else:
        tokens, held = tokens.split(len(tokens) - max(1, round(len(tokens) * config.val_share)))
        told = config.val_share
    if not len(tokens):
        raise DataError(f"{files.label(config.paths)}: one token, and nothing to hold out; give more text")
    types = sorted({shard.ids.dtype.str for shard in checked.values()})
    digest = hash_of([vocabulary, types[0] if len(types) == 1 else types, [s.sha256 for s in train_shards], told])
    return Corpus(
        train=tokens,
        heldout=held,
        **vocabulary,
        digest=digest,
        description=_describe(config, tokens, held),
        bytes_per_token=_bytes_per_token(train + heldout, held, digest, cache),
    )


def _refuse_validation(train: list[File], heldout: list[File]) -> None:
    """Refuses to train on what lies in a folder under a name such as val.bin, where nothing is named to be held out."""
    named = [f.path for f in train if not f.named and _HELD_OUT.match(f.path.name)]
    if named and not heldout:
        others = [f.path for f in train if f.path not in named] or [Path("train.bin")]
        raise DataError(
            f"{str(named[0])!r} is named as one to hold out, and data.val_paths is empty; hold it out, as in "
            f"data.paths={others[0]} data.val_paths={named[0]}, or name it in data.paths itself to train on it"
        )


def _vocabulary(config: Text, shards: list[File]) -> dict[str, Any]:
    """vocab_size, bos_id and eos_id: what the configuration says, and else the meta.json beside the shards."""
    said: dict[str, Any] = dict.fromkeys(_FIELDS)
    for folder in dict.fromkeys(file.path.parent for file in shards):
        path = folder / "meta.json"
        meta = read_json(path)
        if meta is None and path.exists():
            raise DataError(f"{str(path)!r} is not a JSON object; mend it, or move the shards away from it")
        for field in _FIELDS:
            value = (meta or {}).get(field)
            if said[field] is not None and value is not None and value != said[field]:
                raise DataError(
                    f"{str(path)!r} says {field}={value!r}, another meta.json {said[field]!r}; give one set"
                )
            said[field] = value if value is not None else said[field]
    said = {field: getattr(config, field) if getattr(config, field) is not None else said[field] for field in _FIELDS}
    if said["vocab_size"] is None:
        raise DataError(
            f"token shards do not tell their vocabulary: set data.vocab_size, or put a meta.json with vocab_size, "
            f"bos_id and eos_id beside {str(shards[0].path)!r}"
        )
    for field, value in said.items():
        least = 1 if field == "vocab_size" else 0
        if value is not None and (not isinstance(value, int) or value < least):
            raise DataError(f"meta.json: {field}={value!r}; expected a whole number from {least} on")
        if value is not None and field != "vocab_size" and value >= said["vocab_size"]:
            raise DataError(f"{field}={value} is no id of a vocabulary of {said['vocab_size']}; set data.{field}")
    return said


def _check(path: Path, dtype: str, vocab_size: int, cache: Path) -> _Shard:
    known = Known(cache, [path], ["shard", dtype])
    facts = known.recall()
    flat = _flat(path, facts, cache)
    ids = _ids(path, flat, dtype)
    if facts is None:
        least, largest = int(ids.min()), int(ids.max())
        if least < 0:
            raise DataError(f"{str(path)!r} holds {least}; expected ids from 0 on")
        facts = {"flat": flat.name, "n_bytes": flat.stat().st_size, "sha256": _digest(ids), "largest": largest}
        known.remember(facts)
    # Who says there what is read knows, as a .npy does; data.dtype alone may be the default.
    says = path.suffix == ".npy" or (read_json(path.parent / "meta.json") or {}).get("dtype") == ids.dtype.name
    if not says:
        _refuse_wider(path, ids[:_LOOKED_AT], vocab_size)
    if facts["largest"] >= vocab_size:
        remedy = "check data.vocab_size" + ("" if path.suffix == ".npy" else f" and data.dtype ({ids.dtype.name})")
        raise DataError(f"{str(path)!r} holds id {facts['largest']}, and the vocabulary has {vocab_size}; {remedy}")
    return _Shard(ids, facts["sha256"], facts["largest"])


def _ids(path: Path, flat: Path, dtype: str) -> np.ndarray:
    """The ids of a shard, read as they are needed."""
    if path.suffix == ".npy":
        return _of_numpy(path)
    n_bytes, itemsize = flat.stat().st_size, np.dtype(dtype).itemsize
    if not n_bytes or n_bytes % itemsize:
        wrong = f"its {n_bytes:,} bytes are no whole number of {itemsize}-byte ids; check data.dtype"
        raise DataError(f"{str(path)!r}: {wrong if n_bytes else 'an empty file; expected token ids'}")
    return mapped(flat, dtype)


def _of_numpy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{str(path)!r} is no array that NumPy's `np.save` wrote ({error}); write it again") from None
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise DataError(
            f"{str(path)!r} holds {array.dtype.name} of shape {array.shape}; expected token ids, whole numbers of one axis, as "
            f"`np.save(path, ids.reshape(-1).astype('uint16'))` writes them"
        )
    return array.view(np.ndarray)


def _refuse_wider(path: Path, ids: np.ndarray, vocab_size: int) -> None:
    """Refuses a shard whose beginning is one of wider little-endian integers: all but the lowest part of each is then 0, or, of
    the second, what it is in ids of the vocabulary, while the lowest takes many values. Ids of text do not take such turns."""
    highest, bits = (vocab_size - 1) >> 8 * ids.itemsize, 8 * ids.itemsize
    for n_parts, wider in ((64 // bits, "int64 or uint64"), (32 // bits, "uint32 or int32")):
        if n_parts == 1 or len(ids) < _FEWEST * n_parts:
            continue
        parts = ids[: len(ids) // n_parts * n_parts].reshape(-1, n_parts)
        lowest = parts[:, 0]
        if np.count_nonzero(lowest) < _NOT_ZERO * len(lowest) or len(np.unique(lowest)) < _DIFFERENT:
            continue
        if lowest.max() > highest and parts[:, 1].max() <= highest and not parts[:, 2:].any():
            remedy = "set data.dtype=uint32"
            if "64" in wider:
                remedy = "write it again, as NumPy's `ids.astype('<u4').tofile(…)` does, and set data.dtype=uint32"
            rest = "0" if not highest else f"at most {highest}"
            raise DataError(
                f"{str(path)!r} looks like {wider} and is read as uint{bits} (data.dtype): of its first {parts.size:,} "
                f"numbers all but every {_TURNS[n_parts]} one are {rest}; {remedy} (data.dtype takes uint16 or uint32); if they "
                f'are uint{bits} ids, say "dtype": "uint{bits}" in the meta.json beside the shard'
            )


def _flat(path: Path, facts: dict[str, Any] | None, cache: Path) -> Path:
    """The shard itself, or its unpacked copy in the cache, made now if there is none of the right length."""
    if path.suffix != ".xz":
        return path
    flat = cache / "shards" / (facts["flat"] if facts else f"{_sha256(path)}.bin")
    if not flat.is_file() or (facts is not None and flat.stat().st_size != facts["n_bytes"]):
        _unpack(path, flat)
    return flat


def _unpack(path: Path, flat: Path) -> None:
    with drafted(flat) as draft, draft.open("wb") as out:
        try:
            with lzma.open(path) as packed:
                while chunk := packed.read(_CHUNK):
                    out.write(chunk)
        except (lzma.LZMAError, EOFError) as error:
            raise DataError(f"{str(path)!r} is no whole .xz file ({error}); fetch it again") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(ids: np.ndarray) -> str:
    """Of the ids' bytes, which are those of a .bin file of them."""
    out = hashlib.sha256()
    for start in range(0, len(ids), _CHUNK):
        out.update(ids[start : start + _CHUNK])
    return out.hexdigest()


def _describe(config: Text, train: Tokens, held: Tokens) -> str:
    where = files.label(config.val_paths) if config.val_paths else f"the last {config.val_share * 100:g}%"
    return f"token shards {files.label(config.paths)}: {len(train):,} training tokens, {len(held):,} held out ({where})"


def _bytes_per_token(shards: list[File], held: Tokens, digest: str, cache: Path) -> float | None:
    """Counted on the first million held-out tokens, if the meta.json beside the shards names a tokenizer there."""
    folder = shards[0].path.parent
    words = str((read_json(folder / "meta.json") or {}).get("tokenizer", "")).split()
    if not words or not (folder / words[0]).is_file():
        return None
    known = Known(cache, [folder / words[0]], ["bytes", digest])
    counted = known.recall()
    if counted is None:
        ids = held.windows(np.zeros(1, np.int64), min(len(held), 1_000_000))[0]
        text = LoadedTokenizer(folder / words[0]).decode(ids)
        counted = {"bytes_per_token": len(text.encode()) / len(ids)}
        known.remember(counted)
    return counted["bytes_per_token"]
