"""Several processes of one machine that share the batches of a task's runs; the worker is the first of them.

The worker holds the leases and is the only one to write. The others know its process and leave when it is gone; when one
of them ends with an error, so does the attempt. They meet through a file of their own user and talk over loopback, so
that nothing can be reached from elsewhere.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from glob import escape
from pathlib import Path

from ..config import Execution
from . import ledger
from .executor import EXITS, Task, function_of, leave

_LOOK_S = 0.2
# After one has failed: for the exchange to fail in the worker too, which then says so itself.
_FAIL_S = 5.0
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}


@contextmanager
def gang(task: Task, size: int, fail: Callable[[BaseException], None]) -> Iterator[None]:
    """Make this process the first of `size`, and start the others for as long as the block lasts.

    Args:
        fail: called in another thread when one of them fails and this process does not notice.
    """
    if size == 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield  # alone; or torchrun has started the others
        return
    with tempfile.TemporaryDirectory(prefix=_places(task.owner)) as place:
        environ = {**_LOOPBACK, "GATELAB_MEETING": f"file://{place}/meeting", "WORLD_SIZE": str(size)}
        command = [sys.executable, "-P", "-m", "gatelab.study.gang", json.dumps(asdict(task)), str(os.getpid())]
        others = [
            subprocess.Popen(command, env=os.environ | environ | {"RANK": str(i), "LOCAL_RANK": str(i)})
            for i in range(1, size)
        ]
        os.environ |= {**environ, "RANK": "0", "LOCAL_RANK": "0"}
        is_over = threading.Event()
        threading.Thread(target=_watch, args=(others, is_over, fail), daemon=True, name="gang").start()
        try:
            yield
        finally:
            is_over.set()
            for other in others:
                other.kill()
                other.wait()


def clear(owner: str) -> None:
    """Remove where a task's processes met, of a worker that was killed and could not; its parent does it."""
    for place in Path(tempfile.gettempdir()).glob(f"{_places(escape(owner))}*"):
        shutil.rmtree(place, ignore_errors=True)


def _places(owner: str) -> str:
    return f"gatelab-{owner}-"


def _watch(
    others: list["subprocess.Popen[bytes]"], is_over: threading.Event, fail: Callable[[BaseException], None]
) -> None:
    while not is_over.wait(_LOOK_S):
        codes = [code for other in others if (code := other.poll())]
        if codes and not is_over.wait(_FAIL_S):
            how = "ran out of memory" if EXITS["oom"] in codes else f"ended with {codes[0]}"
            error = MemoryError if EXITS["oom"] in codes else RuntimeError
            fail(error(f"one of the processes that share this run {how}; log.txt has its words"))


def accompany(task: Task, worker_pid: int) -> int:
    """The life of one that is not the first, as long as the process lives that started it; returns the exit code."""
    from .carry_up import study_of
    from .worker import classify

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the worker hears it for all
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(worker_pid,), daemon=True).start()
    folder = study_of(task)
    runs = [folder.run(f) for f in task.fingerprints]
    try:
        function_of(task)(runs, Execution.model_validate(task.execution), should_stop=lambda: False)
    except BaseException as error:
        outcome, message = classify(error)
        print(f"process {os.environ['RANK']}: {message}", flush=True)
        return EXITS[outcome]
    return 0


def _leave_with(worker_pid: int) -> None:
    while os.getppid() == worker_pid and ledger.process_start(worker_pid) is not None:
        threading.Event().wait(_LOOK_S)
    leave(EXITS["orphaned"])


def main() -> int:
    """`python -m gatelab.study.gang TASK PID`: what `gang` starts."""
    value = json.loads(sys.argv[1])
    return accompany(Task(**{**value, "fingerprints": tuple(value["fingerprints"])}), int(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
