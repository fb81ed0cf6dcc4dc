"""Which version of the code runs: a short hash of its own files, by which machines without a checkout tell versions apart."""

from functools import cache
from hashlib import sha256
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
# What comes after a run: nothing that trains or measures may import them (tests/test_layers.py), so they change no row.
AFTER = ("analysis", "report", "catalogue", "bench", "lab", "terminal", "cli", "studies")


@cache
def code_hash() -> str:
    """Twelve hexadecimal digits of the Python files that can change a run; read once a process."""
    return hash_of(_PACKAGE)


def hash_of(package: Path) -> str:
    """Of the Python files under a folder, by their paths and bytes, without those of `AFTER`."""
    digest = sha256()
    for path in sorted(package.rglob("*.py"), key=lambda p: p.relative_to(package).parts):
        inside = path.relative_to(package)
        if inside.with_suffix("").parts[0] not in AFTER:
            content = path.read_bytes()
            digest.update(f"{inside.as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:12]
