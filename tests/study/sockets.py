"""Which addresses processes listen on, as the kernel of Linux tells it."""

import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path


def family(pid: int) -> Iterator[int]:
    """A process and all that it started."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from family(int(child))


def listening(*pids: int) -> set[str]:
    """The addresses, without ports, that the processes listen on."""
    there, out = _listeners(), set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(file)
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in there:
                out.add(there[target[8:-1]])
    return out


def is_loopback(address: str) -> bool:
    """Whether nothing but this machine reaches it."""
    found = ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback


def _listeners() -> dict[str, str]:
    """{inode: address} of all that listen."""
    out = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                out[words[9]] = str(_address(words[1].rpartition(":")[0]))
    return out


def _address(digits: str) -> IPv4Address | IPv6Address:
    """Words of four bytes, each with its last byte first."""
    words = bytes.fromhex(digits)
    return ip_address(b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4)))
