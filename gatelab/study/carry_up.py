"""Runs of an object store are carried out in a scratch folder; what must survive is carried up, under names of the attempt.

A save is the files that changed, and then one object that says which files the run has. The next attempt begins with the last
save, as far as its checkpoint. Every checkpoint is saved as soon as it is there; in between only what tells how the run stands.
A worker that has been displaced writes where nobody looks any more. The result is created once, after its files.
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from ..mirror import Mirror, is_file_of_a_run
from ..objects import address_of
from ..store import RunFolder, StudyFolder, read_json, write_json
from ..train.checkpoint_folder import FOLDER, INDEX
from .checkpoints import WEIGHTS
from .executor import Task
from .grouping import stands_at
from .ledger import Attempt
from .place import patiently

LOOK_S, NOTE_S = 1.0, 15.0
_NOTES = ("progress.json", "log.txt", "environment.json")
_APPENDED = (".jsonl", ".txt")
_AT_ONCE = 8
_Stamp = tuple[int, int, int]


def scratch_of(owner: str) -> Path:
    """Where a task's runs are carried out; whoever started its worker removes it (`gang.clear`)."""
    return Path(tempfile.gettempdir()) / f"gatelab-{owner}-scratch"


def study_of(task: Task) -> StudyFolder:
    """A task's study: its folder, or of an object store a scratch folder of this task's own."""
    address = address_of(task.folder)
    if address is None:
        return StudyFolder(Path(task.folder))
    scratch = scratch_of(task.owner)
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    return StudyFolder.at(address, scratch)


def carriers(held: list[tuple[RunFolder, Attempt]]) -> list["Carrier"]:
    """One for each run that lives on an object store."""
    return [Carrier(run, run.objects, attempt.number) for run, attempt in held if run.objects is not None]


@contextmanager
def carrying(of: list["Carrier"]) -> Iterator[None]:
    """Fetch what was saved of runs, carry up what is written while the block lasts, and in the end all of it.

    Raises:
        PlaceError: when the store does not give the beginning, or take the end; then what was done is not.
    """
    if not of:
        yield
        return
    _each(lambda carrier: patiently(carrier.run, carrier.fetch), of)
    is_over = threading.Event()
    thread = threading.Thread(target=_follow, args=(of, is_over), daemon=True, name="carry")
    thread.start()

    def finish() -> None:
        is_over.set()
        thread.join()
        _each(Carrier.finish, of)

    try:
        yield
    except BaseException:
        try:
            finish()
        except OSError as error:  # what ended the block is the news
            print(f"not carried up: {error}", flush=True)
        raise
    finish()


def _each(do: Callable[["Carrier"], None], of: list["Carrier"]) -> None:
    """Several at once; the first that fails is raised when all have ended."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(do, of))


def _follow(of: list["Carrier"], is_over: threading.Event) -> None:
    while not is_over.wait(LOOK_S):
        for carrier in of:
            try:
                carrier.look()
            except Exception as error:  # whatever it is, the other runs and the next look go on
                print(f"{carrier.run.fingerprint}: not carried up, and tried again: {error}", flush=True)


class Carrier:
    """Brings one attempt's files to the store and the last one's from there."""

    def __init__(self, run: RunFolder, objects: Mirror, number: int):
        self.run, self._objects, self._number = run, objects, number
        # A try has a number of its own: one whose answer was lost may have been read, and a number's files never change.
        self._name, self._n, self._published = objects.name_of(run.path), 0, 0
        self._kept: set[str] = set()  # the objects of the last save
        self._lock = threading.Lock()  # a gang that fails ends its attempt while another thread follows it
        # What the last save says: each file with the save that brought it, and what it was like here.
        self._files: dict[str, tuple[str, _Stamp]] = {}
        self._step: int | None = None
        self._is_over = False
        self._saved_at = time.monotonic()

    def fetch(self) -> None:
        """What the last save has, and the weights that the run starts from."""
        _try_again(lambda: self._fetch(self._name, lambda name: True))
        source = self.run.config().get("init_from")
        if source is not None:
            _try_again(lambda: self._fetch(f"runs/{source}", lambda name: name == WEIGHTS))

    def look(self) -> None:
        """Save all when a checkpoint is new, and now and then what tells how the run stands."""
        stamps = _stamps(self.run.path)
        if any(_is_of_checkpoint(n) and s != self._files.get(n, ("", None))[1] for n, s in stamps.items()):
            self.save()
        elif time.monotonic() - self._saved_at > NOTE_S:
            # The first save of an attempt is whole: the next one is to find a checkpoint in it.
            self.save(_NOTES if self._published else None)

    def save(self, only: tuple[str, ...] | None = None) -> None:
        """Carry up what changed, `only` some of it, and say so; nothing once the result is there, which names its save."""
        with self._lock:
            if not self._is_over:
                _try_again(lambda: self._save(only))

    def finish(self) -> None:
        """All that is there, and the result if it is there.

        Raises:
            PlaceError: when the store does not take it for a long time.
        """
        done = self.run.path / "done.json"
        try:
            patiently(self.run, self.save)
            if done.exists():
                patiently(self.run, self._publish)
        except OSError:
            done.unlink(missing_ok=True)
            raise

    def _fetch(self, run: str, wants: Callable[[str], bool]) -> None:
        newest = self._objects.newest(run)
        if newest is None:
            return
        self._objects.download(f"{run}/saved/{newest}.json", self._objects.path / run / "saved.json")
        files = self._objects.saved(run).get("files", {})
        for name, save in sorted(files.items(), key=lambda item: item[0] == "log.txt"):
            path = self._objects.path / run / name
            if name == "log.txt" and wants(name):  # this process writes to it already
                with open(path, "ab") as log:
                    log.write(self._objects.read(f"{run}/saved/{save}/{name}"))
            elif wants(name):
                self._objects.download(f"{run}/saved/{save}/{name}", path)
        (self._objects.path / run / "saved.json").unlink()

    def _save(self, only: tuple[str, ...] | None) -> None:
        root = self.run.path
        stamps = _stamps(root)
        has_checkpoint = any(map(_is_of_checkpoint, stamps))
        files = {n: f for n, f in self._files.items() if n in stamps or (_is_of_checkpoint(n) and not has_checkpoint)}
        changed = [n for n, s in stamps.items() if s != files.get(n, ("", None))[1] and (only is None or n in only)]
        if not changed:
            self._saved_at = time.monotonic()
            return
        self._n += 1
        save = f"{self._number:04d}-{self._n:06d}"
        with tempfile.TemporaryDirectory(prefix=".carry-", dir=root) as place:
            taken = {}
            # Rows after checkpoints, which say how many rows there were.
            for i, name in enumerate(sorted(changed, key=lambda n: n.endswith(_APPENDED))):
                taken[name] = Path(place) / str(i)
                files[name] = save, _take(root / name, taken[name])
            self._step = stands_at(RunFolder(root)) if has_checkpoint else self._step
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda n: self._objects.upload(taken[n], f"{self._name}/saved/{save}/{n}"), taken))
        content = {"files": {n: s for n, (s, _) in files.items()}, "step": self._step}
        write_json(root / ".save.json", content, is_kept=False)
        self._objects.upload(root / ".save.json", f"{self._name}/saved/{save}.json")
        kept = {f"{self._name}/saved/{s}/{n}" for n, (s, _) in files.items()} | {f"{self._name}/saved/{save}.json"}
        gone, has_failed = self._kept - kept, self._n > self._published + 1
        self._published, self._files, self._kept, self._saved_at = self._n, files, kept, time.monotonic()
        if has_failed:
            with suppress(OSError):
                gone = self._of_this_attempt() - kept
        self._objects.delete(gone)

    def _publish(self) -> None:
        """Create the result: whoever of two was first has it, and the other's is equal. Then nothing else is needed."""
        with self._lock:
            # From here on: it names the last save, and may be there though its answer was lost.
            self._is_over = True
        done = self.run.path / "done.json"
        value = read_json(done) | {"saved": f"{self._number:04d}-{self._published:06d}"}
        kept = {f"{self._name}/saved/{s}/{n}" for n, (s, _) in self._files.items() if not _is_of_checkpoint(n)}
        kept.add(f"{self._name}/saved/{value['saved']}.json")
        there = set(self._objects.names(f"{self._name}/saved"))
        is_ours = self._objects.create(done, "", value)
        if is_ours:
            self._objects.delete(there - kept)
        else:
            self._objects.delete(self._of_this_attempt())

    def _of_this_attempt(self) -> set[str]:
        """What its saves brought, and tries of them that failed."""
        prefix = f"{self._name}/saved/{self._number:04d}-"
        return {n for n in self._objects.names(f"{self._name}/saved") if n.startswith(prefix)}


def _stamps(run: Path) -> dict[str, _Stamp]:
    """The files of a run that are carried, by name; of checkpoints of several processes those that are whole."""
    found: dict[str, _Stamp] = {}
    for folder, folders, files in os.walk(run):
        folders[:] = [f for f in folders if not f.startswith(".")]
        place = Path(folder)
        if place.parent.name == FOLDER and INDEX not in files:
            continue
        for name in ((place / f).relative_to(run).as_posix() for f in files):
            if is_file_of_a_run(name) and not (run / name).is_symlink():
                with suppress(FileNotFoundError):
                    found[name] = _stamp(run / name)
    return found


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _take(path: Path, to: Path) -> _Stamp:
    """What a file is now, whatever becomes of it: those that are written whole are replaced, others are appended to."""
    stamp = _stamp(path)
    if not path.name.endswith(_APPENDED):
        with suppress(OSError):
            os.link(path, to)
            return _stamp(to)
    shutil.copyfile(path, to)
    return stamp


def _is_of_checkpoint(name: str) -> bool:
    """Whether a file is removed when a run is done: until the store says so it is still needed there."""
    return name.startswith("checkpoint")


def _try_again(do: Callable[[], None]) -> None:
    """What is being read may be replaced meanwhile."""
    for _ in range(5):
        with suppress(FileNotFoundError):
            do()
            return
    do()
