"""What a stage may use of the world outside its stream. cli makes the real one, tests make theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, Self, TextIO

from statepipe.stage import Buffer

Secret = Callable[[], bytes | None]
"""Gives a passphrase, None if there is none. It may ask a person: it is called once all else is right."""


class Output(Protocol):
    """A file that appears under its name only by `commit`; leaving the context without it leaves no trace."""

    bytes: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def write(self, buffer: Buffer) -> None: ...

    def commit(self) -> None: ...


class NewFile(Protocol):
    """Begins a file by name, of that mode less the umask, or what is written to a descriptor that the name stands for.

    Raises StatepipeError where it cannot be."""

    def __call__(self, path: str, mode: int = 0o600, /) -> Output: ...


class Talking(Protocol):
    """A program that was started to talk with."""

    def write(self, data: bytes) -> None: ...

    def said(self) -> Iterator[bytes]: ...


class GuestMemory(Protocol):
    """A RAM block, seen from outside: qemu/memory.py."""

    touched: bytes

    def whole(self, first: int) -> float: ...

    def rewritten(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Context:
    """`messages` is for people, `warn` takes what they should know; `clock` gives monotonic seconds.

    `ask` shows a prompt at the terminal and returns the secret that was typed; it raises StatepipeError where there
    is no terminal. `new_file` begins a file. `program` starts a command
    and ends it with the context that it gives; it raises StatepipeError. `status` tells how the whole command goes,
    as pipeline/job.py has it, None when it is at nothing. `report` has that written, as JSON
    lines, to a descriptor. `memory` looks at the RAM block of so many bytes of the QEMU whose stream this is; None
    where it is not to be seen.
    """

    messages: TextIO
    warn: Callable[[str], None]
    clock: Callable[[], float]
    ask: Callable[[str], str]
    new_file: NewFile
    program: Callable[[Sequence[str]], AbstractContextManager[Talking]]
    status: Callable[[], dict[str, Any] | None]
    report: Callable[[int], None]
    memory: Callable[[int], GuestMemory | None] = lambda size: None
