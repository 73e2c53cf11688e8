"""What a stage may use outside its stream: the terminal, the clock, new files, programs. cli/ makes the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from statepipe.stage import Buffer
from statepipe.typed import Any, NamedTuple, Protocol, Self, TextIO

Secret = Callable[[], bytes | None]
"""Returns a passphrase, or None if there is none. It may ask the user, so it is called after all other checks."""


class OutputFile(Protocol):
    """A file that gets its name only by `commit`; without it, leaving the context removes every trace."""

    bytes: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def write(self, buffer: Buffer) -> None: ...

    def commit(self) -> None: ...


class NewFile(Protocol):
    """Opens a new file with that mode less the umask, or the descriptor that the path stands for (/dev/fd/3).

    Raises StatepipeError if it cannot be written.
    """

    def __call__(self, path: str, mode: int = 0o600, /) -> OutputFile: ...


class Talking(Protocol):
    """A running program: `write` to its input; `said` yields its output."""

    def write(self, data: bytes) -> None: ...

    def said(self) -> Iterator[bytes]: ...


class GuestMemory(Protocol):
    """A RAM block of a running QEMU (qemu/memory.py)."""

    touched: bytes

    def whole(self, first: int) -> float: ...

    def rewritten(self) -> float | None: ...


class Context(NamedTuple):
    """`messages` is a file for people; `warn` prints a warning; `clock` returns monotonic seconds.

    `ask` shows a prompt at the terminal and returns the secret that was typed; it raises StatepipeError without a
    terminal. `new_file` opens a file. `program` starts a command, which ends with the returned context; it raises
    StatepipeError. `status` returns the status of the whole command (pipeline/job.py), None if it has no work.
    `report` writes that status to a descriptor as JSON lines. `memory` returns the RAM block of a given size of the
    QEMU whose stream this is, or None if it cannot be seen.
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
