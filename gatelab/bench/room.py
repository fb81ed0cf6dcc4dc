"""Whether there is memory for what is to be timed: asked before it is made, since a CPU's process that takes too much is killed.

Notable: what is asked for is counted low, inputs and what must be kept, and may take most of what is free.
"""

from ..models.memory import available

_SHARE = 0.8


def no_room(n_bytes: float, device: str) -> str:
    """Why so much cannot be had on a device, or nothing."""
    room = available(device)
    if room is None or n_bytes <= _SHARE * room:
        return ""
    return f"not run: needs {n_bytes / 2**30:,.1f} GiB of {room / 2**30:,.1f}"
