"""Where studies lie: folders as `gatelab run` writes them, packs and archives of such folders, and folders that hold either."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..analysis import packed
from ..objects import address_of
from ..store import StoreError, StudyFolder

ARCHIVES = (packed.SUFFIX, ".tar.xz", ".tar.gz", ".tgz")
# Bytes of an archive's files together: fifty times those of the largest study here, and less than most disks have.
_MOST = 8 * 2**30


@dataclass(frozen=True, slots=True)
class Source:
    """A study's folder, or a pack or an archive of one; `home` is the folder in which its page lies, if it has one."""

    path: Path

    @property
    def is_archive(self) -> bool:
        """Whether it has to be unpacked."""
        return self.path.is_file()

    @property
    def home(self) -> Path:
        """Beside an archive, in a folder."""
        return self.path.parent if self.is_archive else self.path


def sources_in(paths: Sequence[str | Path]) -> list[Source]:
    """The studies that the paths name: each is a study's folder, an archive, or a folder of such, one level down.

    Raises:
        StoreError: a path that is not there or holds no study; a study that is named twice.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for path in (StudyFolder.open(p).path if address_of(p) else Path(p) for p in paths):
        held = _held(path)
        if not held:
            raise StoreError(
                f"{path}: holds no study (no study.json), and neither a folder nor an archive ({', '.join(ARCHIVES)}) of one;"
                " name what `gatelab run` wrote to"
            )
        for source in held:
            there = found.setdefault(source.resolve(), (source, path))
            if there[1] is not path:
                raise StoreError(f"{source}: is named twice, by {there[1]} and by {path}; name each study once")
    return [Source(source) for source, _ in found.values()]


def _held(path: Path) -> list[Path]:
    if not path.exists():
        raise StoreError(f"{path}: no such folder or archive; `gatelab run STUDY --out {path}` makes a folder")
    if path.is_file():
        return [path] if _is_archive(path) else []
    if (path / "study.json").is_file():
        return [path]
    out = _archives_in(path)
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        own = _archives_in(folder)
        out += [folder] if (folder / "study.json").is_file() else own
    return out


def _is_archive(path: Path) -> bool:
    return path.name.endswith(ARCHIVES)


def _archives_in(folder: Path) -> list[Path]:
    """In their order; other tables may lie beside a pack."""
    found = [p for p in sorted(folder.iterdir()) if p.is_file() and _is_archive(p)]
    return [p for p in found if p.suffix != packed.SUFFIX or not packed.is_other(p)]


@contextmanager
def opened(source: Source) -> Iterator[StudyFolder]:
    """The study's folder: of an archive a copy that is gone when the block is left.

    Raises:
        StoreError: an archive that is cut, holds no study, or what leaves it; a folder that holds none, or one of another
            version. It names the source and not the copy.
    """
    if not source.is_archive:
        yield StudyFolder.open(source.path)
        return
    with TemporaryDirectory(prefix="gatelab-study-") as place:
        try:
            made = (_unpacked if source.path.suffix == packed.SUFFIX else _unarchived)(source.path, Path(place))
            folder = StudyFolder.open(made)
            folder.archive = source.path
            yield folder
        except StoreError as error:
            text = str(error)
            for folder in [*(s.parent for s in Path(place).glob("**/study.json")), Path(place)]:
                text = text.replace(str(folder), str(source.path))
            raise StoreError(text) from None


@contextmanager
def reading(path: str | Path) -> Iterator[StudyFolder]:
    """The one study at a path, to be read: a study's folder or address, a pack or an archive of one, or a folder that holds one of
    these.

    Raises:
        StoreError: no study, several of them, or one that cannot be read.
    """
    if address_of(path) is not None or not Path(path).exists() or (Path(path) / "study.json").exists():
        yield StudyFolder.open(path)
        return
    found = sources_in([path])
    if len(found) > 1:
        some = ", ".join(str(s.path) for s in found[:3]) + (", …" if len(found) > 3 else "")
        raise StoreError(f"{path}: holds {len(found)} studies; name one of them ({some})")
    with opened(found[0]) as folder:
        yield folder


def refuse_archive(folder: StudyFolder, option: str) -> None:
    """What is written into a study's folder is not written into a copy that is only read.

    Raises:
        StoreError: of one that was read from a pack or an archive.
    """
    if folder.archive is None:
        return
    made = f"runs/{folder.study()['name']}"
    how = (
        f"`gatelab unpack {folder.archive} --out {made}` makes a folder of it"
        if folder.archive.suffix == packed.SUFFIX
        else f"unpack it, as in `tar xf {folder.archive} -C runs`"
    )
    raise StoreError(f"{option}: {folder.archive} is read and not written; {how}; name that")


def _unpacked(pack: Path, place: Path) -> Path:
    try:
        return packed.unpack(pack, place)
    except OSError as error:
        raise StoreError(f"{pack}: cannot be unpacked ({error.strerror or error})") from None


def _unarchived(archive: Path, place: Path) -> Path:
    _unpack(archive, place)
    studies = sorted(p for p in place.glob("**/study.json") if p.is_file())
    if len(studies) != 1:
        raise StoreError(f"{archive}: holds {len(studies)} studies (study.json); expected an archive of one")
    return studies[0].parent


def _unpack(archive: Path, place: Path) -> None:
    room = _MOST

    def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal room
        room -= member.size
        if room < 0:
            raise StoreError(
                f"{archive}: is not unpacked, since its files have more than {_MOST:,} bytes; unpack it yourself"
            )
        return tarfile.data_filter(member, path)

    try:
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter=checked)
    except tarfile.FilterError as error:
        raise StoreError(f"{archive}: is not unpacked, since it holds what no study does ({error})") from None
    except OSError as error:  # a disk that is full, a name that this one cannot have, a checksum that is wrong
        raise StoreError(f"{archive}: cannot be unpacked ({error.strerror or error})") from None
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        why = str(error).partition("\n")[0].rstrip(":")
        raise StoreError(f"{archive}: cannot be unpacked ({why}); was it cut?") from None
