"""The command line: parsing only. Exit status 0: done; 1: something asked for could not be done; 2: usage, and whatever `run`,
`submit`, `train` and `plan` refuse before anything starts; 130: Ctrl-C; 143: SIGTERM, of `run` and `train`.

A command is a function in one of the files here, whose docstring is its help. It imports what it needs when it runs, so
that `--help` and `status` answer at once.
"""

import errno
import os
import re
import signal
import sys
from importlib import metadata
from types import FrameType
from typing import Any

from cyclopts import App, CycloptsError

from .. import __version__
from . import (
    bench,
    convert,
    eval,
    gates,
    lists,
    pack,
    plan,
    probe,
    progress,
    results,
    retrofit,
    sizes,
    study,
    tasks,
    train,
)
from .base import refuse_empty

app = App(
    name="gatelab",
    help="A laboratory for gated softmax attention: run paired studies, probe checkpoints, read a page one can believe.",
    version=__version__,
    help_flags=["--help", "-h"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # it would leave without a word
)
for command in (
    bench.bench, probe.probe, study.run, plan.plan, study.submit, progress.status, progress.logs, progress.retry, results.find,
    results.report, results.diff, pack.pack, pack.unpack, train.train, convert.convert, retrofit.retrofit, eval.eval_, gates.gates,
    lists.probes, lists.interventions, sizes.sizes, tasks.tasks, lists.schema, lists.doctor,
):  # fmt: skip
    app.command(command)

_MOST_LINES = 20  # of one error; a grid can be wrong in thousands of cells


def main() -> None:
    """The `gatelab` command."""
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter gets a substitute, not an error.
        stream.reconfigure(errors="replace")
    words, terms = sys.argv[1:], []
    if words[:1] in (["run"], ["train"]):

        def as_interrupt(number: int, _: FrameType | None) -> None:
            terms.append(number)
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a job in a script's background
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGTERM, as_interrupt)
    status = _status(words)
    if terms and status == 130:
        status = 128 + terms[0]
    try:
        sys.stdout.flush()
    except OSError as error:
        # What could not be written stays in the buffer, and the interpreter must not try it again on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1 if isinstance(error, BrokenPipeError) else _fail(1, f"the output: {error.strerror}")
    sys.exit(status)


def _open_streams() -> None:
    """What was closed (`>&-`) leads nowhere, before a file of ours takes its number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(nowhere, True)
            setattr(sys, name, open(nowhere, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _status(words: list[str]) -> int:
    """Run one command; every mistake of a user ends as one message on stderr."""
    if not words:
        app.help_print([], console=_stderr())
        return 2
    try:
        refuse_empty(words)
        result = app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _fail(2, str(error).strip() or type(error).__name__, _help_for(words[0]))
    except KeyboardInterrupt:
        saved = "; what was trained is saved, the same command continues" if words[0] in ("run", "train") else ""
        return _fail(130, f"stopped{saved}")
    except BrokenPipeError:
        return 1  # the reader of our output has gone, as in `| head`
    except ModuleNotFoundError as error:
        if (package := _package_of(error)) is None:
            raise
        return _fail(1, f"{error.name} is not installed here, and this needs it: pip install {package}")
    except (MemoryError, RuntimeError) as error:
        from ..study.worker import classify

        outcome, message = classify(error)
        if outcome != "oom":
            raise
        return _fail(1, message)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(1, "the disk is full; what was there is unharmed: free space and give the same command again")
        where = f"{error.filename}: " if error.filename else ""
        return _fail(1, f"{where}{error.strerror or error}")
    except ValueError as error:
        from ..config import ConfigError

        return _fail(2 if isinstance(error, ConfigError) else 1, str(error))
    return result if isinstance(result, int) else 0


def _help_for(word: str) -> str:
    if word in app and not word.startswith("-"):
        return f"`gatelab {word} --help` says what it takes"
    return "`gatelab --help` lists the commands"


def _package_of(error: ModuleNotFoundError) -> str | None:
    """The package of ours that an import did not find: a machine that trains alone need not have those that read. None of a
    module that a package which is there has not, as of another version."""
    if "." in (error.name or ""):
        return None
    asked = (error.name or "").replace("_", "-")
    try:
        asks = metadata.requires("gatelab") or ()
    except metadata.PackageNotFoundError:  # run from its folder, where nothing says what it needs
        return None
    needed = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in asks]
    return next((name for name in needed if name in (asked, f"{asked}-python")), None)


def _fail(status: int, *lines: str) -> int:
    said = "\n".join(lines).splitlines()
    for line in [*said[:_MOST_LINES], *([f"… and {len(said) - _MOST_LINES} more"] if len(said) > _MOST_LINES else [])]:
        print(f"gatelab: {line}", file=sys.stderr)
    return status


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)
