"""The head of a cluster of Ray, watched from here: whether it answers, and calls that come back when it does not.

Notable: without its head Ray's calls (a list of nodes, the start of an actor) do not return, and Ray's client ends the process a
minute after it has lost it, with a word of its own. So calls are made in a thread of their own, whose caller goes on looking at the
head; and the client is told to wait longer than anybody here does.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

from .ray_address import answers

# For a head that is started again.
HEAD_S = 45.0
_LOOK_S, _AGAIN_S = 5.0, 1.0
# What its client reads when it is loaded; the default is 60. A cluster's own processes have their machines' settings.
_SETTING, _CLIENT_S = "RAY_gcs_rpc_server_reconnect_timeout_s", "600"
T = TypeVar("T")


def let_clients_wait() -> None:
    """Of a process that will join a cluster, before it loads Ray: its client does not end it before `Head` has spoken."""
    os.environ.setdefault(_SETTING, _CLIENT_S)


class Head:
    """The head at an address, host:port, which has answered just now."""

    def __init__(self, address: str):
        self.address = address
        self._asked = self._heard = time.monotonic()
        self._calls: SimpleQueue[tuple[Callable[[], object], Future[object]]] = SimpleQueue()
        self._thread: Thread | None = None

    def is_there(self) -> bool:
        """Whether it answers, asked every few seconds.

        Raises:
            ConnectionError: when it has been silent for too long.
        """
        now = time.monotonic()
        if now - self._asked > (_LOOK_S if self._heard == self._asked else _AGAIN_S):
            self._asked = now
            if answers(self.address):
                self._heard = now
        if now - self._heard > HEAD_S and self._heard != self._asked:
            raise ConnectionError(
                f"Ray's head at {self.address} is gone; the workers save their runs and leave. Start it again, then the same "
                "command continues"
            )
        return self._heard == self._asked

    def ask(self, call: Callable[[], T]) -> T:
        """What a call of Ray's returns or raises, waited for as long as the head is there.

        Raises:
            ConnectionError: as `is_there`; the call goes on waiting in its thread.
        """
        if self._thread is None:
            self._thread = Thread(target=self._serve, daemon=True, name="ray")
            self._thread.start()
        answer: Future[T] = Future()
        self._calls.put((call, answer))
        while not wait([answer], timeout=_AGAIN_S).done:
            self.is_there()
        return answer.result()

    def _serve(self) -> None:
        while True:
            call, answer = self._calls.get()
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)
