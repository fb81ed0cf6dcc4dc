"""Two runs to carry out, and a process that has torch loaded and forks a child to do so, which is cheaply killed.

Used as a `Carrier` by the tests; run as a script it reads one JSON request a line and tells of each child's life.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import tiny

from gatelab.config import Execution, OptimConfig, ProbeConfig, Run, canonical, fingerprint
from gatelab.data import open_source
from gatelab.store import RunFolder
from gatelab.study.local import PRELOAD
from gatelab.train.group import resolve

SHORT = tiny.run(steps=2, probe=ProbeConfig(times=2, sequences=1, eval_sequences=1))
LONG = tiny.run(steps=120, seed=1, probe=ProbeConfig(times=4, sequences=1, eval_sequences=1))
WILD = OptimConfig(lr=1e30, clip=None, warmup=0.0, schedule="constant")


def folder(path: Path, run: Run) -> RunFolder:
    """A run as a plan leaves it."""
    run = resolve(run)
    made = RunFolder(path / fingerprint(run, open_source(run.data).digest))
    made.create(canonical(run))
    return made


def result(run: RunFolder) -> dict[str, bytes]:
    return {name: (run.path / name).read_bytes() for name in ("rows.jsonl", "weights.safetensors")}


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.rows_path.read_text().splitlines()]


class Carrier:
    """Starts children, one at a time, that carry out runs."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(tiny.__file__).parent)},
            text=True,
        )

    def start(self, *runs: RunFolder, die_at: int = 0, stop_after: int = 0, **execution: object) -> int:
        """Start a child; returns its process id.

        Args:
            die_at: it kills itself in place of its n-th operation on a file: a flush to the disk, a rename, a removal, or
                halfway through a file of tensors (0: never).
            stop_after: it is asked to stop after so many steps (0: never).
        """
        request = {
            "runs": [str(r.path) for r in runs],
            "die_at": die_at,
            "stop_after": stop_after,
            "execution": execution,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()["pid"]

    def wait(self) -> int:
        """How the child ended: its exit status, or minus the signal that killed it."""
        return self._answer()["ended"]

    def carry_out(self, *runs: RunFolder, **options: Any) -> int:
        """Start a child and wait for its end."""
        self.start(*runs, **options)
        return self.wait()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, int]:
        return json.loads(self._process.stdout.readline())


def _live(request: dict[str, Any]) -> None:
    """The child's life."""
    import gatelab.train.checkpoint as checkpoint
    from gatelab.study.carry_out import carry_out

    sys.stdout = sys.stderr
    calls = 0

    def dying(function: Callable[..., Any], halfway: Callable[..., None] | None = None) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == request["die_at"]:
                if halfway is not None:
                    halfway(function, *arguments, **keywords)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    def half_a_file(save: Callable[..., None], tensors: object, path: Path, metadata: object) -> None:
        save(tensors, path, metadata)
        os.truncate(path, path.stat().st_size // 2)

    os.replace, os.fsync, os.unlink = dying(os.replace), dying(os.fsync), dying(os.unlink)
    checkpoint.save_file = dying(checkpoint.save_file, half_a_file)
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == request["stop_after"]

    runs = [RunFolder(Path(path)) for path in request["runs"]]
    carry_out(runs, Execution.model_validate(request["execution"]), should_stop=should_stop)


def main() -> None:
    for module in PRELOAD:
        import_module(module)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _live(json.loads(line))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps({"ended": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)


if __name__ == "__main__":
    main()
