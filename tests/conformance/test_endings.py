"""Every filter as a process, ended at moments that a seed chooses: how it ends, what it says, what it leaves."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.adapters import ADAPTERS, filter_of
from tests.conformance.running import PATIENCE, STATEPIPE, assert_none_left, assert_one_error, started, wait
from tests.conformance.test_commands import command, every_filter, fed, plain, without_bar

Process = subprocess.Popen[bytes]

SEEDS = range(2)


@contextmanager
def at_work(name: str, folder: Path, moment: int) -> Iterator[Process]:
    """The filter at work, `moment` bytes of its input written, more to come, and its output read as it comes."""
    words = [*STATEPIPE, *command(name)]
    with started(words, cwd=folder) as process:
        assert process.stdin
        wait(process, lambda: (runtime_of() / str(process.pid)).exists())
        drain = threading.Thread(target=read_all, args=(process.stdout,))
        drain.start()
        process.stdin.write(fed(name)[:moment])
        yield process
        process.kill()
        drain.join()


def read_all(pipe: Any) -> None:
    while pipe.read(1 << 16):
        continue


def runtime_of() -> Path:
    return Path(os.environ["XDG_RUNTIME_DIR"], "statepipe")


def assert_nothing_left(folder: Path) -> None:
    assert os.listdir(runtime_of()) == []
    assert os.listdir(folder) == []
    assert_none_left(f"XDG_RUNTIME_DIR={os.environ['XDG_RUNTIME_DIR']}")


@every_filter
@pytest.mark.parametrize(("seed", "number"), [(0, signal.SIGINT), (1, signal.SIGTERM)])
def test_a_signal_at_any_moment(name: str, seed: int, number: signal.Signals, tmp_path: Path) -> None:
    moment = random.Random(f"{name} {seed} {number}").randrange(len(fed(name)))
    with at_work(name, tmp_path, moment) as process:
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
        assert process.stderr
        assert_one_error(without_bar(process.stderr.read()), filter_of(name), f"stopped by {number.name}")
        assert_nothing_left(tmp_path)


@every_filter
@pytest.mark.parametrize("seed", SEEDS)
def test_a_reader_that_leaves_at_any_moment(name: str, seed: int, tmp_path: Path) -> None:
    most = 1 << (18 if ADAPTERS[name].slow else 20)  # what is left is more than a pipe holds
    taken = random.Random(f"{name} {seed}").randrange(most)
    (tmp_path / "fed").write_bytes(fed(name))
    with open(tmp_path / "fed", "rb") as source, started([*STATEPIPE, *command(name)], stdin=source) as process:
        assert process.stdout and process.stderr
        left = taken
        while left and (part := process.stdout.read(left)):
            left -= len(part)
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert without_bar(process.stderr.read()) == b""
        (tmp_path / "fed").unlink()
        assert_nothing_left(tmp_path)


@every_filter
def test_a_reader_of_a_thousand_bytes_a_second(name: str, tmp_path: Path) -> None:
    """For half a second, then faster: all is there."""
    (tmp_path / "fed").write_bytes(fed(name))
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    never = os.eventfd(0)
    words = [*STATEPIPE, *command(name)]
    with ours, open(tmp_path / "fed", "rb") as source, started(words, stdin=source, stdout=theirs) as process:
        theirs.close()
        out = bytearray()
        for _ in range(5):
            out += ours.recv(100)
            select.select([never], [], [], 0.1)  # the rate itself: nothing is waited for
        while part := ours.recv(1 << 20):
            out += part
        assert process.wait(PATIENCE) == 0
    os.close(never)
    assert ADAPTERS[name].undo(bytes(out)) == plain(name)
