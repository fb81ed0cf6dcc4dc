"""The command line, called in this process."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from gatelab.cli import _status


def gatelab(*words: object) -> tuple[int, str, str]:
    """(status, stdout, stderr) of `gatelab` with these words."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = _status([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()
