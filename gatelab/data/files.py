"""Paths a user may name, as files to read, and files as documents.

Notable: the order is that of the paths given and, inside a folder, of the names, so the same content is the same text
wherever it lies. What the user named must be readable; what merely lies in a named folder and is not text is left out
and counted. A folder is of text or of token shards; one of text and of shards with their meta.json is refused, since either half
would be missed in silence.
"""

import difflib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .batch import DataError

# Of the standard library: tests, installed packages, and the settings of this one build of Python.
_NOT_STDLIB = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_BUILD_SETTINGS = "_sysconfigdata"
# Of a data set that `save_to_disk` wrote, beside its .arrow files; and of a folder of token shards, beside these.
_OF_ARROW = "dataset_info.json"
_BESIDE_SHARDS = {"meta.json", "tokenizer.json"}
_NOTES = ("README", "LICENSE", "LICENCE")


@dataclass(frozen=True, slots=True)
class File:
    """One file; `kind` is text, jsonl, parquet, shard, or note (beside shards: counted, not read); `named`: by the user, not
    found in a folder."""

    path: Path
    kind: str
    named: bool


def find(paths: tuple[str, ...]) -> list[File]:
    """All files under `paths`, each once; hidden files and folders inside a folder are skipped.

    Raises:
        DataError: for a path that does not exist (with the nearest name that does), is no file and no folder, or is a folder of
            Arrow files or of shards and something else.
    """
    found: dict[str, File] = {}
    for name in paths:
        for file in _under(name):
            found.setdefault(os.path.realpath(file.path), file)
    return list(found.values())


def label(paths: tuple[str, ...]) -> str:
    """The paths in words, without their folders."""
    version = f"the Python {sys.version_info.major}.{sys.version_info.minor} standard library"
    names = [version if name == "stdlib" else Path(os.path.abspath(name)).name for name in paths]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def size(n_bytes: int) -> str:
    """A number of bytes in words, in powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} bytes"


def documents(file: File, text_field: str) -> Iterator[bytes]:
    """The documents of a file as UTF-8, those of nothing but white space left out.

    A text file is one document, a line of a .jsonl and a row of a .parquet file one each (their `text_field`).

    Raises:
        NotText: for a text file that is binary or not UTF-8.
        DataError: for a file that cannot be read, a bad line, a missing or unfit column.
    """
    read = {"text": _text, "jsonl": _jsonl, "parquet": _parquet}[file.kind]
    try:
        for document in read(file.path, text_field):
            if document.strip():
                yield document
    except OSError as error:
        raise DataError(f"{str(file.path)!r} cannot be read: {error.strerror or error}") from None


class NotText(DataError):
    """A file that is binary, or in another encoding than UTF-8."""


def _under(name: str) -> Iterator[File]:
    if name == "stdlib":
        yield from _stdlib()
        return
    path = Path(name).expanduser()
    if path.is_dir():
        yield from _inside(name, path)
    elif path.is_file():
        yield File(path, _kind(path), named=True)
    elif path.exists():
        raise DataError(f"{name!r} is neither a file nor a folder")
    else:
        raise DataError(f"{name!r}: no such file or folder{_nearest(path)}")


def _inside(name: str, folder: Path) -> Iterator[File]:
    """The files of a folder of text, or of one of token shards with what says their vocabulary beside them. Files named .bin among
    text, without a meta.json, are files among text.

    Raises:
        DataError: for an empty one, a data set of Arrow files, and one that holds shards with a meta.json and something else.
    """
    contents = _walk(folder, set())
    if not contents:
        raise DataError(f"{name!r} holds no files (hidden ones are skipped)")
    saved = {path.parent for path in contents if path.name == _OF_ARROW}
    if any(path.suffix == ".arrow" and path.parent in saved for path in contents):
        raise DataError(
            f"{name!r} is a data set as Hugging Face's `save_to_disk` writes it, and .arrow files are not read; write it as "
            f'Parquet, as in `ds.to_parquet("data.parquet")` of one of its splits, and name that (read are text, .jsonl, '
            f".parquet, and token shards named .bin or .bin.xz)"
        )
    kinds = [_kind(path) for path in contents]
    shards = [path for path, kind in zip(contents, kinds, strict=True) if kind == "shard"]
    others = [path for path, kind in zip(contents, kinds, strict=True) if kind != "shard"]
    others = [p for p in others if p.name not in _BESIDE_SHARDS and not p.name.startswith(_NOTES)] if shards else others
    if others and not any((path.parent / "meta.json").is_file() for path in shards):
        kinds, shards = ["text" if kind == "shard" else kind for kind in kinds], []
    if shards and others:
        raise DataError(
            f"{name!r} holds token shards and other files, such as {str(shards[0].relative_to(folder))!r} and "
            f"{str(others[0].relative_to(folder))!r}; name those that are meant one by one, or keep the two kinds in folders apart"
        )
    for path, kind in zip(contents, kinds, strict=True):
        if not shards or kind == "shard":
            yield File(path, kind, named=False)
        elif path.name not in _BESIDE_SHARDS:
            yield File(path, "note", named=False)


def _stdlib() -> Iterator[File]:
    root = Path(sysconfig.get_paths()["stdlib"])
    if not root.is_dir():
        raise DataError(f"the standard library is not a folder here ({str(root)!r}); name your own text in data.paths")
    for path in _walk(root, _NOT_STDLIB):
        if path.suffix == ".py" and not path.name.startswith(_BUILD_SETTINGS):
            yield File(path, "text", named=False)


def _walk(root: Path, skipped: set[str]) -> list[Path]:
    """Regular files under `root`, sorted by their parts, which is the same order on every system."""
    out = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in skipped]
        out += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted((path for path in out if path.is_file()), key=lambda path: path.relative_to(root).parts)


def _kind(path: Path) -> str:
    if path.name.endswith((".bin", ".bin.xz")):
        return "shard"
    return {".jsonl": "jsonl", ".parquet": "parquet"}.get(path.suffix, "text")


def _nearest(path: Path) -> str:
    """The nearest existing name, searched in the deepest folder of the path that exists."""
    wanted, folder = Path(os.path.abspath(path)), Path(os.path.abspath(path)).parent
    while not folder.is_dir() and folder != folder.parent:
        wanted, folder = folder, folder.parent
    try:
        close = difflib.get_close_matches(wanted.name, os.listdir(folder), n=1)
    except OSError:
        close = []
    return f"; did you mean {str(folder / close[0])!r}?" if close else f"; {str(folder)!r} has no {wanted.name!r}"


def _text(path: Path, text_field: str) -> Iterator[bytes]:
    with path.open("rb") as stream:
        start = stream.read(8192)
        if b"\0" in start:
            raise NotText(
                f"{str(path)!r} is binary (a zero byte at offset {start.index(0)}); expected UTF-8 text, .jsonl, "
                f".parquet, or token shards named .bin or .bin.xz"
            )
        document = start + stream.read()
    try:
        document.decode()
    except UnicodeDecodeError as error:
        raise NotText(
            f"{str(path)!r} is not UTF-8 (byte 0x{document[error.start]:02x} at offset {error.start}); convert it, "
            f"as in `iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}`, or leave it out"
        ) from None
    yield document.removeprefix(b"\xef\xbb\xbf")


def _jsonl(path: Path, text_field: str) -> Iterator[bytes]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{str(path)!r}, line {number}"
            try:
                record = json.loads(line.decode())
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 (byte {error.start + 1} of the line); convert the file") from None
            except json.JSONDecodeError as error:
                what = f"{error.msg} at character {error.pos + 1}"
                raise DataError(f"{where}: not JSON ({what}); every line must be one JSON object") from None
            if not isinstance(record, dict):
                raise DataError(f"{where}: a JSON {type(record).__name__}; every line must be one JSON object")
            yield _field(record, text_field, where)


def _field(record: dict[str, object], text_field: str, where: str) -> bytes:
    if text_field not in record:
        raise DataError(f"{where}: no column {text_field!r}; there are {_columns(list(record), text_field)}")
    text = record[text_field]
    if not isinstance(text, str | None):
        raise DataError(f"{where}: {text_field!r} holds {text!r:.40}; expected a string")
    try:
        return (text or "").encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {text_field!r} holds half a surrogate pair at character {error.start}") from None


def _parquet(path: Path, text_field: str) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_field not in schema.names:
                columns = _columns(schema.names, text_field)
                raise DataError(f"{str(path)!r}: no column {text_field!r}; there are {columns}")
            kind = schema.field(text_field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise DataError(f"{str(path)!r}: column {text_field!r} holds {kind}; expected strings")
            for batch in file.iter_batches(columns=[text_field], batch_size=1024):
                for text in batch.column(0):
                    yield (text.as_py() or "").encode()
    except pa.ArrowException as error:
        raise DataError(f"{str(path)!r} cannot be read as Parquet: {error}") from None


def _columns(names: list[str], wanted: str) -> str:
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"; did you mean data.text_field={close[0]}?" if close else "; name one in data.text_field"
    return f"{', '.join(map(repr, names))}{hint} (a run's key; elsewhere rename the column)" if names else "none at all"
