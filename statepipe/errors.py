"""The error tree. Each class is one kind of outcome with one exit code; `cli` maps them in one place.

    StatepipeError            1   foreseen failure: no such file, disk full, refused
    ├── UsageError            2   the command line is wrong
    ├── IntegrityError        3   corrupt, cut short, wrong digest
    │   └── TruncatedError    3   the data ends before its end mark
    ├── NoKeyError            4   no identity opens the stream
    ├── PeerError             5   the other host or the network between
    ├── QemuError             6   QEMU refused or failed
    │   ├── QemuRefused       6   QEMU refused a command
    │   ├── QemuGone          6   QEMU or its connection ended
    │   └── QemuSilent        6   QEMU did not answer in time, and may still act
    ├── ReaderGone          141   the reader of the output has closed it
    └── InterruptedBySignal 128+n a signal asked us to stop

Every error can name the stage in which it arose, the byte offset in that stage's input, the number of bytes that the
stage had output, and a hint: what the user should do next.
"""

from __future__ import annotations

import signal

ANOTHER_COPY = "what was read is damaged or incomplete: take another copy of it"
"""What to do about damage where nothing better is known."""


class StatepipeError(Exception):
    """A foreseen failure. `str(error)` is one line without the stage, the offset or the hint."""

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        stage: str | None = None,
        offset: int | None = None,
        out: int | None = None,
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.stage = stage
        self.offset = offset
        self.out = out

    def advise(self, *hints: str | None, first: bool = False) -> None:
        """Add hints behind the one that the error has, or before it with `first`. None and "" add nothing."""
        texts = (*hints, self.hint) if first else (self.hint, *hints)
        self.hint = "; ".join(filter(None, texts)) or None


class UsageError(StatepipeError):
    """The command line is wrong."""

    exit_code = 2


class IntegrityError(StatepipeError):
    """The data differs from what was written."""

    exit_code = 3


class TruncatedError(IntegrityError):
    """The data ends before its end mark."""


class NoKeyError(StatepipeError):
    """No identity opens the stream."""

    exit_code = 4


class PeerError(StatepipeError):
    """The other host, or the network to it, failed."""

    exit_code = 5


class QemuError(StatepipeError):
    """QEMU refused a command, reported a failure, or ended."""

    exit_code = 6


class QemuRefused(QemuError):
    """QEMU refused a command; the message is QEMU's."""


class QemuGone(QemuError):
    """QEMU, or the connection to it, ended before the expected answer or event."""


class QemuSilent(QemuError):
    """QEMU did not answer in time. It may still carry out the command, so the command must not count as failed."""


class ReaderGone(StatepipeError):
    """The reader of the output has closed it. The exit code is what a shell reports of SIGPIPE; cli prints nothing."""

    exit_code = 128 + signal.SIGPIPE


class InterruptedBySignal(StatepipeError):
    """A signal asked us to stop; the exit code is 128 + its number, as in a shell."""

    def __init__(self, number: int, message: str | None = None) -> None:
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
