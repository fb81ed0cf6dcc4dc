"""Run as a script of its own: limits this process for good, then runs the program that it reads; says how it ended.

    python -I guard.py PIPE SECONDS MEMORY FILE < token, line's end, program

Only the standard library, since nothing else is there.
"""

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import sys

# The kernel's word for an architecture, calls that are refused, and the call that makes threads, or processes unless told so.
_CALLS = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "connect": 42, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101, "setpgid": 109,
            "setsid": 112, "tkill": 200, "tgkill": 234, "process_vm_writev": 311, "execveat": 322,
            "pidfd_send_signal": 424, "io_uring_setup": 425,
        },
        56,
    ),
    "aarch64": (
        0xC00000B7,
        {
            "ptrace": 117, "kill": 129, "tkill": 130, "tgkill": 131, "setpgid": 154, "setsid": 157, "socket": 198,
            "connect": 203, "execve": 221, "process_vm_writev": 271, "execveat": 281, "pidfd_send_signal": 424,
            "io_uring_setup": 425,
        },
        220,
    ),
}  # fmt: skip
_LOAD, _EQUAL, _AT_LEAST, _HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_UNKNOWN = 0x00050000 | errno.ENOSYS
# clone3 keeps what it makes in memory that a filter does not see, so libraries are sent back to clone.
_CLONE3, _THREAD = 435, 0x00010000
_X32 = 0x40000000  # the same calls by other numbers
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


def limit(seconds: int, memory: int, file: int) -> None:
    """Limits that cannot be taken back.

    Raises:
        OSError: this system does not have them.
    """
    for what, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (value, value))
    _filter()
    try:
        socket.socket().close()
    except PermissionError:
        return
    raise OSError("a socket could be made all the same")


def _filter() -> None:
    if platform.machine() not in _CALLS:
        raise OSError(f"system calls of {platform.machine()} are not known here")
    architecture, calls, clone = _CALLS[platform.machine()]
    lines = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in calls.values():
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    lines += [
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _UNKNOWN),
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, 16),
        (_HAS, 1, 0, _THREAD),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HP", len(lines), ctypes.addressof(code)))
    call = ctypes.CDLL(None, use_errno=True).prctl
    call.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    if call(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or call(_SECCOMP, _FILTER, ctypes.addressof(program), 0, 0):
        raise OSError(ctypes.get_errno(), f"no seccomp filter: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Limit, run, say."""
    pipe, seconds, memory, file = map(int, sys.argv[1:])
    token, _, program = sys.stdin.buffer.read().decode().partition("\n")
    sys.argv = [""]
    try:
        limit(seconds, memory, file)
    except (OSError, ValueError) as error:
        os.write(pipe, f"unlimited: {error}".encode())
        return
    said = token
    try:
        exec(program, {"__name__": "__main__"})
    except MemoryError:
        said = "out of memory"
    except PermissionError:
        said = "refused by a limit"
    except BaseException:  # whatever the program raises, its exit among it
        said = "failed"
    os.write(pipe, said.encode())


if __name__ == "__main__":
    main()
