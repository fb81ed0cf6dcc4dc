"""Several processes of one machine that share the batches of a task's runs; the worker is the first of them.

The worker holds the leases and is the only one to write. The others know its process and leave when it is gone; when one
of them ends with an error, so does the attempt, and where a signal ended one the attempt is lost, as the worker's own would be:
what the exchange says of it is only that it failed. They meet through a file of their own user and talk over loopback, so
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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from glob import escape
from pathlib import Path

from ..config import Execution
from . import ledger
from .executor import EXITS, Task, function_of, leave

_LOOK_S = 0.2
# After one has failed: for the exchange to fail in the worker too, which then says so itself. And after that: for one that is being
# ended to be gone, since its connections are closed first.
_FAIL_S = 5.0
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}

_Others = list["subprocess.Popen[bytes]"]


class LostError(RuntimeError):
    """A process that shares the run is gone, or does not answer: no fault of the run's."""


class FailedError(RuntimeError):
    """A process that shares the run has failed, and said why in the log."""


@contextmanager
def gang(task: Task, size: int, fail: Callable[[BaseException], None]) -> Iterator[None]:
    """Make this process the first of `size`, and start the others for as long as the block lasts.

    Args:
        fail: called in another thread when one of them fails and this process does not notice.

    Raises:
        LostError: from what the block raised, when a signal ended one of the others.
        MemoryError: likewise, when one ran out of memory.
        FailedError: likewise, when one failed and this process knows of it from the exchange alone.
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
        except BaseException as error:
            is_over.set()
            why = _why(others, error)
            if why is None:
                raise
            raise why from error
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


def _watch(others: _Others, is_over: threading.Event, fail: Callable[[BaseException], None]) -> None:
    while not is_over.wait(_LOOK_S):
        if any(other.poll() for other in others) and not is_over.wait(_FAIL_S):
            fail(_meaning([other.poll() for other in others]))


def _why(others: _Others, error: BaseException) -> BaseException | None:
    """What is behind an error of the worker's, if another process is."""
    from .worker import classify

    outcome = classify(error)[0]
    if outcome in ("oom", "disk-full"):
        return None
    # A mistake of the user's, which all find at once, is nothing to wait for.
    deadline = time.monotonic() + (0.0 if isinstance(error, ValueError) else _FAIL_S)
    while None in (codes := [other.poll() for other in others]) and time.monotonic() < deadline:
        if any(map(_is_from_outside, codes)):
            break
        time.sleep(_LOOK_S / 10)
    # An error that is not the exchange's says more than that others have failed too.
    return _meaning(codes) if outcome == "lost" or any(map(_is_from_outside, codes)) else None


def _is_from_outside(code: int | None) -> bool:
    return code is not None and (code < 0 or code == EXITS["oom"])


def _name(number: int) -> str:
    """Real-time signals have none of their own."""
    return signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"


def _meaning(codes: list[int | None]) -> BaseException | None:
    """What it means for the run that the others ended so; None while none has failed."""
    some = "one of the processes that share this run"
    for rank, code in enumerate(codes, 1):
        if code is not None and code < 0:
            return LostError(f"process {rank} of {len(codes) + 1} was ended by {_name(-code)}")
    failed = [code for code in codes if code]
    if EXITS["oom"] in failed:
        return MemoryError(f"{some} ran out of memory; log.txt has its words")
    if set(failed) == {EXITS["lost"]}:
        return LostError(f"{some} waited in vain for another; log.txt has its words")
    # One that lost another has noticed what a third met.
    own = next((code for code in failed if code != EXITS["lost"]), None)
    return FailedError(f"{some} ended with {own}; log.txt has its words") if own else None


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
