"""A study on an object store: what its objects are called, and the folder that mirrors what is read of them.

    ADDRESS/study.json …                             as in a folder (store/), as the study was begun
            plans/0002.json …                        its plan as it was extended, each created once; the last one stands
            runs/<fingerprint>/run.json
                               attempts/0001.json    an attempt at the run, created once
                                        0001.beat    written anew by its owner for as long as it lives
                               saved/0001-000003/…   the files that the third save of attempt 1 brought
                               saved/0001-000003.json  which files the run has as of it; written after them
                               done.json             created once, last of all; names the save that is the result

All but the ledger is written under names of its attempt, which no other attempt has. Whoever reads has a folder like any study's,
with what there was when it was last refreshed.
"""

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .objects import INDEX, Objects, appearing, is_name, since_boot_s

_LEDGER = re.compile(r"[^/]+\.jsonl?|runs/[^/]+/(run\.json|done\.json|attempts/\d+\.json)")
_SAVE = re.compile(r"(runs/[^/]+)/saved/(\d{4,}-\d{6,})\.json")
_OF_SAVES = re.compile(r"(runs/[^/]+)/saved/.+")
# What a plan writes beside the runs.
_OF_A_PLAN = ("study.json", "screen.json")
_NUMBER = re.compile(r"\d{4,}-\d{6,}", re.ASCII)
_PLAN = re.compile(r"plans/(\d{4,})\.json", re.ASCII)
# Files of a run that tell how it stands.
LIGHT: Callable[[str], bool] = {"progress.json", "environment.json"}.__contains__
# What is also written here without the index (`look`, `create`).
_SEEN = ("attempts/*.json", "done.json", "saved.json")
BEAT_S = 10.0
_LOOK_S, _PAUSE_S = 5.0, 1.0
_AT_ONCE, _TRIES = 16, 3


class TakenError(Exception):
    """Somebody has begun a study at an address where none was when it was last refreshed, or extended the plan that was there."""


class Mirror(Objects):
    """The objects below an address, and the folder `path` that mirrors them. It is a `Place` of the ledger (study/place.py), whose
    paths are those of the mirror."""

    def __init__(self, address: str, path: Path):
        super().__init__(address)
        self.path = path
        self._beats: dict[str, float] = {}
        self._beaten: dict[str, tuple[float, float]] = {}
        self._refreshed, self._pause = -math.inf, 0.0
        self._left: dict[str, list[str]] = {}

    # What the ledger asks of a place.

    def look(self, run: Path) -> None:
        """Bring what others have written of a run's ledger."""
        name = self.name_of(run)
        there = {n: i for n, i in self.names(name).items() if n.startswith(name + "/")}
        wanted = {n: n for n in there if _LEDGER.fullmatch(n)}
        newest = newest_saves(there).get(name)
        if newest is not None:
            wanted[f"{name}/saved.json"] = f"{name}/saved/{newest}.json"
        self._fetch({local: (distant, None) for local, distant in wanted.items()}, {})

    def create(self, path: Path, owner: str, value: Any) -> bool:
        """Create an object, whole or not at all; False when there is one. A put whose answer was lost on the way and that was sent
        again finds its own."""
        data = _as_json(value)
        if self._created(self.name_of(path), data, _TRIES) != data:
            return False
        _write(path, data)
        return True

    def replace(self, path: Path, value: Any) -> None:
        """Write an object that this process may write."""
        data = _as_json(value)
        self.put(self.name_of(path), data)
        _write(path, data)

    def beat(self, path: Path, following: Path) -> bool:
        """Show that an attempt's owner lives; False when there is a following one."""
        name = self.name_of(path)
        if since_boot_s() - self._beats.get(name, -math.inf) < BEAT_S:
            return True
        if self.exists(self.name_of(following)):
            return False
        self.put(_beat_of(name), b"")
        self._beats[name] = since_boot_s()
        return True

    def beaten(self, path: Path) -> float:
        """When an attempt's owner beat last, or began, by the store's clock."""
        name = self.name_of(path)
        at, found = self._beaten.get(name, (-math.inf, 0.0))
        if since_boot_s() - at > _LOOK_S:
            try:
                found = self.modified(_beat_of(name))
            except FileNotFoundError:
                found = self.modified(name)
            self._beaten[name] = since_boot_s(), found
        return found

    def age_s(self, path: Path) -> float:
        """Seconds since then; infinity when the attempt is gone."""
        try:
            return self.now() - self.beaten(path)
        except FileNotFoundError:
            return math.inf

    def name_of(self, path: Path) -> str:
        """The name of what a path of the mirror mirrors."""
        return path.relative_to(self.path).as_posix()

    def refresh(self, wants: Callable[[str], bool] | None = LIGHT, *, is_due: bool = True) -> None:
        """Let the mirror have what changed: everything of the ledger, and of runs' files those that are wanted; None wants all but
        checkpoints and weights. Without `is_due` nothing happens soon after the last time."""
        started = time.monotonic()
        if not is_due and started - self._refreshed < self._pause:
            return
        if self._refreshed < 0:  # before there is a mirror of what is not there
            self.reach()
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            try:
                for _ in range(_TRIES):  # a run's owner may remove what it has replaced while it is being read
                    if self._refresh(wants or _is_no_weight):
                        break
            except OSError:
                if is_new and not (self.path / INDEX).exists():
                    shutil.rmtree(self.path, ignore_errors=True)
                raise
        self._refreshed = time.monotonic()
        self._pause = _LOOK_S + 10 * (self._refreshed - started)

    def _refresh(self, wants: Callable[[str], bool]) -> bool:
        """Whether all that is wanted was there."""
        # Before the store is asked: what this machine's processes write meanwhile is there.
        seen = {self.name_of(p) for pattern in _SEEN for p in self.path.glob(f"runs/*/{pattern}")}
        index, there = self._index(), self.names()
        ledger = {n: (n, identity) for n, identity in there.items() if _LEDGER.fullmatch(n)}
        if "study.json" in ledger and (plan := max(there, key=_number_of)) and _number_of(plan):
            ledger["study.json"] = (plan, plan)
        index |= self._fetch(ledger, index)
        done = {run: save for run in newest_saves(there) if (save := self._done_save(run))}
        saves = newest_saves(there) | done
        lists = {f"{run}/saved.json": (f"{run}/saved/{save}.json", save) for run, save in saves.items()}
        index |= self._fetch(lists, index)
        files = {
            f"{run}/{name}": (f"{run}/saved/{save}/{name}", save)
            for run in saves
            for name, save in self.saved(run).get("files", {}).items()
        }
        wanted = {n: v for n, v in files.items() if wants(n.split("/", 2)[2])}
        index |= self._fetch(wanted, index)
        for name in (index.keys() | seen) - ledger.keys() - lists.keys() - files.keys():
            index.pop(name, None)
            (self.path / name).unlink(missing_ok=True)
        self._keep(index)
        used = {distant for distant, _ in (*lists.values(), *files.values())}
        # Of runs that are done, and whose result has been read.
        self._left = {run: [] for run, save in done.items() if index.get(f"{run}/saved.json", [""])[0] == save}
        for name in there.keys() - used:
            if (match := _OF_SAVES.fullmatch(name)) and match[1] in self._left:
                self._left[match[1]].append(name)
        return all(self._has(index, n, v) for n, v in (lists | wanted).items())

    def forget_unpushed(self) -> None:
        """Remove the plan and the configurations that a `push` was to write and did not: the next `refresh` has what is there."""
        if not self.path.is_dir():
            return
        with self._locked():
            index = self._index()
            for path in (*(self.path / name for name in _OF_A_PLAN), *self.path.glob("runs/*/run.json")):
                if path.exists() and index.get(self.name_of(path), ["", ""])[1] != _digest(path.read_bytes()):
                    path.unlink()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Of this machine's processes one at a time: they write what they plan into one mirror."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked(".plan.lock"):
            yield

    def push(self) -> None:
        """Write the study's own files and runs' configurations, where they are others than they were when they were read.

        Raises:
            TakenError: when there was no study, and now there is another than this; when its plan is another than was read.
        """
        with self._locked():
            index = self._index()
            files = [*self.path.glob("*.json"), *self.path.glob("*.jsonl"), *self.path.glob("runs/*/run.json")]
            ours = {self.name_of(f): f.read_bytes() for f in sorted(files) if not f.name.startswith(".")}
            changed = {n: data for n, data in ours.items() if index.get(n, ["", ""])[1] != _digest(data)}
            first = [n for n in changed if n == "study.json"]  # it tells the address from a stranger's
            number = (_number_of(index["study.json"][0]) or 1) + 1 if "study.json" in index else 1
            plan = f"plans/{number:04d}.json" if number > 1 else "study.json"
            for n in first:
                if self._created(plan, changed[n], _TRIES) != changed[n]:
                    what = "its plan was extended" if number > 1 else "a study was begun"
                    raise TakenError(f"{what} there just now")
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda n: self.put(n, changed[n]), changed.keys() - first))
            index |= {n: [plan if n in first else "", _digest(data)] for n, data in changed.items()}
            self._keep(index)

    def newest(self, run: str) -> str | None:
        """The save of a run that counts, as the store has it now: its result's, or the last one."""
        names = self.names(run)
        named = _named_save(self.read(f"{run}/done.json")) if f"{run}/done.json" in names else None
        return named or newest_saves(names).get(run)

    def saved(self, run: str) -> dict[str, Any]:
        """What saved.json of a run's mirror says: `files`, each with the save that brought it, and the `step` of its checkpoint."""
        with suppress(OSError, ValueError):
            return checked_save(json.loads((self.path / run / "saved.json").read_bytes()))
        return {}

    def sweep(self, run: Path) -> None:
        """Remove what the saves of a run that is done left behind, as of the last `refresh`."""
        self.delete(self._left.pop(self.name_of(run), []))

    def _created(self, name: str, data: bytes, tries: int) -> bytes:
        """What an object is, when it has been created or was there."""
        try:
            self._pipe(name, data, mode="create")
            return data
        except OSError as error:
            with suppress(FileNotFoundError):
                return self.read(name)
            if tries == 1 or isinstance(error, (PermissionError, FileNotFoundError)):
                raise
            time.sleep(_PAUSE_S)  # of two at once a store may refuse both
            return self._created(name, data, tries - 1)

    def _done_save(self, run: str) -> str | None:
        with suppress(OSError):
            return _named_save((self.path / run / "done.json").read_bytes())
        return None

    def _has(self, index: Mapping[str, list[str]], name: str, wanted: tuple[str, str | None]) -> bool:
        return index.get(name, [""])[0] == wanted[1] and (self.path / name).exists()

    def _fetch(
        self, wanted: Mapping[str, tuple[str, str | None]], index: Mapping[str, list[str]]
    ) -> dict[str, list[str | None]]:
        """Bring objects into the mirror that it has not: by path, their names and what changes with them; returns what the index
        keeps of those that are there."""
        wanted = {n: v for n, v in wanted.items() if not self._has(index, n, v)}

        def fetch(item: tuple[str, tuple[str, str | None]]) -> tuple[str, list[str | None]] | None:
            local, (distant, identity) = item
            path = self.path / local
            try:
                if local.endswith(".safetensors"):
                    self.download(distant, path)
                    return local, [identity, ""]
                data = self.read(distant)
            except FileNotFoundError:
                return None
            _write(path, data)
            return local, [identity, _digest(data)]

        if not wanted:
            return {}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(found for found in pool.map(fetch, wanted.items()) if found is not None)

    def _index(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, KeyError):
            return json.loads((self.path / INDEX).read_bytes())["have"]
        return {}

    def _keep(self, index: Mapping[str, Any]) -> None:
        _write(self.path / INDEX, _as_json({"address": self.address, "have": index}))

    @contextmanager
    def _locked(self, name: str = ".objects.lock") -> Iterator[None]:
        """For other processes of this machine, whose older reading must not come over a newer one."""
        import fcntl  # not every system that reads studies has it

        with open(self.path / name, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _named_save(done: bytes) -> str | None:
    """The save that a result names."""
    with suppress(ValueError, AttributeError):
        found = str(json.loads(done).get("saved"))
        return found if _NUMBER.fullmatch(found) else None
    return None


def _number_of(name: str) -> int:
    """Of a plan that extends a study; 0 of any other object."""
    match = _PLAN.fullmatch(name)
    return int(match[1]) if match else 0


def newest_saves(names: Collection[str]) -> dict[str, str]:
    """Of each run the last save of the last attempt that has one."""
    found: dict[str, str] = {}
    for run, save in (match.groups() for n in names if (match := _SAVE.fullmatch(n))):
        found[run] = max(save, found.get(run, ""), key=lambda s: [int(n) for n in s.split("-")] if s else [])
    return found


def checked_save(value: Any) -> dict[str, Any]:
    """What a save says, of which only names are left that are files of a run.

    Raises:
        ValueError: when it is none.
    """
    if not isinstance(value, dict) or not isinstance(value.get("files"), dict):
        raise ValueError("no save of a run")
    files = {n: s for n, s in value["files"].items() if is_file_of_a_run(n) and _NUMBER.fullmatch(str(s))}
    return {"files": files, "step": value["step"] if isinstance(value.get("step"), int) else None}


def _is_no_weight(name: str) -> bool:
    return not (name.startswith("checkpoint") or name == "weights.safetensors")


def is_file_of_a_run(name: str) -> bool:
    """Whether a save may hold it: the ledger's own files come another way."""
    first = name.partition("/")[0]
    return is_name(name) and first not in ("attempts", "saved", "saved.json", "done.json", "run.json", "rows.parquet")


def _write(path: Path, data: bytes) -> None:
    with appearing(path) as half:
        half.write_bytes(data)


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _beat_of(name: str) -> str:
    return f"{name.removesuffix('.json')}.beat"
