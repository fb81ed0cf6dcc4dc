"""How much memory is free, as the system says: of the machine, of the control groups around the process, of a device.

Notable: a container's limit is in its control group and nowhere else; both versions of them are read.
"""

import os
from collections.abc import Iterator
from pathlib import Path


def available(device: str = "cpu", *, root: Path = Path("/")) -> int | None:
    """Bytes that can be taken: of the machine and of the process's control groups the least, or of a CUDA device; None
    where the system does not say.

    Args:
        root: where /proc and /sys are.
    """
    if device.startswith("cuda"):
        import torch

        index = torch.device(device)
        held = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        return torch.cuda.mem_get_info(index)[0] + held
    found = [*_of_machine(root), *_of_groups(root)]
    if found:
        return max(0, min(found))
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _of_machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """What each control group that holds this process may still take; its page cache can be given back."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        version = ("cgroup", "memory.max", "memory.current", "inactive_file")
        if controllers:
            version = ("cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if "memory" not in controllers.split(","):
                continue
        place, limit_name, used_name, cached_name = version
        top = root / "sys/fs" / place
        # A container sees its own group at the top, whatever path it is told.
        for group in (top, *(top.joinpath(*Path(path).parts[1 : i + 1]) for i in range(1, len(Path(path).parts)))):
            limit, used = "".join(_lines(group / limit_name)), "".join(_lines(group / used_name))
            if limit.isdigit() and used.isdigit() and int(limit) < 2**60:
                stat = dict(line.split() for line in _lines(group / "memory.stat"))
                yield int(limit) - int(used) + int(stat.get(cached_name, 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
