"""Signals as exceptions, in one place.

SIGINT, SIGTERM and SIGHUP end a command like any other failure: an exception in the main thread, so that every
`finally` on the way runs, and the exit code 128 + n. One signal is enough: those that follow are ignored while
things are put in order. `held` keeps them back over the few steps that must happen together, as between a file
getting its name and QEMU being told of it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from statepipe.errors import InterruptedBySignal

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise InterruptedBySignal(number)


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Within it, an ending signal raises InterruptedBySignal. One that was ignored (nohup) stays ignored."""
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Within it, ending signals wait."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
