"""gatelab pack and unpack: a study's results as one Parquet file, and its folder again."""

from pathlib import Path
from typing import Literal

from .base import tell


def pack(study: Path, *, out: Path, looks: Literal["drawn", "last", "all"] = "drawn") -> int:
    """Store a study's results as one Parquet file: a row a measurement, which DuckDB, Polars and pandas open.

    `gatelab report` and `gatelab find --claims` read it as they do the folder. Runs that have not ended are in its plan alone;
    weights, logs, and where it was run are not in it.

    Parameters
    ----------
    study:
        The study's folder or address, an archive of it (.tar.xz, .tar.gz), or another pack.
    out:
        The file, which ends in .parquet; one that is there is replaced.
    looks:
        drawn: every row of a run's last step, and of each look before it those of the whole model and those that pages and cards
        draw by layer and head. last: the last step but for gate histograms, and losses. all: every row of every step.
    """
    from .. import lab

    made = lab.pack(study, out, looks, tell=tell)
    print(f"{made} ({made.stat().st_size:,} bytes)")
    return 0


def unpack(pack: Path, *, out: Path) -> int:
    """Make a study's folder of a pack, which `gatelab run` goes on with.

    Parameters
    ----------
    pack:
        A file that `gatelab pack` wrote.
    out:
        A new or empty folder.
    """
    from .. import lab

    print(lab.unpack(pack, out).path)
    return 0
