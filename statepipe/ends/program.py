"""Run a program and exchange data with it over its standard input and output; it is always ended and reaped.

It shares our standard error for its messages. Secrets go through the pipe, never through its arguments or environment.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from statepipe.ends.fd import failure, write_all
from statepipe.processes import Process

READ_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Program:
    """A running program, and our ends of its pipes."""

    name: str
    writing: int
    reading: int

    def write(self, data: bytes) -> None:
        """Write to its standard input. Raises StatepipeError if the program no longer reads."""
        try:
            write_all(self.writing, data)
        except OSError as error:
            raise failure(f"talk to {self.name}", error) from error

    def said(self) -> Iterator[bytes]:
        """Yield its output as it arrives, until it closes its standard output."""
        while data := os.read(self.reading, READ_SIZE):
            yield data


@contextmanager
def program(command: Sequence[str]) -> Iterator[Program]:
    """Start a command; at the exit it is killed and reaped. Raises StatepipeError if it cannot be started.

    It stays in our session, because an age plugin asks for a PIN at the terminal itself.
    """
    with ExitStack() as ours, ExitStack() as its:
        there, writing = os.pipe()
        its.callback(os.close, there)
        ours.callback(os.close, writing)
        reading, here = os.pipe()
        its.callback(os.close, here)
        ours.callback(os.close, reading)
        process = Process(command, {0: there, 1: here, 2: 2}, apart=False)
        ours.callback(process.reap)
        ours.callback(process.send, signal.SIGKILL)
        its.close()
        yield Program(command[0], writing, reading)
