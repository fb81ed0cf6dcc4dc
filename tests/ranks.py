"""Forks processes that share a run, from one that has torch loaded: what the tests of several ranks have in common."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from gatelab.study.local import PRELOAD

# The others of a rank that was killed notice when the exchange fails; one that does not is a failure of the test.
_NOTICE_S = 60.0


def paths() -> dict[str, str]:
    """For the environment of a Python process that is to find what this one finds, however this one was told."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def as_two_ranks(live: Callable[[], None]) -> None:
    """Run `live` as rank 0 and as rank 1 of a gloo group; exits with 1 when either fails."""
    as_ranks(live, 2)


def as_ranks(live: Callable[[], None], n: int) -> None:
    """Run `live` as every rank of a gloo group of n; exits with 1 when one fails."""
    if any(fork_ranks(live, n)):
        sys.exit(1)


def fork_ranks(live: Callable[[], None], n: int) -> list[int]:
    """Run `live` as every rank of a gloo group of n; returns how each ended, its exit status or minus a signal."""
    for module in PRELOAD:
        import_module(module)
    import torch

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    children = []
    for rank in range(n):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.environ |= {
                    "WORLD_SIZE": str(n),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
                torch.set_num_threads(1)
                live()
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    return _ends(children)


def _ends(children: list[int]) -> list[int]:
    ends: dict[int, int] = {}
    late = None
    while len(ends) < len(children):
        for pid in set(children) - set(ends):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                ends[pid] = os.waitstatus_to_exitcode(status)
        if late is None and any(ends.values()):
            late = time.monotonic() + _NOTICE_S
        if late is not None and time.monotonic() > late:
            for pid in set(children) - set(ends):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [ends[pid] for pid in children]
