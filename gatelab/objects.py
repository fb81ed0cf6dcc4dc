"""An object store, through fsspec: objects below an address, read and written by their names.

What makes it a place for a study is the put on the condition that nothing is there: of several that create one object exactly one
succeeds. A store has no links, no renames and no folders.

Notable: its time is that of an object written just now, so that no machine's clock counts. Names that come from it are parts of
plain words and lead nowhere but below where they are put.
"""

import errno
import hashlib
import json
import math
import os
import re
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

# As in s3://bucket/x, of which Path makes s3:/bucket/x; one letter is a drive.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")
_NAME = re.compile(r"(?!.*/\.)[\w][\w.=+@ -]*(/[\w.=+@ -]+){0,7}", re.ASCII)
_IDENTITY = ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "updated", "mtime", "size")
INDEX = ".objects.json"
_FOLDERS = ("file", "local")
_CLOCK_S = 30.0
# In which a store is to give its first answer; later ones are waited for as long as its client does.
FIRST_S = 5


class AddressError(ValueError):
    """An address at which no study can live, or that cannot be reached."""


def since_boot_s() -> float:
    """Seconds of a clock that goes on while this machine is suspended, where its system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def address_of(place: str | Path) -> str | None:
    """The address that a word names, or that a folder mirrors; None of any other folder."""
    found = _ADDRESS.fullmatch(str(place))
    if found is not None:
        protocol, rest = found[1].lower(), found[2].rstrip("/")
        return f"{protocol}:///{rest}" if protocol in _FOLDERS else f"{protocol}://{rest}"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((Path(place) / INDEX).read_bytes())["address"])
    return None


def mirror_of(address: str) -> Path:
    """Where this user's machine keeps its mirror of an address; it may be removed when nobody is at it."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    words = re.sub(r"[^\w.-]+", "-", address, flags=re.ASCII)[-60:]
    return home / "gatelab" / "studies" / f"{words}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"


def is_name(name: str) -> bool:
    """Whether a name from a store may become a path below a folder."""
    return len(name) < 400 and _NAME.fullmatch(name) is not None


class Objects:
    """The objects below an address. What goes wrong with one is an OSError."""

    def __init__(self, address: str):
        self.address = address
        self._clock = (-math.inf, 0.0)  # `since_boot_s`, and the store's clock at that moment

    @cached_property
    def _store(self) -> tuple[Any, str]:
        return _opened(self.address)

    def reach(self) -> None:
        """See that there is an answer, which clients may wait for much longer.

        Raises:
            AddressError: when no store is at the address.
            OSError: when there is none soon.
        """
        from fsspec.asyn import AsyncFileSystem, sync
        from fsspec.exceptions import FSTimeoutError

        fs, root = self._store
        if not isinstance(fs, AsyncFileSystem):
            return
        with _in_words(self.address):
            try:
                sync(fs.loop, fs._info, f"{root}/study.json", timeout=FIRST_S)
            except FSTimeoutError:
                words = f"no answer within {FIRST_S} s; is the network there, and is it the right endpoint?"
                raise OSError(errno.ETIMEDOUT, words, self.address) from None
            except OSError:
                pass  # an answer, of which the next request tells more

    def names(self, under: str = "") -> dict[str, str]:
        """All names below the address that could be ours, each with what changes when its object does."""
        fs, root = self._store
        with _in_words(self.address):
            try:
                found = fs.find(f"{root}/{under}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
        below = {path.removeprefix(f"{root}/"): info for path, info in found.items() if path.startswith(f"{root}/")}
        return {n: str([info.get(key) for key in _IDENTITY]) for n, info in below.items() if is_name(n)}

    def exists(self, name: str) -> bool:
        fs, root = self._store
        with _in_words(self.address):
            return fs.exists(f"{root}/{name}")

    def read(self, name: str) -> bytes:
        fs, root = self._store
        with _in_words(self.address):
            return fs.cat_file(f"{root}/{name}")

    def put(self, name: str, data: bytes) -> None:
        self._pipe(name, data, mode="overwrite")

    def upload(self, path: Path, name: str) -> None:
        """A file that nobody writes meanwhile."""
        fs, root = self._store
        with _in_words(self.address):
            fs.put_file(str(path), f"{root}/{name}")

    def download(self, name: str, path: Path) -> None:
        """Into a file that appears when it is whole."""
        fs, root = self._store
        with appearing(path) as half, _in_words(self.address):
            fs.get_file(f"{root}/{name}", str(half))

    def modified(self, name: str) -> float:
        fs, root = self._store
        with _in_words(self.address):
            return fs.modified(f"{root}/{name}").timestamp()

    def delete(self, names: Collection[str]) -> None:
        """Remove what nobody needs; what cannot be removed stays."""
        fs, root = self._store
        for name in names:
            with suppress(OSError), _in_words(self.address):
                fs.rm_file(f"{root}/{name}")

    def now(self) -> float:
        """The store's time; ours where nothing can be written."""
        at, there = self._clock
        if since_boot_s() - at > _CLOCK_S:
            name = f".clock-{uuid.uuid4().hex}"
            has_put = False
            try:
                self.put(name, b"")
                has_put = True
                at, there = since_boot_s(), self.modified(name)
            except OSError:
                at, there = since_boot_s(), time.time()
            if has_put:
                self.delete([name])
            self._clock = at, there
        return there + since_boot_s() - at

    def check(self) -> None:
        """Whether a study may live here.

        Raises:
            AddressError: when something else does, nothing can be written, or what is created twice is created twice.
        """
        fs, root = self._store
        probe = f".probe-{uuid.uuid4().hex}"
        has_put = False
        with reached(self.address, "written"):
            try:
                self.reach()
                self._pipe(probe, b"first", mode="create")
                has_put = True
                try:
                    self._pipe(probe, b"second", mode="create")
                    is_exclusive = False
                except OSError:
                    is_exclusive = self.read(probe) == b"first"
                self.modified(probe)
                with _in_words(self.address):
                    held = [path.removeprefix(f"{root}/") for path in fs.ls(root, detail=False)]
            except FileNotFoundError:
                raise AddressError(
                    f"{self.address}: there is no such bucket; make it first, or name another address"
                ) from None
            finally:
                if has_put:
                    self.delete([probe])
        if not is_exclusive:
            raise AddressError(
                f"{self.address}: this store creates an object that is there already, so that two workers could begin one run; "
                "name one that honours If-None-Match, as Amazon S3 does, or a folder"
            )
        held = [name for name in held if not name.startswith(".")]
        if held and "study.json" not in held:
            some = ", ".join(sorted(held)[:3])
            raise AddressError(f"{self.address}: holds something else ({some}) and is left alone; name another address")

    def _pipe(self, name: str, data: bytes, *, mode: str) -> None:
        fs, root = self._store
        with _in_words(self.address):
            fs.pipe_file(f"{root}/{name}", data, mode=mode)


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path on it.

    Raises:
        AddressError: when there is none, or none that creates objects exclusively.
    """
    import fsspec
    from fsspec.asyn import AsyncFileSystem
    from fsspec.registry import known_implementations

    protocol, _, rest = address.partition("://")
    if protocol in _FOLDERS:
        raise AddressError(f"{address}: is a folder of this machine; name it as one, /{rest.lstrip('/')}")
    if "::" in address or protocol == "memory" or not rest:
        raise AddressError(f"{address}: is no place that several processes share; name s3://BUCKET/NAME, or a folder")
    try:
        kind = fsspec.get_filesystem_class(protocol)
        # What both of these do is to look and then to write.
        is_async = issubclass(kind, AsyncFileSystem)
        has_own = (
            kind._pipe_file is not AsyncFileSystem._pipe_file
            if is_async
            else kind.pipe_file is not fsspec.AbstractFileSystem.pipe_file
        )
        if has_own:
            return fsspec.url_to_fs(address, use_listings_cache=False, skip_instance_cache=True)
    except ImportError:
        package = known_implementations.get(protocol, {"class": protocol})["class"].partition(".")[0]
        raise AddressError(
            f"{address}: {protocol}:// needs the package {package}, which is not installed; pip install {package}"
        ) from None
    except Exception as error:  # what a file system of its own makes of its settings
        raise AddressError(f"{address}: cannot be used ({' '.join(str(error).split())})") from None
    raise AddressError(
        f"{address}: {kind.__name__} cannot create an object on the condition that there is none, by which it is settled whose a "
        "run is; name an object store, or mount it as a folder"
    )


@contextmanager
def _in_words(address: str) -> Iterator[None]:
    """Errors of clients, each of which has its own, as an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise OSError(errno.EIO, words, address) from error


@contextmanager
def reached(address: str, what: str) -> Iterator[None]:
    """An OSError of what is being `written` or `read` at an address, in a user's words.

    Raises:
        AddressError: for it.
    """
    try:
        yield
    except OSError as error:
        words = error.strerror or str(error)  # without the address, which stands before it
        if isinstance(error, PermissionError):
            raise AddressError(f"{address}: may not be {what} ({words}); check your credentials for it") from None
        raise AddressError(f"{address}: cannot be {what} ({words})") from None


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Where to write what is to appear at a path when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield half
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
