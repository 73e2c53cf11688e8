"""statepipe as a process: started, fed, watched through its pipes, and always reaped."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from struct import unpack
from typing import Any

from tests import streams, warm

STREAM = streams.setup() + streams.ram(streams.ordinary(0, "pc.ram"), *map(streams.zero, range(1, 64)))
STREAM += streams.ram(streams.LAST, kind=3) + streams.devices() + b"\0" + streams.vmdesc(*streams.DEVICES)
"""A whole migration stream without a return path, as `exec:` gives by default."""

STATEPIPE = (sys.executable, "-m", "statepipe")
PATIENCE = 60


NEWS = re.compile(
    rb"statepipe: \w+: (nothing has arrived from \S+ for \d+ s( \(.*\))?; waiting up to \d+ s"
    rb"|\S+ is back after \d+ s)\n"
)


def beside_news(said: bytes) -> bytes:
    """What was said, without the news of links that are silent for seconds: a busy host makes them true."""
    return NEWS.sub(b"", said)


def run(*arguments: str, data: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command line to its end; standard input is `data` unless `stdin` says otherwise."""
    if "stdin" not in options:
        options["input"] = data
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": PATIENCE} | options
    return warm.run([*STATEPIPE, *arguments], **options)


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process with pipes at all its ends; killed and reaped on the way out if it has not ended."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    process = warm.Popen(command, **(pipes | options))
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


def waiting(pipe: Any) -> int:
    """How many bytes are in a pipe, seen from either end."""
    count: int = unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return count


def wait_until_read(process: subprocess.Popen[bytes]) -> None:
    """Until the process has taken all that is in its standard input's pipe: then it is at work."""
    wait(process, lambda: waiting(process.stdin) == 0)


def wait_until_full(process: subprocess.Popen[bytes], count: int) -> None:
    """Until so many bytes that nobody reads are in its standard output's pipe."""
    wait(process, lambda: waiting(process.stdout) >= count)


def wait(process: subprocess.Popen[bytes], reached: Any) -> None:
    """Look again each millisecond that the process lives."""
    pidfd = os.pidfd_open(process.pid)
    try:
        for _ in range(PATIENCE * 1000):
            if reached():
                return
            assert not select.select([pidfd], [], [], 0.001)[0], f"it ended: {process.stderr.read()!r}"
        raise AssertionError("it never came so far")
    finally:
        os.close(pidfd)


def stop(process: subprocess.Popen[bytes], number: signal.Signals) -> tuple[int, bytes]:
    """Send it a signal; its exit status and what it said."""
    process.send_signal(number)
    status = process.wait(PATIENCE)
    return status, process.stderr.read()


def children(pid: int) -> list[str]:
    """The processes that `pid` has started and not reaped."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def assert_one_error(said: bytes, verb: str, *words: str) -> None:
    """One error line that says these words, then at most a hint; no traceback."""
    lines = said.decode().splitlines()
    assert lines and lines[0].startswith(f"statepipe: {verb}: error: "), said
    assert all(line.startswith("statepipe: hint: ") for line in lines[1:]) and len(lines) <= 2, said
    for word in words:
        assert word in lines[0], said


def left(mark: str) -> list[str]:
    """The processes, zombies and this one aside, that have a mark in their environment: `NAME=VALUE`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if int(pid) != os.getpid() and f"{mark}\0".encode() in file.read():
                    found.append(pid)
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found


def assert_none_left(mark: str) -> None:
    """What has been killed is given the time to die: it may have to wait for a core."""
    for pid in left(mark):
        try:
            pidfd = os.pidfd_open(int(pid))
        except ProcessLookupError:
            continue
        ended = select.select([pidfd], [], [], PATIENCE / 4)[0]
        os.close(pidfd)
        assert ended, f"{pid} lives on"
