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
from ..study.local import devices_for
from ..study.plan import Planned

# Bytes of float32 weights below which nobody is asked: no GPU that trains has as little.
_SMALL = 2**31


def check_room(
    planned: Sequence[Planned],
    execution: Execution,
    runs: Path,
    *,
    host_bytes: Callable[[], int] | None = None,
    gpu_bytes: Callable[[], int] | None = None,
) -> None:
    """Of the runs of a plan that are not done in the folder `runs`.

    Args:
        host_bytes, gpu_bytes: of this machine's memory, and of its largest GPU (0: not known); asked of it unless given.

    Raises:
        ConfigError: weights that cannot be held, the largest of each cell and arm.
    """
    large = {
        (p.cell, p.arm): p.n_parameters
        for p in planned
        if 4 * p.n_parameters > _SMALL and not (runs / p.fingerprint / "done.json").exists()
    }
    if not large:
        return
    if devices_for(execution):
        parallel = execution.parallel
        n = execution.processes if parallel.shard != "none" or parallel.tp > 1 or parallel.ep > 1 else 1
        room, where = n * (gpu_bytes or _largest_gpu)(), "this machine's GPU has" if n == 1 else f"its {n} GPUs have"
    else:
        room, where = (host_bytes or _host)(), "this machine has"
    wrong = [
        f"{cell} / {arm}: {n_weights:,} parameters are {4 * n_weights / 1e9:,.1f} GB of float32 weights alone, and {where} "
        f"{room / 1e9:,.1f} GB of memory; take a smaller model (`gatelab sizes` lists some), or another machine (`gatelab plan` "
        "says what it needs)"
        for (cell, arm), n_weights in large.items()
        if room and 4 * n_weights > room
    ]
    if wrong:
        raise ConfigError(wrong)


def _host() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _largest_gpu() -> int:
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.TimeoutExpired):
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
        return max(int(line) for line in said.stdout.splitlines()) * 2**20
    return 0
