"""Which process of which machine is meant: pid and start time, against reuse, and where pids mean the same."""

import functools
import os
import socket
from contextlib import suppress
from pathlib import Path


def process_start(pid: int) -> str | None:
    """When a process of this machine started, in its kernel's ticks; None when there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return _alive_without_proc(pid) if not Path("/proc/self").exists() else None
    # proc(5): the name may hold spaces and brackets; after its last bracket come fields 3 (state) to 22 (start time).
    after = stat.rpartition(")")[2].split()
    return None if after[0] in "ZX" else after[19]


def _alive_without_proc(pid: int) -> str | None:
    """Systems without /proc: whether the pid is in use is all that can be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


@functools.cache
def here() -> tuple[str, str]:
    """This host's name, and its boot and process namespace: only where both agree does a pid mean the same process."""
    machine = []
    with suppress(OSError):
        machine.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        machine.append(os.readlink("/proc/self/ns/pid"))
    return socket.gethostname(), " ".join(machine)
