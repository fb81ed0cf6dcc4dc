"""The fork server: a process that has imported the heavy modules once and forks a ready worker in milliseconds.

    python -m gatelab.study.preload MODULE …      started by LocalExecutor, with a pipe on stdin and one on stdout

One JSON line a message. In: {"start": owner, "task": {…}, "driver": pid, "threads": n, "environ": {…} or null} and
{"signal": number, "owner": owner}. Out: {"ready": true}, {"started": owner, "pid": pid, "process": start time} and
{"ended": owner, "status": wait status, or null when it could not be started}.

Notable: multiprocessing's fork server is not used, because it imports the caller's main module again in every child (a
study file without a main guard would start itself), passes pickles, and cannot be shut down. With `environ`, the child
becomes a fresh interpreter: a CUDA context does not survive a fork. When stdin ends, the driver is gone; its workers
leave by themselves, and the server stays to reap them.
"""

import gc
import json
import os
import select
import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from typing import Any

from . import gang, ledger
from .code import code_hash
from .executor import Task, worker_command
from .worker import take_output, work


def main() -> None:
    """Serve until stdin ends and the last worker has left."""
    # The pipes move away from 0 and 1 (os.dup also keeps them from fresh interpreters), so no import's print joins in.
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for module in sys.argv[1:]:
        import_module(module)
    # Of the files that were loaded, whatever becomes of them while runs are forked.
    code_hash()
    # What is loaded now is never garbage: without this, every child's collector would touch and so copy its pages.
    gc.collect()
    gc.freeze()
    # From here on the end of stdin is what ends the server. Workers inherit the block, so that a wish to stop waits
    # until `work` can hear it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _Server(requests, replies).serve()


class _Server:
    def __init__(self, requests: int, replies: int):
        self._requests, self._replies = requests, replies
        self._owners: dict[int, str] = {}
        # A child that ends writes a byte here, so that select wakes.
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """The loop: requests in, ends out."""
        self._reply({"ready": True})
        received, is_open = b"", True
        while is_open or self._owners:
            ready, _, _ = select.select([self._woken, *([self._requests] if is_open else [])], [], [])
            if self._woken in ready:
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._requests in ready:
                chunk = os.read(self._requests, 65536)
                is_open = bool(chunk)
                *lines, received = (received + chunk).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))

    def _obey(self, request: dict[str, Any]) -> None:
        if "start" in request:
            self._start(request)
        else:
            pid = next((p for p, owner in self._owners.items() if owner == request["owner"]), None)
            if pid is not None:
                self._signal(pid, request["signal"])

    def _start(self, request: dict[str, Any]) -> None:
        owner = request["start"]
        try:
            pid = os.fork()
        except OSError:
            self._reply({"ended": owner, "status": None})
            return
        if pid == 0:
            self._become_worker(request)
        self._owners[pid] = owner
        self._reply({"started": owner, "pid": pid, "process": ledger.process_start(pid)})

    def _become_worker(self, request: dict[str, Any]) -> None:
        """The child's life, from the fork to its exit."""
        code = 1
        try:
            # Its own session: Ctrl-C reaches the driver alone, and a kill reaches whatever the worker started.
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self._requests, self._replies, self._woken, self._wake):
                os.close(end)
            task = Task(**{**request["task"], "fingerprints": tuple(request["task"]["fingerprints"])})
            take_output(task)
            if request["environ"] is not None:
                os.execve(sys.executable, worker_command(task, request["driver"]), request["environ"])
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(request["threads"])
            code = work(task, request["driver"])
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _signal(self, pid: int, number: int) -> None:
        """Only a kill goes to the whole group: what a worker started is the worker's to stop."""
        try:
            (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)
        except ProcessLookupError:
            # Not yet the leader of its own group: the fork was a moment ago.
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _reap(self) -> None:
        while self._owners:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            owner = self._owners.pop(pid, None)
            if owner is not None:
                gang.clear(owner)
                self._reply({"ended": owner, "status": status})

    def _reply(self, message: dict[str, Any]) -> None:
        # Nobody may be listening any more.
        with suppress(BrokenPipeError):
            os.write(self._replies, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
