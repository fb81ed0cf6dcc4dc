"""Fake tasks: what a worker may meet, without torch. Each appends a line to its run's ran.txt when it really starts."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gatelab.config import Execution
from gatelab.store import RunFolder, StudyFolder
from gatelab.study.drive import drive

HOUR = 3600.0


def succeed(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    for run in _start(runs):
        run.mark_done("done", {"steps": 1, "seconds": 0.0})


def meet(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Goes on once two drivers are there."""
    _start(runs)
    study = runs[0].path.parent.parent
    if "SLURM_JOB_ID" in os.environ:
        (study / f"driver-{os.environ['SLURM_JOB_ID']}").touch()
    while len(list(study.glob("driver-*"))) < 2:
        time.sleep(0.01)
    for run in runs:
        run.mark_done("done", {"steps": 1, "seconds": 0.1})


def succeed_by_a_wrong_clock(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """The machine's clock is an hour ahead, for longer than a beat."""
    now = time.time
    time.time = lambda: now() + 3600.0
    _start(runs)
    time.sleep(2.5)
    for run in runs:
        run.mark_done("done", {"steps": 1, "seconds": 0.0})


def diverge(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    for run in _start(runs):
        run.mark_done("diverged", {"steps": 1, "seconds": 0.0})


def fail(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    _start(runs)
    print("about to fail")
    raise ValueError("model.n_heads=3 does not divide d_model=64")


def leave(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Neither done nor asked to stop."""
    _start(runs)


def die_once(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    _start(runs)
    if n_starts(runs[0]) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    for run in runs:
        run.mark_done("done", {"steps": 1, "seconds": 0.0})


def die(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    _start(runs)
    os.kill(os.getpid(), signal.SIGKILL)


def hang(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Hears the wish to stop and stays, and so does a child of its own."""
    _start(runs)
    _leave_a_child(runs[0])
    while True:
        if should_stop():
            (runs[0].path / "asked").touch()
        time.sleep(0.01)


def stop_without_a_child(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Leaves when it is asked to; its child stays."""
    _start(runs)
    _leave_a_child(runs[0])
    while not should_stop():
        time.sleep(0.01)


def _leave_a_child(run: RunFolder) -> None:
    if os.fork() == 0:
        (run.path / "grandchild").write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(60)


def run_out_of_memory(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    _start(runs)
    raise MemoryError


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def need_small_batch(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Fits with at most half of the batch of eight."""
    _start(runs)
    if not 1 <= execution.micro_batch <= 4:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    for run in runs:
        run.mark_done("done", {"steps": 1, "seconds": 0.0})


def fill_disk(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    _start(runs)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rows.jsonl")


def fill_disk_wholly(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """So full that the end of the attempt cannot be written either."""
    from gatelab.study import place

    def refuse(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    place.write_json = refuse
    fill_disk(runs, execution, should_stop=should_stop)


def see_device(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    for run in _start(runs):
        seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
        run.mark_done("done", {"steps": 1, "seconds": 0.0, **seen, "session": os.getsid(0) == os.getpid()})


def see_device_together(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """As `see_device`, of the first process, once every run of the study has begun."""
    study = runs[0].path.parent
    if os.environ.get("RANK", "0") == "0":
        _start(runs)
        while len(list(study.glob("*/ran.txt"))) < len(list(study.iterdir())):
            time.sleep(0.01)
        see_device(runs, execution, should_stop=should_stop)


def share(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Each process of a gang says who it is; the first waits for the others, and all for the study's file `finish`."""
    study = runs[0].path.parent.parent
    facts = {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GATELAB_MEETING")}
    (study / f"rank-{os.environ['RANK']}").write_text(json.dumps(facts | {"pid": os.getpid()}))
    while len(list(study.glob("rank-*"))) < execution.processes or not (study / "finish").exists():
        time.sleep(0.01)
    if os.environ["RANK"] == "0":
        for run in _start(runs):
            run.mark_done("done", {"steps": 1, "seconds": 0.0})


def listen(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Each process joins the others as training does, and says what it listens on."""
    import torch
    from sockets import listening

    from gatelab.train.parallel import join

    ranks = join(torch.device("cpu"), execution.wait_s)
    ranks.wait()
    study = runs[0].path.parent.parent
    (study / f"listens-{ranks.rank}").write_text(json.dumps(sorted(listening(os.getpid()))))
    ranks.wait()
    if ranks.is_writer:
        for run in _start(runs):
            run.mark_done("done", {"steps": 1, "seconds": 0.0})


def fail_beside(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """The second process of a gang runs out of memory, and the first would wait for it for ever."""
    if os.environ["RANK"] == "1":
        raise MemoryError
    while True:
        time.sleep(60)


def lose_the_second(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """They have joined as training does; the first time the second is killed, and the first hears of it from the exchange."""
    _exchange(runs, execution, lambda: os.kill(os.getpid(), signal.SIGKILL))


def hang_beside(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Likewise, but the second hangs."""
    _exchange(runs, execution, lambda: time.sleep(HOUR))


def raise_beside(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Likewise, but the second fails by itself."""
    _exchange(runs, execution, lambda: 1 / 0)


def _exchange(runs: list[RunFolder], execution: Execution, end: Callable[[], object]) -> None:
    import torch

    from gatelab.train.parallel import join

    ranks = join(torch.device("cpu"), execution.wait_s)
    is_last_time = n_starts(runs[0]) == 1
    ranks.wait()
    if ranks.is_writer:
        _start(runs)
    elif not is_last_time:
        end()
    ranks.wait()
    if ranks.is_writer:
        for run in runs:
            run.mark_done("done", {"steps": 1, "seconds": 0.0})


def train_and_lose_the_second(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Really train; the first time the second process is killed after the fifth step."""
    from gatelab.study.carry_out import carry_out

    was, n_steps = runs[0].path.parent.parent / "was-killed", 0

    def die() -> bool:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 5:
            was.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    is_doomed = os.environ["RANK"] == "1" and not was.exists()
    carry_out(runs, execution, should_stop=die if is_doomed else should_stop)


def die_as_second(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """The second process of a gang is killed, and the first would wait for it for ever."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(60)


def count_until_told(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Goes on from its checkpoint until the study's folder holds a file `finish`; checkpoints when asked to stop."""
    (run,) = _start(runs)
    checkpoint = run.path / "checkpoint.json"
    step = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0
    while not (run.path.parent.parent / "finish").exists():
        step += 1
        if should_stop():
            checkpoint.write_text(json.dumps(step))
            return
        time.sleep(0.01)
    run.mark_done("done", {"steps": step, "seconds": 0.0})


def count_as_first(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Each process of several machines says who it is; the first counts, the others are there as long as its run goes on."""
    study = runs[0].path.parent.parent
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "SLURMD_NODENAME")
    facts = {name: os.environ.get(name) for name in names} | {"pid": os.getpid()}
    partial = study / f".rank-{os.environ['RANK']}"
    partial.write_text(json.dumps(facts))
    partial.rename(study / partial.name[1:])
    if os.environ["RANK"] == "0":
        count_until_told(runs, execution, should_stop=should_stop)
    while not (study / "finish").exists() and os.environ["RANK"] != "0":
        time.sleep(0.01)


def succeed_as_first(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Each process of several machines is there; the first alone writes, as in training."""
    if os.environ["RANK"] == "0":
        succeed(runs, execution, should_stop=should_stop)


def count_after_the_first(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Seed 0 is done at once, the others count until they are told."""
    task = succeed if runs[0].config()["seed"] == 0 else count_until_told
    task(runs, execution, should_stop=should_stop)


def _start(runs: list[RunFolder]) -> list[RunFolder]:
    for run in runs:
        with open(run.path / "ran.txt", "a", encoding="utf-8") as f:
            f.write(f"{os.getpid()}\n")
    return runs


def n_starts(run: RunFolder) -> int:
    """How often a fake task began this run."""
    ran = run.path / "ran.txt"
    return len(ran.read_text().splitlines()) if ran.exists() else 0


def main() -> int:
    """A driver as its own process: FOLDER TARGET KIND GRACE_S; prints `interrupted` when Ctrl-C got through."""
    folder = StudyFolder.open(sys.argv[1])
    from places import open_executor

    executor = open_executor(sys.argv[3], folder.path)
    (folder.path / f"driver-{os.getpid()}").touch()
    try:
        drive(
            folder,
            executor,
            Execution(),
            entries=folder.study()["plan"],
            target=sys.argv[2],
            grace_s=float(sys.argv[4]),
        )
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 1
    finally:
        executor.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
