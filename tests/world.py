"""The world as a test lets a stage see it: messages kept, the real clock, real files, nobody at the terminal."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

from statepipe.ends.file import FileSink
from statepipe.ends.program import program
from statepipe.errors import StatepipeError
from statepipe.stages.context import Context


def world(messages: io.StringIO | None = None, clock: Callable[[], float] = time.monotonic) -> Context:
    """A context that writes messages and warnings to `messages`."""
    said = messages if messages is not None else io.StringIO()
    return Context(said, lambda text: print(text, file=said), clock, _nobody, FileSink, program, _at_nothing, _report)


def _nobody(prompt: str) -> str:
    raise StatepipeError(f"there is no terminal to ask at: {prompt}")


def _at_nothing() -> dict[str, Any] | None:
    return None


def _report(fd: int) -> None:
    raise AssertionError("this test has no descriptor to report to")
