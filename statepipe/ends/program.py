"""A program to talk with: started with pipes at its standard input and output, and always reaped.

Its standard error is ours, for its own words to people. What it must know goes through the pipe: nothing secret is
in its arguments or its environment.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from typing import IO, cast

from statepipe.ends.fd import failure
from statepipe.errors import StatepipeError

READ_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Program:
    """A running program."""

    name: str
    stdin: IO[bytes]
    stdout: BufferedReader

    def write(self, data: bytes) -> None:
        """Say it. Raises StatepipeError if the program no longer listens."""
        try:
            self.stdin.write(data)
            self.stdin.flush()
        except OSError as error:
            raise failure(f"talk to {self.name}", error) from error

    def said(self) -> Iterator[bytes]:
        """What it says, as it comes, until it says no more."""
        while data := self.stdout.read1(READ_SIZE):
            yield data


@contextmanager
def program(command: Sequence[str]) -> Iterator[Program]:
    """Start a command; on the way out it is ended and reaped. Raises StatepipeError if it cannot be started."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        hint = f"install {command[0]} in a folder of your PATH"
        raise StatepipeError(f"cannot start {command[0]}: {error.strerror}", hint=hint) from error
    stdin, stdout = cast(IO[bytes], process.stdin), cast(BufferedReader, process.stdout)
    try:
        yield Program(command[0], stdin, stdout)
    finally:
        process.kill()
        process.wait()
        stdout.close()
        with suppress(OSError):  # what it did not want to hear
            stdin.close()
