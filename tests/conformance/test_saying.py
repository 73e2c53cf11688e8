"""What is said on standard error, where nobody reads it."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.hurried import hurried

IN_A_THREAD = """
import os, threading
from statepipe.cli.messages import say

thread = threading.Thread(target=say, args=("statepipe: a word",), daemon=True)
thread.start()
thread.join(60)
os._exit(thread.is_alive())
"""


TERM = 15


@pytest.fixture
def full(pipe: tuple[int, int]) -> int:
    """A pipe that takes no more."""
    _, writing = pipe
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    return writing


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


def test_no_thread_stands_still_because_nobody_reads(full: int) -> None:
    """As one that carries a guest, or talks with its QEMU."""
    assert speak(full) == 0


DEAF = """
import os, signal, sys
from statepipe.cli import messages

messages.PATIENCE = 50
if sys.argv[1] == "ignored":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
messages.say("statepipe: a word")
os._exit(7)
"""


@pytest.mark.parametrize("how", ["ignored", "held back"])
def test_what_is_to_be_put_in_order_does_not_wait_for_a_terminal_that_is_held(full: int, how: str) -> None:
    """A signal has come, and no other ends the wait: the guest stood still behind it."""
    done = subprocess.run([sys.executable, "-c", DEAF, how], stderr=full, timeout=60)
    assert done.returncode == 7


def test_one_signal_ends_what_nobody_reads_the_end_of(full: int) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{folder}/qmp")
        silent.listen()
        command = [*hurried("cli.main.PATIENCE=1000"), "resolve", "--qmp", f"{folder}/qmp"]
        with subprocess.Popen(command, stderr=full) as process:
            try:
                with silent.accept()[0]:
                    process.send_signal(TERM)
                    assert process.wait(60) == 128 + TERM
            finally:
                process.kill()


def test_a_result_goes_to_its_end_also_where_others_made_its_pipe_non_blocking(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    full = b"x" * os.write(writing, b"x" * 8192)
    command = [sys.executable, "-m", "statepipe", "completion", "bash"]
    whole = subprocess.run(command, capture_output=True, check=True).stdout
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE) as process:
        got = b""
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for its reader
            process.wait(1)
        while len(got) < len(full + whole) and select.select([reading], [], [], 60)[0]:
            got += os.read(reading, 4096)
        assert process.stderr is not None
        assert (process.wait(60), process.stderr.read(), got) == (0, b"", full + whole)
