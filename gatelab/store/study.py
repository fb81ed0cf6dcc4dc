"""A study's folder: its plan, its runs, and the address that it may mirror."""

import errno
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import SCHEMA
from ..mirror import LIGHT, Mirror, TakenError
from ..objects import AddressError, address_of, mirror_of, reached
from .files import Stamp, StoreError, check_keys, read_stored, stamp_of, write_json
from .rows import connected
from .run import RunFolder

ALONE = "folder.parquet"  # a pack that is its folder's study


class StudyFolder:
    """A study's folder: study.json and its runs. With `objects` it mirrors the study that lives on these; `archive` is the pack or
    archive of which it is a copy to be read, and no longer than that."""

    def __init__(self, path: Path, objects: Mirror | None = None, archive: Path | None = None):
        self.path, self.objects, self.archive = path, objects, archive
        self._planned: tuple[Stamp | None, list[tuple[dict[str, Any], RunFolder]]] | None = None

    @classmethod
    def at(cls, address: str, path: Path | None = None) -> "StudyFolder":
        """The study of an object store, which need not exist yet, with its mirror in `path`, this user's own unless stated.
        Nothing is read: `refresh` does."""
        path = path or mirror_of(address)
        return cls(path, Mirror(address, path))

    @property
    def address(self) -> str:
        """What a user names it by."""
        if self.archive is not None:
            is_alone = self.archive.name == ALONE and self.archive.parent.name
            return str(self.archive.parent if is_alone else self.archive)
        return str(self.path) if self.objects is None else self.objects.address

    @property
    def home(self) -> Path:
        """Beside what it was read from, an archive's folder."""
        return self.path if self.archive is None else self.archive.parent

    @classmethod
    def open(cls, path: str | Path, *, is_light: bool = False) -> "StudyFolder":
        """An existing study: a folder, an address such as s3://bucket/x, or the folder that mirrors one. Of an address what changed
        is fetched first, checkpoints and weights left out; with `is_light` only what tells how the runs stand.

        Raises:
            StoreError: when the folder is missing, holds no study, or one from another version; an address that cannot be used.
        """
        if (address := address_of(path)) is not None:
            folder = cls.at(address)
            folder.refresh(LIGHT if is_light else None)
            if not (folder.path / "study.json").exists():
                raise StoreError(
                    f"{address}: holds no study (no study.json); `gatelab run STUDY --out {address}` makes one"
                )
            folder.study()
            return folder
        folder = cls(Path(path))
        if not folder.path.exists():
            raise StoreError(f"{path}: no such folder; `gatelab run STUDY --out {path}` makes one")
        if said := of_pack(folder.path):
            raise StoreError(said)
        if not (folder.path / "study.json").exists():
            raise StoreError(f"{path}: holds no study (no study.json); name the folder that `gatelab run` wrote to")
        folder.study()
        return folder

    @classmethod
    def create(cls, path: str | Path, study: dict[str, Any]) -> "StudyFolder":
        """Write study.json; a folder of the same study is extended, anything else is left alone.

        Raises:
            StoreError: when `path` is a file, or a folder that holds something else or another study.
        """
        folder = cls(Path(path))
        if folder.path.is_file():
            raise StoreError(f"--out {path}: is a file; name a new or empty folder")
        if (folder.path / "study.json").exists():
            there = folder.study()
            if there["name"] != study["name"]:
                raise StoreError(
                    f"--out {path}: holds the study {there['name']!r}, not {study['name']!r}; name another folder"
                )
        elif folder.path.exists() and address_of(folder.path) is None:
            # What a first write that was killed leaves behind is nobody's.
            held = sorted(p.name for p in folder.path.iterdir() if not _is_half_study(p))
            if held:
                some = ", ".join(held[:3]) + (" …" if len(held) > 3 else "")
                raise StoreError(
                    f"--out {path}: holds something else ({some}) and is left alone; name a new or empty folder"
                )
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            # Before anything else is in the folder: it is what tells it from a stranger's.
            write_json(folder.path / "study.json", {"schema": SCHEMA, **study})
            (folder.path / "runs").mkdir(exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StoreError(f"--out {path}: cannot be written ({error.strerror}); name another folder") from None
        return folder

    def study(self) -> dict[str, Any]:
        """What study.json says.

        Raises:
            StoreError: when it is missing, cut, edited, or from another version.
        """
        path = self.path / "study.json"
        value = read_stored(path)
        check_keys(path, value, {"name": str, "plan": list})
        for entry in value["plan"]:
            check_keys(path, entry, {"cell": str, "arm": str, "seed": int, "fingerprint": str})
            # Each names a folder.
            for name in (entry["fingerprint"], entry.get("init_from")):
                if name is not None and not is_fingerprint(name):
                    raise StoreError(f"{path}: {name!r} is no fingerprint of a run; was it edited?")
        return value

    def run(self, fingerprint: str) -> RunFolder:
        """The folder of one run, which need not exist yet."""
        return RunFolder(self.path / "runs" / fingerprint, self.objects)

    def refresh(self, wants: Callable[[str], bool] | None = LIGHT, *, is_due: bool = True) -> None:
        """Of a study on an object store, let the mirror have what changed, as `Mirror.refresh` says.

        Raises:
            StoreError: when it cannot be reached.
        """
        if self.objects is None:
            return
        with _reached(self.address, "read"):
            self.objects.refresh(wants, is_due=is_due)

    def check(self) -> None:
        """Whether the study of an address may be written, or begun, there; and have what is there in the mirror.

        Raises:
            StoreError: when it may not.
        """
        self._check_place()
        self._have_anew()

    def put(self, write: Callable[[frozenset[str]], object]) -> None:
        """Let `write` make or extend the plan of the study of an address in its mirror, and write it there. Of several that begin
        or extend a study at once one is first; what it wrote the others find, and write again. `write` is told the fingerprints
        that came into the plan meanwhile.

        Raises:
            StoreError: when it may not be written there, or cannot be reached; when others extend it all the time.
        """
        self._check_place()
        with self.objects.alone():
            self._have_anew()
            there = self._in_plan()
            write(frozenset())
            try:
                self._push()
            except TakenError:
                self._have_anew()
                write(self._in_plan() - there)
                self.push()

    def _in_plan(self) -> frozenset[str]:
        is_there = (self.path / "study.json").exists()
        return frozenset(entry["fingerprint"] for entry in self.study()["plan"]) if is_there else frozenset()

    def _check_place(self) -> None:
        try:
            self.objects.check()
        except AddressError as error:
            raise StoreError(f"--out {error}") from None

    def _have_anew(self) -> None:
        self.objects.forget_unpushed()
        self.refresh()

    def push(self) -> None:
        """Of a study on an object store, write there what was written into the mirror beside the runs.

        Raises:
            StoreError: when it may not be written, or cannot be reached; when a study was begun or extended there meanwhile.
        """
        try:
            self._push()
        except TakenError as error:
            raise StoreError(f"{self.address}: {error}; run the same command again") from None

    def _push(self) -> None:
        if self.objects is None:
            return
        with _reached(self.address, "written"):
            self.objects.push()

    def planned(self) -> Iterator[tuple[dict[str, Any], RunFolder]]:
        """The plan's entries (cell, arm, seed, fingerprint, …) with their folders; read once as long as it stays as it is."""
        stamp = stamp_of(self.path / "study.json")
        if self._planned is None or self._planned[0] != stamp:
            self._planned = stamp, [(entry, self.run(entry["fingerprint"])) for entry in self.study()["plan"]]
        return iter(self._planned[1])

    def find(self, name: str) -> RunFolder:
        """The run whose fingerprint starts with `name`, or that is called `cell/arm/seed`.

        Raises:
            StoreError: when none or several are meant, listing some that exist.
        """
        entries = self.study()["plan"]
        labels = {f"{e['cell']}/{e['arm']}/{e['seed']}": e["fingerprint"] for e in entries}
        hits = {f for f in labels.values() if name and f.startswith(name)} | (
            {labels[name]} if name in labels else set()
        )
        if len(hits) == 1:
            return self.run(hits.pop())
        some = ", ".join(list(labels)[:4])
        raise StoreError(
            f"{name!r} names {len(hits)} runs of {self.path}; take a fingerprint or cell/arm/seed, such as {some}"
        )

    def connect(self) -> Any:
        """A DuckDB connection with a table and a view: `runs` (cell, arm, seed, fingerprint, n_parameters) and `rows` (every
        measurement with the run's cell, arm and seed). Finished runs are read from their Parquet cache, and of it what a query
        asks for."""
        return connected(list(self.planned()))


def of_pack(path: Path) -> str:
    """What to do with a pack that was named where a study's folder is wanted; empty for what is none."""
    is_pack = path.suffix == ".parquet" and path.is_file()
    return f"{path}: is a pack; first `gatelab unpack {shlex.quote(str(path))} --out DIR`" if is_pack else ""


def is_fingerprint(name: object) -> bool:
    """Whether this may name a run, and so a folder inside a study's; not whether there is one."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w-]*", name) is not None


def _is_half_study(path: Path) -> bool:
    return path.name.startswith(".study.json.") and path.name.endswith(".tmp")


@contextmanager
def _reached(address: str, what: str) -> Iterator[None]:
    """What an object store answers, as a StoreError."""
    try:
        with reached(address, what):
            yield
    except AddressError as error:
        raise StoreError(str(error)) from None
