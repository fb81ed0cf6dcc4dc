"""Whether a model's weights alone are more than this machine has memory for, before anything is started.

Notable: refused is only what is sure to fail. What a run takes beside its weights is `gatelab plan`'s to estimate, and what another
machine has is not known here.
"""

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ..config import ConfigError, Execution
from ..objects import address_of
from ..store import StudyFolder
from ..study.local import devices_for
from ..study.plan import Planned

# Bytes of float32 weights below which nobody is asked: no GPU that trains has as little.
_SMALL = 2**31


def check_room(
    planned: Sequence[Planned],
    execution: Execution,
    out: str | Path,
    *,
    host_bytes: Callable[[], int] | None = None,
    gpu_bytes: Callable[[], int] | None = None,
) -> None:
    """Of the runs of a plan that are not done in the study's folder `out`. An address is not asked which are, so there nothing is
    refused before it has a plan.

    Args:
        host_bytes, gpu_bytes: of this machine's memory, and of its largest GPU (0: not known); asked of it unless given.

    Raises:
        ConfigError: weights that cannot be held, the largest of each cell and arm.
    """
    if address_of(out) is not None:
        return
    runs = Path(out) / "runs"
    left = {(p.cell, p.arm): p.n_parameters for p in planned if not (runs / p.fingerprint / "done.json").exists()}
    _refuse(left, execution, host_bytes, gpu_bytes)


def check_room_left(folder: StudyFolder, execution: Execution, *, host_bytes: Callable[[], int] | None = None) -> None:
    """As `check_room`, of what is planned in a study's folder and not done."""
    entries = [entry for entry, run in folder.planned() if not (run.path / "done.json").exists()]
    left = {(entry["cell"], entry["arm"]): entry.get("n_parameters", 0) for entry in entries}
    _refuse(left, execution, host_bytes, None)


def _refuse(
    left: dict[tuple[str, str], int],
    execution: Execution,
    host_bytes: Callable[[], int] | None,
    gpu_bytes: Callable[[], int] | None,
) -> None:
    large = {place: n for place, n in left.items() if 4 * n > _SMALL}
    if not large:
        return
    what = "memory"
    if devices_for(execution):
        parallel = execution.parallel
        n = execution.processes if parallel.shard != "none" or parallel.tp > 1 or parallel.ep > 1 else 1
        room, where = n * (gpu_bytes or _largest_gpu)(), "this machine's GPU has" if n == 1 else f"its {n} GPUs have"
    else:
        room, where, what = (host_bytes or _host)(), "this machine has", "memory and swap"
    wrong = [
        f"{cell} / {arm}: {n_weights:,} parameters are {4 * n_weights / 1e9:,.1f} GB of float32 weights alone, and {where} "
        f"{room / 1e9:,.1f} GB of {what}; take a smaller model (`gatelab sizes` lists some), or another machine (`gatelab plan` "
        "says what it needs)"
        for (cell, arm), n_weights in large.items()
        if room and 4 * n_weights > room
    ]
    if wrong:
        raise ConfigError(wrong)


def _host() -> int:
    """Memory, and swap where the system tells it."""
    swap = 0
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        swap = 1024 * int(next(line for line in lines if line.startswith("SwapTotal:")).split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + swap


def _largest_gpu() -> int:
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.TimeoutExpired):
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
        return max(int(line) for line in said.stdout.splitlines()) * 2**20
    return 0
