"""A GGUF file, llama.cpp's format: weights, configuration and tokenizer in one, which transformers dequantises."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .source import Source, first_line

_DTYPES = {"F16": "float16", "BF16": "bfloat16"}


def gguf(path: Path) -> Source:
    """The checkpoint in a .gguf file.

    Raises:
        ValueError: it is no GGUF file, not a whole one, or one of several; what reads it is not installed.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: is no GGUF file; name one, or the folder that holds a config.json")
    absent = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if absent:
        raise ValueError(f"reading a .gguf file needs {' and '.join(absent)}: pip install 'gatelab[hf]'")
    from gguf import GGUFReader

    try:
        # It maps every tensor, so a file that was cut is found out here.
        reader = GGUFReader(path)
    except Exception as error:  # whatever its bytes happen to say
        raise ValueError(f"{path}: is not a whole GGUF file ({first_line(error)}); copy it again") from None
    _check_whole(path, reader)
    n_values: Counter[str] = Counter()
    for tensor in reader.tensors:
        n_values[tensor.tensor_type.name] += int(tensor.n_elements)
    most = n_values.most_common(1)[0][0] if n_values else "F32"
    note = f"its weights are stored as {most}"
    if most not in ("F32", "F16", "BF16", "F64"):
        note += " and were dequantised, so they are not the ones that were trained"
    place = path.resolve()
    given = {"gguf_file": place.name, "trust_remote_code": False}
    dtype = _DTYPES.get(most, "float32")
    around = partial(_read_once, place, reader)
    return Source(str(path), place.name, str(place.parent), given, lambda: dtype, around=around, notes=(note,))


@contextmanager
def _read_once(path: Path, reader: Any) -> Iterator[None]:
    """Transformers reads a file with a new GGUFReader for its configuration, its tokenizer and its weights, each of which takes
    seconds over the vocabulary; meanwhile it is given the one that is there."""
    import gguf

    new = gguf.GGUFReader
    gguf.GGUFReader = lambda asked, *mode: reader if Path(asked).resolve() == path else new(asked, *mode)
    try:
        yield
    finally:
        gguf.GGUFReader = new


def _check_whole(path: Path, reader: Any) -> None:
    field = reader.get_field("split.count")
    n_parts = 1 if field is None else int(field.parts[field.data[0]][0])
    if named := re.search(r"-\d{5}-of-(\d{5})\.gguf$", path.name):
        n_parts = max(n_parts, int(named[1]))
    if n_parts > 1:
        raise ValueError(
            f"{path}: is one of {n_parts} parts; join them with llama.cpp's `llama-gguf-split --merge` and name the result"
        )
