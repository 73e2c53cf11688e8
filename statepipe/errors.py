"""The error tree. One class is one kind of outcome and one exit code; `cli` maps them in one place.

    StatepipeError            1   foreseen failure: no such file, disk full, refused
    ├── UsageError            2   the command line cannot be what was meant
    ├── IntegrityError        3   corrupt, cut short, wrong digest
    │   └── TruncatedError    3   the bytes stop before their own end mark
    ├── NoKeyError            4   no identity opens this stream
    ├── PeerError             5   the other host or the network between
    ├── QemuError             6   QEMU refused or failed
    │   ├── QemuRefused       6   QEMU said no
    │   ├── QemuGone          6   QEMU went away
    │   └── QemuSilent        6   QEMU has not answered: what it was told, it may do yet
    └── InterruptedBySignal 128+n a signal asked us to stop

Every error may name the stage it arose in, the byte offset in that stage's input, how many bytes the stage had put
out, and a hint: the next thing for the user to try.
"""

from __future__ import annotations

import signal


class StatepipeError(Exception):
    """A failure we foresaw. `str(error)` is one line without the stage, the offset or the hint."""

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


class UsageError(StatepipeError):
    """The command line is not a sentence of ours."""

    exit_code = 2


class IntegrityError(StatepipeError):
    """The bytes are not what was written."""

    exit_code = 3


class TruncatedError(IntegrityError):
    """The bytes end before their own end mark."""


class NoKeyError(StatepipeError):
    """No identity at hand opens this stream."""

    exit_code = 4


class PeerError(StatepipeError):
    """The other host, or the network to it, failed."""

    exit_code = 5


class QemuError(StatepipeError):
    """QEMU refused a command, reported failure, or is gone."""

    exit_code = 6


class QemuRefused(QemuError):
    """QEMU said no, in its own words."""


class QemuGone(QemuError):
    """QEMU, or the connection to it, ended before it said what we waited for."""


class QemuSilent(QemuError):
    """QEMU has not answered in time. It may still do what it was told: nobody may say that it failed."""


class InterruptedBySignal(StatepipeError):
    """A signal asked us to stop; the exit code is 128 + its number, as a shell would report it."""

    def __init__(self, number: int, message: str | None = None) -> None:
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
