"""Paths a user may name, as files to read.

Notable: the order is that of the paths given and, inside a folder, of the names, so the same content is the same text
wherever it lies. What the user named must be readable; what merely lies in a named folder and is not text is left out
and counted. A folder is of text or of token shards; one of text and of shards with their meta.json is refused, since either half
would be missed in silence.
"""

import difflib
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
# Of data sets that `save_to_disk` wrote: what names the splits of several, and what lies beside the .arrow files of one.
_OF_SPLITS, _BESIDE_ARROW = "dataset_dict.json", {"dataset_info.json", "state.json"}
# And of a folder of token shards, beside these.
_BESIDE_SHARDS = {"meta.json", "tokenizer.json"}
_NOTES = ("README", "LICENSE", "LICENCE")
# What a name ends in, and what the file then is; every other one is text.
KINDS = {
    ".bin": "shard",
    ".bin.xz": "shard",
    ".npy": "shard",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".json.gz": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}


@dataclass(frozen=True, slots=True)
class File:
    """One file; `kind` is text, one of `KINDS`, or note (beside shards or .arrow files: counted, not read); `named`: by the
    user, not found in a folder."""

    path: Path
    kind: str
    named: bool


def find(paths: tuple[str, ...]) -> list[File]:
    """All files under `paths`, each once; hidden files and folders inside a folder are skipped.

    Raises:
        DataError: for a path that does not exist (with the nearest name that does), is no file and no folder, or is a folder of
            several splits or of shards and something else.
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


def _under(name: str) -> Iterator[File]:
    if name == "stdlib":
        yield from _stdlib()
        return
    path = Path(name).expanduser()
    if path.is_dir():
        yield from _inside(name, path)
    elif path.is_file():
        yield File(path, _kind(path), named=True)
    elif not path.exists() and any(c in name for c in "*?["):
        raise DataError(
            f"{name!r}: no such file or folder, and patterns are not expanded here; name the folder, or the files joined by "
            "commas, as in data.paths=a.txt,b.txt"
        )
    elif path.exists():
        raise DataError(f"{name!r} is neither a file nor a folder")
    else:
        raise DataError(f"{name!r}: no such file or folder{_nearest(path)}")


def _inside(name: str, folder: Path) -> Iterator[File]:
    """The files of a folder of text, or of one of token shards with what says their vocabulary beside them. Files named .bin among
    text, without a meta.json, are files among text.

    Raises:
        DataError: for an empty one, a data set of several splits, and one that holds shards with a meta.json and something else.
    """
    contents = _walk(folder, set())
    if not contents:
        raise DataError(f"{name!r} holds no files (hidden ones are skipped)")
    splits = [path.parent for path in contents if path.name == _OF_SPLITS]
    if splits:
        names = sorted(
            {path.parent.name for path in contents if path.suffix == ".arrow" and path.parent.parent == splits[0]}
        )
        raise DataError(
            f"{name!r} is a data set of several splits, as Hugging Face's `save_to_disk` writes it; name one, as in "
            f"data.paths={splits[0] / (names[0] if names else 'train')}, and another in data.val_paths (there are "
            f"{', '.join(names) or 'none'})"
        )
    of_arrow = {path.parent for path in contents if path.suffix == ".arrow"}
    kinds = ["note" if p.name in _BESIDE_ARROW and p.parent in of_arrow else _kind(p) for p in contents]
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
    return next((kind for end, kind in KINDS.items() if path.name.endswith(end)), "text")


def _nearest(path: Path) -> str:
    """The nearest existing name, searched in the deepest folder of the path that exists."""
    wanted, folder = Path(os.path.abspath(path)), Path(os.path.abspath(path)).parent
    while not folder.is_dir() and folder != folder.parent:
        wanted, folder = folder, folder.parent
    try:
        near = difflib.get_close_matches(wanted.name, os.listdir(folder), n=3)
        # An ending in common makes no two names alike.
        close = [name for name in near if difflib.get_close_matches(wanted.stem, [Path(name).stem])]
    except OSError:
        close = []
    return f"; did you mean {str(folder / close[0])!r}?" if close else f"; {str(folder)!r} has no {wanted.name!r}"
