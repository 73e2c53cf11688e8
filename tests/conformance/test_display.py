"""A display never holds a byte back, whatever its terminal does, and fits into it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.running import PATIENCE, STATEPIPE, started
from tests.qemu.harness import EXEC
from tests.terminal import at_terminal

DATA = bytes(3 << 20)
STOP = b"\x13"
"""What Ctrl-S types."""


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Its master and its slave."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def resize(slave: int, columns: int) -> None:
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))


def seen(master: int, patience: float = 0) -> str:
    """What has been shown and not yet been looked at, once there is something or the seconds are over."""
    found = b""
    while select.select([master], [], [], 0 if found else patience)[0]:
        found += os.read(master, 65536)
    return found.decode()


def test_a_terminal_that_was_stopped_holds_back_no_end(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    with started([*STATEPIPE, "progress"], stdout=subprocess.DEVNULL, stderr=slave) as process:
        process.stdin.write(DATA)
        assert seen(master, PATIENCE), "the bar is there"
        os.write(master, STOP)
        process.stdin.write(DATA)
        process.stdin.close()
        process.stdin = None
        assert process.wait(PATIENCE / 2) == 0


def test_a_log_that_nobody_reads_holds_back_no_end() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    with started([*STATEPIPE, "progress"], stdout=subprocess.DEVNULL, stderr=writing) as process:
        process.stdin.write(DATA)
        process.stdin.close()
        process.stdin = None
        assert process.wait(PATIENCE / 2) == 0
    os.close(reading)
    os.close(writing)


def test_a_background_job_is_not_stopped_by_its_bar(tmp_path: Path) -> None:
    """Neither for what it would draw meanwhile, nor for its last line, which is drawn at the end in any case."""
    (tmp_path / "in").write_bytes(DATA)
    job = f"(sleep 0.5; cat in) | {EXEC} progress >out 2>/dev/tty &"
    status, said = at_terminal(f"set -m; stty tostop; {job} wait $!; echo ended $?", [], tmp_path)
    assert (status, "ended 0" in said) == (0, True), said
    assert (tmp_path / "out").read_bytes() == DATA
    assert "%" not in said and "MiB" not in said and "3.0 MiB" not in said, "the terminal is left to others"


def test_a_bar_fits_into_a_terminal_that_is_made_narrower(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    resize(slave, 100)
    with started([*STATEPIPE, "progress", "--size", "6M"], stdout=subprocess.DEVNULL, stderr=slave) as process:
        process.stdin.write(DATA)
        while "%" not in seen(master, PATIENCE):
            continue
        resize(slave, 40)
        seen(master, PATIENCE)  # one that may have been on its way
        process.stdin.write(DATA)
        process.stdin.close()
        process.stdin = None
        assert process.wait(PATIENCE) == 0
        lines = re.split(r"[\r\n]+", seen(master))
    assert any("100%" in line for line in lines)
    assert max(map(len, lines)) < 40, lines


@pytest.mark.parametrize("columns", [0, 1, 12])
def test_a_terminal_of_any_width_shows_figures(terminal: tuple[int, int], columns: int) -> None:
    """One that does not tell its width is taken for an ordinary one."""
    master, slave = terminal
    resize(slave, columns)
    shown = ""
    with started([*STATEPIPE, "progress"], stdout=subprocess.DEVNULL, stderr=slave) as process:
        process.stdin.write(DATA)
        while len(re.findall(r"\r[^\r\n]", shown)) < 4:  # it is drawn again and again
            shown += seen(master, PATIENCE)
        process.stdin.close()
        process.stdin = None
        assert process.wait(PATIENCE) == 0
    shown += seen(master)
    assert "3.0 MiB"[: columns - 1 if 1 < columns < 6 else 5 if columns != 1 else 1] in shown, shown
    assert columns == 0 or max(map(len, re.split(r"[\r\n]+", shown))) < max(columns, 2)
