"""System calls that a kernel does not know, or that a sandbox refuses: a seccomp filter before a command."""

from __future__ import annotations

import platform
import sys

import pytest

NUMBERS = {
    "eventfd2": 290,
    "flock": 73,
    "fsync": 74,
    "linkat": 265,
    "memfd_create": 319,
    "pidfd_open": 434,
    "pidfd_send_signal": 424,
    "pipe2": 293,
    "renameat2": 316,
    "sched_getaffinity": 204,
    "sendfile": 40,
    "splice": 275,
    "tee": 276,
    "userfaultfd": 323,
}
"""Of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)."""

FILTER = """
import ctypes, os, struct, sys

error, numbers, command = int(sys.argv[1]), [int(each) for each in sys.argv[2].split(",")], sys.argv[3:]
LOAD, IS, RETURN, ALLOW, ERRNO = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000
steps = [(LOAD, 0, 0, 0)]
for number in numbers:
    steps += [(IS, 0, 1, number), (RETURN, 0, 0, ERRNO | error)]
steps.append((RETURN, 0, 0, ALLOW))
program = b"".join(struct.pack("HBBI", *step) for step in steps)
held = ctypes.create_string_buffer(program, len(program))
described = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(held)), 16)
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
if libc.prctl(22, 2, described, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    sys.exit(f"no filter: {os.strerror(ctypes.get_errno())}")
os.execvp(command[0], command)
"""


def refusing(error: int, *calls: str) -> list[str]:
    """What stands before a command line to have these calls fail with an errno, in it and in all that it starts."""
    if platform.machine() != "x86_64":
        pytest.skip("the numbers are those of x86-64")
    return [sys.executable, "-c", FILTER, str(error), ",".join(str(NUMBERS[call]) for call in calls)]
