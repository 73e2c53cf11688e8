"""What is said on standard error, where nobody reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

IN_A_THREAD = """
import os, threading
from statepipe.cli.messages import say

thread = threading.Thread(target=say, args=("statepipe: a word",), daemon=True)
thread.start()
thread.join(60)
os._exit(thread.is_alive())
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def speak(writing: int) -> int:
    """The status of a process of which a thread has said a word; 1 if it could not go on."""
    return subprocess.run([sys.executable, "-c", IN_A_THREAD], stderr=writing, timeout=90).returncode


def test_a_thread_s_words_reach_who_reads(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    assert speak(writing) == 0 and os.read(reading, 100) == b"statepipe: a word\n"


def test_no_thread_stands_still_because_nobody_reads(pipe: tuple[int, int]) -> None:
    """As one that carries a guest, or talks with its QEMU."""
    _, writing = pipe
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    assert speak(writing) == 0
