"""Programs in their sandbox: what passes, and every limit by a program that runs into it."""

import os
import platform
import socket
import sys
import time
from math import comb
from pathlib import Path

import pytest

from gatelab.evals.harness import sandbox
from gatelab.evals.harness.sandbox import FAILED, MEMORY, PASSED, REFUSED, TIMEOUT, CodeEval, Limits, run_code

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="seccomp of Linux"
)
QUICK = Limits(seconds=2.0)


@pytest.mark.parametrize(
    "program",
    [
        "assert sorted([2, 1]) == [1, 2]",
        "import math, re, collections, itertools, heapq, threading\nt = threading.Thread(target=print); t.start(); t.join()",
        "open('own.txt', 'w').write('x'); assert open('own.txt').read() == 'x'",
        "if __name__ == '__main__':\n    x = 1\nassert x",
    ],
)
def test_what_runs_to_its_end_passes(program: str) -> None:
    assert run_code(program) == PASSED


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "def f(:",
        "raise KeyboardInterrupt",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "1 / 0",
    ],
)
def test_what_does_not_come_to_its_end_fails(program: str) -> None:
    assert run_code(program) == FAILED


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time\ntime.sleep(60)", "try:\n  while True: pass\nexcept: pass"]
)
def test_time_is_limited(program: str) -> None:
    assert run_code(program, Limits(seconds=1.0)) == TIMEOUT


def test_memory_is_limited() -> None:
    assert run_code("x = 'a' * (1 << 29)", Limits(memory=2**28)) == MEMORY
    assert run_code("x = 'a' * (1 << 29)") == PASSED


def test_files_are_limited() -> None:
    program = "open('x', 'w').write('a' * 2_000_000)"
    assert run_code(program, Limits(file=2**20)) == FAILED
    assert run_code(program) == PASSED


def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert run_code(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))", QUICK) == REFUSED
        assert run_code("import socket\nsocket.socket(socket.AF_UNIX)", QUICK) == REFUSED


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing as m; p = m.Process(target=print); p.start()",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 0)",
        "import os; os.setsid()",
    ],
)
def test_no_other_process_is_made_or_reached(program: str) -> None:
    assert run_code(program, QUICK) == REFUSED


def test_nothing_of_the_environment_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATELAB_SECRET", "x")
    assert run_code("import os; assert 'GATELAB_SECRET' not in os.environ") == PASSED
    assert run_code(f"import os; assert os.getcwd() != {os.getcwd()!r}") == PASSED


def test_what_is_printed_or_asked_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_code("print('heard')\nimport sys; sys.stderr.write('heard')") == PASSED
    assert run_code("input()") == FAILED
    assert "heard" not in "".join(capfd.readouterr())


def test_a_program_cannot_claim_to_have_passed() -> None:
    """It can write to the pipe, and does not know the word."""
    claim = "import os\nfor n in range(3, 10):\n  try: os.write(n, b'passed')\n  except OSError: pass\nassert False"
    assert run_code(claim) == FAILED


def test_without_limits_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = tmp_path / "guard.py"
    guard = sandbox._GUARD.read_text().replace("platform.machine()", "'pdp11'")
    unknown.write_text(guard)
    monkeypatch.setattr(sandbox, "_GUARD", unknown)
    ran = tmp_path / "ran"
    with pytest.raises(ValueError, match=r"pdp11.*takes Linux"):
        run_code(f"open({str(ran)!r}, 'w')")
    assert not ran.exists()


def test_pass_at_k_is_the_unbiased_share() -> None:
    right, wrong = "def f(x): return x + 1", "def f(x): return x"
    metric = CodeEval()
    found, results = metric.compute(
        references=["assert f(1) == 2", "assert f(2) == 3"],
        predictions=[[right, wrong, wrong], [wrong, right, right]],
        k=[1, 2, 5],
    )
    assert found == {
        "pass@1": pytest.approx(((1 / 3) + (2 / 3)) / 2),
        "pass@2": pytest.approx((1 - comb(2, 2) / comb(3, 2) + 1) / 2),
    }
    assert [told["passed"] for _, told in results[0]] == [True, False, False]
    assert metric.outcomes == {PASSED: 3, FAILED: 3}


def test_a_loop_does_not_outlive_its_limit() -> None:
    start = time.monotonic()
    run_code("import time\nwhile True: time.sleep(0.01)", Limits(seconds=1.0))
    assert time.monotonic() - start < 60  # and not for ever
