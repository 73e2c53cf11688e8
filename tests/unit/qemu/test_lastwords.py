"""What a QEMU says outside of its monitor: passed on, kept, and passed on still once nobody of ours is left."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from statepipe.qemu.lastwords import LastWords, Overheard, last_lines

PATIENCE = 30.0


def test_the_last_lines_that_say_something_are_one_line() -> None:
    lines = [b"first", b" the size is wrong\r", b"", b"a device", b"load failed: \xff", b"  "]
    assert last_lines(lines) == "the size is wrong / a device / load failed: \N{REPLACEMENT CHARACTER}"
    assert last_lines([]) == ""


LEAVES = """
import os, sys
from statepipe.processes import Process
from statepipe.qemu.lastwords import LastWords
words, heard = LastWords(), int(sys.argv[1])
os.set_inheritable(heard, False)
Process(["sh", "-c", "echo before >&2; exec cat >&2"], {0: heard, 1: 1, 2: words.fd})
words.begin()
sys.stdin.read()
words.hand_over(print)
"""
"""A process of ours that has a program say what comes in at a descriptor, hands it over at a word, and ends."""


def test_what_is_said_once_we_have_ended_is_passed_on_all_the_same() -> None:
    reading, writing = os.pipe()
    heard, speaks = os.pipe()
    with open(reading, "rb", buffering=0) as said, open(speaks, "wb", buffering=0) as mouth:
        command = [sys.executable, "-c", LEAVES, str(heard)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=writing, pass_fds=[heard]) as ours:
            os.close(writing)
            os.close(heard)
            assert read_line(said.fileno()) == b"before\n"
        assert ours.returncode == 0
        mouth.write(b"after\n")
        assert read_line(said.fileno()) == b"after\n"
        mouth.close()
        assert read_line(said.fileno()) == b""  # nothing is left behind


def test_what_cannot_be_passed_on_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU has its guest: without a descriptor for it, or a program, that its messages will be lost is said."""
    told: list[str] = []
    words = LastWords()
    qemu = os.dup(words.fd)
    words.begin()
    monkeypatch.setattr("os.open", no_descriptors)
    words.hand_over(told.append)
    assert told == ["QEMU's messages will be lost once statepipe has ended: [Errno 24] Too many open files"]
    os.write(qemu, b"as before\n")
    os.close(qemu)
    assert words.last() == "as before"


def no_descriptors(*words: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def read_line(fd: int) -> bytes:
    """A line, or nothing at the end."""
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([fd], [], [], PATIENCE)[0], line
        if not (data := os.read(fd, 1)):
            break
        line += data
    return line


SPEAKS = ["sh", "-c", "echo at its start >&2; echo; read line; echo $line >&2; echo"]


@pytest.mark.parametrize(
    ("target", "last", "where"),
    [
        ("LOG", "why", "its own messages are on its standard error, LOG, on its host"),
        (os.devnull, "", "its standard error is /dev/null, so its messages are lost: start it with 2> FILE"),
        (None, "", "its own messages are on its standard error on its host"),
    ],
)
def test_of_another_s_program_is_known_what_it_says_from_now_on_to_a_file(
    tmp_path: Path, target: str | None, last: str, where: str
) -> None:
    path = str(tmp_path / "log")
    with subprocess.Popen(
        SPEAKS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if target is None else os.open(target.replace("LOG", path), os.O_RDWR | os.O_CREAT),
        bufsize=0,
    ) as program:
        assert program.stdin is not None and program.stdout is not None
        program.stdout.readline()
        with (
            closing(Overheard(program.pid, os.geteuid())) as overheard,
            closing(Overheard(program.pid, os.geteuid() + 1)) as anothers,
        ):
            assert overheard.last() == ""
            program.stdin.write(b"why\n")
            program.stdout.readline()
            assert overheard.last() == last
            assert overheard.where == where.replace("LOG", path)
            assert (anothers.last(), anothers.where) == ("", overheard.where)  # another user's: nothing of it is read


def test_of_a_program_that_is_gone_nothing_is_known() -> None:
    with subprocess.Popen(["true"]) as program:
        program.wait()
    with closing(Overheard(program.pid, os.geteuid())) as overheard:
        assert (overheard.last(), overheard.where) == ("", "its own messages are on its standard error on its host")
