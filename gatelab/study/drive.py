"""The driver: brings every run of a study that is not done to an end, on any executor.

It holds nothing that the ledger does not: kill it and run it again, start a second one beside it, add runs to the plan,
and each run is still carried out once. What happens next to a run depends on how its last attempt ended:

    lost        again, up to execution.lost_retries times in this drive, not counting attempts that left a newer checkpoint
                nor tasks that vanished before their worker began
    oom         again once with half the micro-batch, which later attempts keep until `retry`
    stopped     again from its checkpoint, not counted
    timeout     left; the next drive resumes it
    failed      left until `retry`: the same configuration would fail again
    disk-full   left, and nothing more is started; the next drive resumes it
    damaged     left until its file is mended, as the message says

A run that starts from another's weights waits until that one has them.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..config import Execution
from ..store import StudyFolder
from . import ledger
from .driver import POLL_S, Driver, Event, Kind, Summary, micro_batch_of
from .executor import GRACE_S, TARGET, Executor

__all__ = ["POLL_S", "Event", "Kind", "Summary", "drive", "micro_batch_of", "retry"]


def drive(
    folder: StudyFolder,
    executor: Executor,
    execution: Execution,
    *,
    entries: Iterable[dict[str, Any]],
    on_event: Callable[[Event], None] | None = None,
    target: str = TARGET,
    grace_s: float = GRACE_S,
) -> Summary:
    """Carry out the runs of the plan's `entries` that are not done; the caller closes the executor.

    Runs leased by another living driver are left to it, and taken over if it dies while there is still work here.
    The first Ctrl-C asks the tasks to checkpoint and leave within `grace_s` seconds, the second one kills them.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when no task is left.
    """
    driver = Driver(folder, executor, execution, list(entries), on_event, target, grace_s)
    with _interrupts() as interrupts:
        try:
            driver.loop(interrupts)
        except BaseException:
            driver.abandon(interrupts)
            raise
    if interrupts:
        raise KeyboardInterrupt
    return driver.summary()


def retry(folder: StudyFolder, states: Iterable[str] = ("failed", "oom", "timeout", "lost")) -> list[str]:
    """Plan the runs in one of `states` again; returns their fingerprints. Nothing is removed: they resume.

    Raises:
        ValueError: for a state from which a run cannot be planned again.
    """
    wanted, allowed = (
        set(states),
        [s for s in ledger.STATES if s not in ("planned", "running", *ledger.FINISHED, ledger.DAMAGED)],
    )
    if not wanted <= set(allowed):
        raise ValueError(f"retry {', '.join(sorted(wanted - set(allowed)))}: expected some of {', '.join(allowed)}")
    runs = {run.fingerprint: run for _, run in folder.planned()}
    return [f for f, run in runs.items() if ledger.state_of(run) in wanted and ledger.reset(run)]


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects SIGINT, so that nothing is raised in the middle of a submission.

    Threads have no Ctrl-C, and a job that was started to ignore it goes on doing so.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield received
        return
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
