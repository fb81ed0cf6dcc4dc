"""Files as documents: text, lines of JSON, packed or not, columns of Parquet and Arrow.

Notable: files are read as a stream, a batch of rows at a time; Arrow is mapped where it lies.
"""

import difflib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .batch import DataError
from .files import File

if TYPE_CHECKING:
    import pyarrow as pa

# What a name of a file of lines ends in, and how it is packed.
_PACKED = {".gz": "gzip", ".zst": "zstd"}


class NotText(DataError):
    """A file that is binary, or in another encoding than UTF-8."""


def documents(file: File, text_field: str) -> Iterator[bytes]:
    """The documents of a file as UTF-8, those of nothing but white space left out.

    A text file is one document, a line of a .jsonl and a row of a .parquet or .arrow file one each (their `text_field`).

    Raises:
        NotText: for a text file that is binary or not UTF-8, and for one that is beside the text.
        DataError: for a file that cannot be read or unpacked, a bad line, a missing or unfit column.
    """
    read = {"text": _text, "jsonl": _jsonl, "parquet": _parquet, "arrow": _arrow, "note": _note}[file.kind]
    try:
        for document in read(file.path, text_field):
            if document.strip():
                yield document
    except OSError as error:
        raise DataError(f"{str(file.path)!r} cannot be read: {error.strerror or error}") from None


def _note(path: Path, text_field: str) -> Iterator[bytes]:
    raise NotText(f"{str(path)!r} lies beside a data set and is no text of it")
    yield


def _text(path: Path, text_field: str) -> Iterator[bytes]:
    with path.open("rb") as stream:
        start = stream.read(8192)
        if b"\0" in start:
            raise NotText(
                f"{str(path)!r} is binary (a zero byte at offset {start.index(0)}); expected UTF-8 text, .jsonl, "
                f".parquet, .arrow, or token shards named .bin, .bin.xz or .npy"
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
    with _unpacked(path) as stream:
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


def _unpacked(path: Path) -> IO[bytes]:
    """The lines of a file, of what is packed in it where its name says so."""
    if path.suffix not in _PACKED:
        return path.open("rb")
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(path, compression=_PACKED[path.suffix]))


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
    import pyarrow.parquet as pq

    with _said(path, "Parquet"), pq.ParquetFile(path) as file:
        _check_column(file.schema_arrow, text_field, path)
        yield from _strings(file.iter_batches(columns=[text_field], batch_size=1024), text_field)


def _arrow(path: Path, text_field: str) -> Iterator[bytes]:
    """A stream, as `save_to_disk` writes it, or a file, which has its magic word in front."""
    import pyarrow as pa

    with _said(path, "Arrow"), pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        _check_column(reader.schema, text_field, path)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        yield from _strings(batches, text_field)


@contextmanager
def _said(path: Path, kind: str) -> Iterator[None]:
    """What pyarrow finds wrong with a file, as one sentence."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise DataError(f"{str(path)!r} cannot be read as {kind}: {error}") from None


def _check_column(schema: "pa.Schema", text_field: str, path: Path) -> None:
    import pyarrow as pa

    if text_field not in schema.names:
        raise DataError(f"{str(path)!r}: no column {text_field!r}; there are {_columns(schema.names, text_field)}")
    kind = schema.field(text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"{str(path)!r}: column {text_field!r} holds {kind}; expected strings")


def _strings(batches: "Iterable[pa.RecordBatch]", text_field: str) -> Iterator[bytes]:
    for batch in batches:
        for text in batch.column(text_field):
            yield (text.as_py() or "").encode()


def _columns(names: list[str], wanted: str) -> str:
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"; did you mean data.text_field={close[0]}?" if close else "; name one in data.text_field"
    return f"{', '.join(map(repr, names))}{hint} (a run's key; elsewhere rename the column)" if names else "none at all"
