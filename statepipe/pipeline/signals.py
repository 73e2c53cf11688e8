"""Signals as exceptions, in one place.

SIGINT, SIGTERM and SIGHUP end a command like any other failure: an exception in the main thread, so that every
`finally` on the way runs, and the exit code 128 + n. One signal is enough: those that follow are ignored while
things are put in order. `held` keeps them back over the few steps that must happen together, as between a file
getting its name and QEMU being told of it.

Python acts on a signal between two bytecodes: one that comes in the instant before a system call, or to another
thread, would wait as long as that call does, and a write into a full pipe may last for ever. So a thread of ours
hears of each signal at once, by the wake-up descriptor, and sends it to the main thread again until it is acted on.

SIGUSR1 asks how it goes. That thread answers it by itself, at any time, however long the main one is busy; system
calls that it interrupts go on as if nothing had been (SA_RESTART).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.threads import ENDING, held, start

__all__ = ["ASKING", "ENDING", "as_exceptions", "forget_late", "heard", "held", "ignore"]

ASKING = signal.SIGUSR1


def _stop(number: int, frame: FrameType | None) -> None:
    ignore()
    raise InterruptedBySignal(number)


def ignore() -> None:
    """From now on ending signals come to nothing: it is over, and what is left is to put things in order or to tell.

    Outside of `as_exceptions`, where the signals are somebody else's, this does nothing.
    """
    for each in _HEARD:
        signal.signal(each, signal.SIG_IGN)


_HEARD: list[int] = []
"""The signals that end what `as_exceptions` has around it."""


def heard() -> list[int]:
    """The signals that may end us, whether or not one has come: all but those that were ignored from the start."""
    return list(_HEARD) or [each for each in ENDING if signal.getsignal(each) is not signal.SIG_IGN]


def forget_late() -> None:
    """Within `held`, once what was to be done is done: signals that came meanwhile came too late to deny it.

    Only where signals end a command (`as_exceptions`). In a program that uses the library they are that program's.
    """
    while _HEARD and signal.sigtimedwait(ENDING, 0) is not None:
        continue


def _note(number: int, frame: FrameType | None) -> None:
    """The thread of `_insisted` does the rest."""


@contextmanager
def as_exceptions(tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within it, an ending signal raises InterruptedBySignal, and SIGUSR1 calls `tell`, from a thread of its own.

    An ending signal that was ignored (nohup) stays ignored.
    """
    before = {number: signal.getsignal(number) for number in (*ENDING, ASKING)}
    for number, handler in before.items():
        if number == ASKING:
            signal.signal(number, _note)
        elif handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
            _HEARD.append(number)
    signal.siginterrupt(ASKING, False)
    try:
        with _insisted(tell):
            yield
    finally:
        _HEARD.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _pipe() -> tuple[int, int]:
    """The first of the many that we make. Raises StatepipeError."""
    try:
        return os.pipe()
    except OSError as error:
        what = f"no pipe can be made here: pipe2: {error.strerror}"
        raise StatepipeError(what, hint="look at ulimit -n, and at what the sandbox refuses") from error


INSIST = 0.05
"""Seconds between one attempt to interrupt the main thread and the next."""


@contextmanager
def _insisted(tell: Callable[[], None]) -> Iterator[None]:
    """Within it, no system call of the main thread outlasts a signal that `_stop` is to act on."""
    reading, writing = _pipe()
    os.set_blocking(writing, False)
    done = threading.Event()
    known = (reading, threading.get_ident(), done, tell)
    thread = threading.Thread(target=_insist, args=known, name="signals", daemon=True)
    start(thread)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        with held():
            signal.set_wakeup_fd(before)
            done.set()
            os.close(writing)
            thread.join()
            os.close(reading)


def _insist(reading: int, main: int, done: threading.Event, tell: Callable[[], None]) -> None:
    """Each byte is the number of a signal that Python has noted; acting on it puts another handler in its place."""
    while number := os.read(reading, 1):
        if number[0] == ASKING and signal.getsignal(ASKING) is _note:
            tell()
        while signal.getsignal(number[0]) is _stop and not done.wait(INSIST):
            signal.pthread_kill(main, number[0])
