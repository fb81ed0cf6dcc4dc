"""What cannot be written where `--out` points, told with what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..store import StoreError


@contextmanager
def written_to(out: str | Path) -> Iterator[None]:
    """Around what writes there.

    Raises:
        StoreError: it cannot be written. A full disk stays what it is, which the command line has words for.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(f"--out {out}: cannot be written ({error.strerror or error}); give another --out") from None
