"""tee: a second copy on the way, in a file that exists only if all of it has passed.

The copy is written before the buffer goes on, and gets its name when the stream has ended cleanly and the last buffer
has been taken from below. A copy that fails is a failure of the whole, or is given up with a warning, as asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.stage import Buffer, Stage
from statepipe.stages.context import NewFile, Output

WARN = "warn"
"""The policy under which a copy that fails is given up."""


def tee(path: str, new_file: NewFile, give_up: Callable[[str], None] | None = None) -> Stage:
    """A stage that passes everything on and makes the file `path` of it.

    Raises StatepipeError where the file cannot be made, unless there is `give_up`: it is told why, once, and the
    stream goes on alone.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        with _Copy(path, new_file, give_up) as copy:
            for buffer in upstream:
                copy.write(buffer)
                yield buffer
            copy.commit()

    return stage


class _Copy:
    """The file, until it is given up."""

    def __init__(self, path: str, new_file: NewFile, give_up: Callable[[str], None] | None) -> None:
        self._path, self._new_file, self._give_up = path, new_file, give_up
        self._opened = ExitStack()
        self._output: Output | None = None

    def __enter__(self) -> _Copy:
        self._attempt(self._open)
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def _open(self) -> None:
        self._output = self._opened.enter_context(self._new_file(self._path))

    def write(self, buffer: Buffer) -> None:
        if self._output is not None and len(buffer):
            output = self._output
            self._attempt(lambda: output.write(buffer))

    def commit(self) -> None:
        if self._output is not None:
            self._attempt(self._output.commit)

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except InterruptedBySignal:
            raise
        except StatepipeError as error:
            if self._give_up is None:
                raise
            self._give_up(f"the copy is given up: {error}")
            self._output = None
            self._opened.close()
