"""Signals as exceptions, in one place.

SIGINT, SIGTERM and SIGHUP end a command like any other failure: with an exception in the main thread, so that every
`finally` runs, and the exit code 128 + n. Further signals are ignored during the clean-up. `held` blocks signals during
steps that belong together, such as naming a file and reporting that to QEMU.

Python handles a signal between two bytecodes: one that arrives just before a system call, or in another thread, would
wait until that call ends, and a write into a full pipe may never end. So a thread of ours gets each signal at once
through the wake-up descriptor, and sends it to the main thread again until it is handled.

SIGUSR1 requests a status. That thread answers it at any time, even if the main thread is busy; interrupted system calls
continue (SA_RESTART).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.threads import ENDING, RAISED, held, start

__all__ = ["ASKING", "ENDING", "as_exceptions", "forget_late", "heard", "held", "ignore"]

ASKING = signal.SIGUSR1


def _stop(number: int, frame: FrameType | None) -> None:
    ignore()
    RAISED.append(number)
    raise InterruptedBySignal(number)


def ignore() -> None:
    """Ignore ending signals from now on: only the clean-up or the report is left.

    Does nothing outside `as_exceptions`, where the signals belong to the host program.
    """
    for each in _HEARD:
        signal.signal(each, signal.SIG_IGN)


_HEARD: list[int] = []
"""The signals that end the context of `as_exceptions`."""


def heard() -> list[int]:
    """Return the signals that may end us: all but those that were ignored from the start."""
    return list(_HEARD) or [each for each in ENDING if signal.getsignal(each) is not signal.SIG_IGN]


def forget_late() -> None:
    """Drop pending signals, within `held`, after the work is done: they came too late to undo it.

    Only inside `as_exceptions`: elsewhere they belong to the program that uses the library.
    """
    while _HEARD and signal.sigtimedwait(ENDING, 0) is not None:
        continue


def _note(number: int, frame: FrameType | None) -> None:
    """Do nothing: the thread of `_insisted` answers."""


@contextmanager
def as_exceptions(tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """During the context, an ending signal raises InterruptedBySignal, and SIGUSR1 calls `tell` in another thread.

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
        RAISED.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


INSIST = 0.05
"""Seconds between two attempts to interrupt the main thread."""


@contextmanager
def _insisted(tell: Callable[[], None]) -> Iterator[None]:
    """During the context, no system call of the main thread outlasts a signal for `_stop`."""
    try:
        reading, writing = os.pipe()
    except OSError as error:
        what = f"cannot create a pipe: pipe2: {error.strerror}"
        raise StatepipeError(what, hint="check 'ulimit -n' and the rules of the sandbox") from error
    os.set_blocking(writing, False)
    main, done = threading.get_ident(), threading.Event()

    def insist() -> None:
        while number := os.read(reading, 1):  # each byte is the number of a signal that Python has noted
            if number[0] == ASKING and signal.getsignal(ASKING) is _note:
                tell()
            while signal.getsignal(number[0]) is _stop and not done.wait(INSIST):  # `_stop` replaces itself
                signal.pthread_kill(main, number[0])

    thread = threading.Thread(target=insist, name="signals", daemon=True)
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
