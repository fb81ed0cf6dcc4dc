"""A destination folder that is complete or absent: everything is written beside it under another name, then renamed."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What a tokenizer of transformers, and its generation settings, may lie in.
_COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "tekken.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip


def check_destination(path: Path, source: Path | None = None) -> None:
    """Whether a folder can be made at `path`, as far as can be said before it is.

    Raises:
        ValueError: there is something at `path` already, it lies in the `source`, or its parent is a file.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path}: is there already and is left alone; name a new or empty folder")
    if source is not None and source.is_dir() and source.resolve() in path.absolute().resolve().parents:
        raise ValueError(f"{path}: lies inside {source}, which is read; name a folder outside of it")
    held = next((p for p in path.absolute().parents if p.exists()), None)
    if held is not None and not held.is_dir():
        raise ValueError(f"{path}: {held} is a file, so no folder can be made in it; name another folder")


@contextmanager
def destination(path: Path, source: Path | None = None) -> Iterator[Path]:
    """A folder to write into, which becomes `path` when the block ends well and disappears when it does not.

    Raises:
        ValueError: what `check_destination` refuses, or no folder may be made there.
    """
    check_destination(path, source)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
    except OSError as error:
        raise ValueError(
            f"{path}: no folder can be made here ({error.strerror}); name one where you may write"
        ) from None
    try:
        yield draft
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """JSON as the house writes it; for a folder that is still a draft."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_companions(source: Path, draft: Path) -> list[str]:
    """Tokenizer files and generation_config.json as they are; returns the names of those that were there."""
    there = [name for name in _COMPANIONS if (source / name).is_file()]
    for name in there:
        shutil.copyfile(source / name, draft / name)
    return there
