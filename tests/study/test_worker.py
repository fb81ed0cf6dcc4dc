import errno
import os

import pytest
from tasks import OutOfMemoryError

from gatelab.config import ConfigError
from gatelab.study.worker import classify, disk_is_full


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rows.jsonl")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MemoryError(), "oom"),
        (OutOfMemoryError("CUDA out of memory."), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
        (FULL, "disk-full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "disk-full"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk-full"),
        (raised_from(RuntimeError("cannot save"), FULL), "disk-full"),
        (RuntimeError("shape mismatch"), "failed"),
        (PermissionError(errno.EACCES, "Permission denied"), "failed"),
        (SystemExit(3), "failed"),
    ],
)
def test_exceptions_are_told_apart(error: BaseException, outcome: str) -> None:
    assert classify(error)[0] == outcome


def test_a_mistake_of_the_user_is_told_in_its_own_words() -> None:
    assert (
        classify(ConfigError(["seed=-1: too small", "data.kind: missing"]))[1]
        == "seed=-1: too small; data.kind: missing"
    )
    assert classify(KeyError("w1"))[1] == "KeyError: 'w1'"
    assert classify(RuntimeError())[1] == "RuntimeError: RuntimeError"


def test_the_full_disk_speaks_of_one_run_and_of_many() -> None:
    assert "1 run keeps what it had" in disk_is_full(1) and "3 runs keep what they had" in disk_is_full(3)
