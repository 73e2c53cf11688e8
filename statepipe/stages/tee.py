"""tee: write a copy to a file, which exists only if the whole stream has passed.

A buffer is written to the copy before it is passed on. The file gets its name after a clean end of the stream, when the
last buffer has been taken. A copy that fails is an error of the whole, or is abandoned with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.stage import Buffer, Stage
from statepipe.stages.context import NewFile, OutputFile

WARN = "warn"
"""The value of --on-error with which a failed copy is abandoned."""


def tee(path: str, new_file: NewFile, give_up: Callable[[str], None] | None = None) -> Stage:
    """Return a stage that passes everything on and writes it to the file `path`.

    It raises StatepipeError if the file cannot be written. With `give_up`, it calls that once with the reason instead,
    and the stream continues without the copy.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        copy: OutputFile | None = None
        with ExitStack() as opened:

            def begin() -> None:
                nonlocal copy
                copy = opened.enter_context(new_file(path))

            def attempt(step: Callable[..., None], *arguments: Buffer) -> None:
                nonlocal copy
                try:
                    step(*arguments)
                except InterruptedBySignal:
                    raise
                except StatepipeError as error:
                    if give_up is None:
                        raise
                    give_up(f"the copy is abandoned: {error}")
                    copy = None
                    opened.close()

            attempt(begin)
            for buffer in upstream:
                if copy is not None and len(buffer):
                    attempt(copy.write, buffer)
                yield buffer
            if copy is not None:
                attempt(copy.commit)

    return stage
