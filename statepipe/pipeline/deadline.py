"""A time limit for a command: when it passes, the command ends as by a signal, with everything undone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.pipeline.signals import heard
from statepipe.threads import beside


@contextmanager
def within(seconds: float | None, late: str) -> Iterator[Callable[[], None]]:
    """Limit the context to so many seconds (None: no limit), until the function that it gives is called.

    Raises StatepipeError with `late` and the seconds when they have passed.
    """
    if seconds is None:
        yield lambda: None
        return
    over, fell_due, turn = threading.Event(), threading.Event(), threading.Lock()

    def watch() -> None:
        over.wait(seconds)
        with turn:  # it may have ended meanwhile
            if not over.is_set():
                fell_due.set()
                os.kill(os.getpid(), signal.SIGTERM if signal.SIGTERM in heard() else signal.SIGINT)

    def in_time() -> None:
        with turn:
            over.set()

    try:
        with beside("deadline", watch, in_time):
            yield in_time
    except InterruptedBySignal as error:
        if fell_due.is_set():
            raise StatepipeError(f"{late} after {seconds:g} s", hint=error.hint) from error
        raise
