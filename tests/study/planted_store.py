"""An object store on this machine's disk, for many processes: no folders, links or renames to its users, and the put on condition.

Processes find it as they find s3fs: by an entry point, of a distribution that `plant` makes in a folder of PYTHONPATH.
"""

import errno
import os
import re
import uuid
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

HERE = Path(__file__).parent
_METADATA = "Metadata-Version: 2.1\nName: planted-store\nVersion: 1.0\n"


class PlantedStore(LocalFileSystem):
    """planted://BUCKET/KEY is a file of the folder PLANTED_ROOT; a bucket is there or not. With PLANTED_FAULT
    `careless` it heeds no condition, with `closed` nobody may write. What `lost` matches is written once without an answer."""

    protocol = "planted"
    root = property(lambda _: Path(os.environ["PLANTED_ROOT"]))
    lost: ClassVar[list[str]] = []  # of this process: patterns, each for one answer

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if not str(path).startswith("planted://"):
            return path.rstrip("/")
        return f"{os.environ['PLANTED_ROOT']}/{path.removeprefix('planted://')}".rstrip("/")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
        path = self._strip_protocol(path)
        fault = os.environ.get("PLANTED_FAULT", "")
        if fault == "closed" or (Path(os.environ["SIGNALS"]) / "expired").exists():
            raise PermissionError("Access Denied")
        if (Path(os.environ["SIGNALS"]) / "down").exists():
            raise OSError(errno.EIO, "the store is down")
        if not (self.root / Path(path).relative_to(self.root).parts[0]).is_dir():
            raise FileNotFoundError("The specified bucket does not exist")
        half = self.root / ".server" / uuid.uuid4().hex
        half.parent.mkdir(exist_ok=True)
        half.write_bytes(value)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if mode == "create" and fault != "careless":
            os.link(half, path)  # raises where there is one
            half.unlink()
        else:
            os.replace(half, path)
        for pattern in [p for p in self.lost if re.search(p, path)]:
            self.lost.remove(pattern)
            raise OSError(errno.EIO, "the answer was lost")

    def put_file(self, lpath: str, rpath: str, callback: object = None, mode: str = "overwrite", **_: object) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes(), mode)

    def mv(self, *_: object, **__: object) -> None:
        raise AssertionError("an object store has no renames")

    link = symlink = touch = mv


def plant(place: Path) -> dict[str, str]:
    """Make a store with the bucket `bucket`; returns the environment in which processes find it."""
    told = place / "site" / "planted_store-1.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text(_METADATA)
    (told / "entry_points.txt").write_text("[fsspec.specs]\nplanted = planted_store:PlantedStore\n")
    (place / "store" / "bucket").mkdir(parents=True)
    (place / "signals").mkdir()
    fsspec.register_implementation("planted", PlantedStore, clobber=True)
    return {
        "PYTHONPATH": f"{told.parent}{os.pathsep}{HERE}",
        "PLANTED_ROOT": str(place / "store"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "SIGNALS": str(place / "signals"),
    }
