"""Forks two processes that share a run, from one that has torch loaded: what the tests of several ranks have in common."""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from importlib import import_module

from gatelab.study.local import PRELOAD


def as_two_ranks(live: Callable[[], None]) -> None:
    """Run `live` as rank 0 and as rank 1 of a gloo group; exits with 1 when either fails."""
    for module in PRELOAD:
        import_module(module)
    import torch

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.environ |= {
                    "WORLD_SIZE": "2",
                    "RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
                torch.set_num_threads(1)
                live()
                torch.distributed.destroy_process_group()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in children):
        sys.exit(1)
