"""Keeps all that a test's libvirtd starts: `python keep.py PROGRAM …`, and ends it when the test has ended.

libvirt's QEMUs are daemons: they outlive libvirtd, and they would outlive the test. Here they become our children,
because we are the nearest subreaper (prctl(2)). Those that end are reaped at once, as libvirtd waits for that. Each
line on standard input starts the program anew and is answered with its process id; at the end of the input, all our
descendants are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def children() -> list[int]:
    """Our children, also those that we became the parent of."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(folder.name))
    return found


def end_all() -> None:
    """Kill until there is none: whose parent we kill becomes our child."""
    while mine := children():
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # the kernel has reaped it
                os.waitpid(pid, 0)


def main(command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so the kernel reaps
    streams = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    try:
        for _ in sys.stdin:
            pid = os.posix_spawnp(command[0], command, os.environ, file_actions=streams, setsigdef=[signal.SIGCHLD])
            print(pid, flush=True)
    finally:
        end_all()


if __name__ == "__main__":
    main(sys.argv[1:])
