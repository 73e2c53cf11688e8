"""QEMU's side of a migration: start it on a descriptor, wait for its end, undo it, and say what QEMU reports.

An outgoing stream leaves QEMU through a socketpair (`fd:`, the descriptor handed over by getfd). Unlike `exec:`, QEMU
then waits for no program's exit, the migration can be cancelled at any moment, and the other direction is the return
path. Shutting our end down frees a QEMU that is blocked in a write, even when its monitor no longer answers.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from statepipe.ends.fd import FdSource, write_all
from statepipe.errors import QemuError, QemuGone, QemuRefused
from statepipe.processes import hold_if_seen
from statepipe.qemu.holders import lock_hint
from statepipe.qemu.runstates import FINAL, SENT
from statepipe.stage import Buffer
from statepipe.typed import TYPE_CHECKING, Any, Self
from statepipe.wakeups import polled

if TYPE_CHECKING:  # it takes 25 ms, in which a QEMU can start
    from statepipe.qemu.monitor import Monitor

FD_NAME = "statepipe"
"""The name of the descriptor in QEMU; the next one that is handed over under this name replaces it."""

PATIENCE = 10.0
"""Seconds after which a QEMU that reports no event is asked again."""

_OUTCOMES = {"completed": "completed", "failed": "failed", "cancelled": "was cancelled"}


class Outgoing:
    """One outgoing migration of the guest behind `monitor`.

    `is_begun` says that QEMU was told to migrate and has not refused: before that, whatever QEMU reports of a migration
    is about another client's.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.is_begun = False

    def start(self, fd: int) -> None:
        """Tell QEMU to migrate into a descriptor of ours; QEMU keeps a duplicate. Raises QemuError."""
        self._monitor.give(fd, FD_NAME)
        self.is_begun = True
        try:
            self._monitor.migrate(f"fd:{FD_NAME}")
        except QemuRefused:
            self.is_begun = False
            raise


class OutgoingSocket:
    """The socketpair that QEMU migrates into. `source` yields the stream; it and the socket are closed on leaving.

    After `idle` milliseconds without a byte, `source` yields a flush mark.
    """

    def __init__(self, idle: int) -> None:
        self._ours, self._theirs = socket.socketpair()
        self.fd = self._ours.fileno()
        self.source = FdSource(self.fd, "the migration socket", idle)

    def start(self, migration: Outgoing) -> None:
        """Tell QEMU to migrate into it. Raises QemuError."""
        with self._theirs:
            migration.start(self._theirs.fileno())

    def answer(self, message: Buffer) -> bool:
        """Write to the return path. True even if QEMU has closed it, as it does when the migration is cancelled too:
        only the monitor tells whether QEMU has gone."""
        with suppress(BrokenPipeError):
            write_all(self.fd, message)
        return True

    def shut(self) -> None:
        """Send and receive nothing more, and end every wait for the other end, QEMU's included."""
        with suppress(OSError):  # QEMU closed it first
            self._ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close our end: QEMU's next write fails."""
        self._ours.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.source.__exit__()
        self._theirs.close()
        self._ours.close()


def start_incoming(monitor: Monitor, theirs: socket.socket, *, stays: bool = False) -> None:
    """Tell a QEMU that waits for a guest to load it from `theirs`, which is closed here, and to keep it paused then.

    A QEMU that was started without -S would run it by itself. If another process has the lock of a disk, QEMU 10 and
    later then never runs it: it stays in `inmigrate`, where `cont` is answered and does nothing. `stop` comes only when
    QEMU has agreed, since another client's guest is to run; and before the first byte.

    With `stays`, a QEMU that can (9.1 and later) does not exit if the migration fails, so that its monitor still tells
    why. Raises QemuError.
    """
    with theirs:
        monitor.give(theirs.fileno(), FD_NAME)
        monitor.expect_incoming()
        uri = f"fd:{FD_NAME}"
        if stays:
            try:
                monitor.execute("migrate-incoming", uri=uri, exit_on_error=False)
                monitor.execute("stop")
                return
            except QemuRefused as error:
                if "exit-on-error" not in str(error):  # else an older QEMU, which does not know the argument
                    raise
        monitor.execute("migrate-incoming", uri=uri)
        monitor.execute("stop")


def outcome(monitor: Monitor, patience: float = PATIENCE, *, cancels: bool = False) -> dict[str, Any]:
    """Return query-migrate's answer once the migration has ended; at once if there was none ("none").

    With `cancels`, first cancel it if it is under way; not once an event has reported that ours broke off: then it is
    another client's. Without the capability `events`, QEMU is asked every `patience` seconds. Raises QemuError.
    """
    figures = monitor.migration()
    if figures["status"] == "none":
        return figures
    if cancels and monitor.broken_off is None and figures["status"] not in FINAL:
        monitor.execute("migrate_cancel")
    return monitor.migration_outcome(patience)


def reported(figures: dict[str, Any], otherwise: str = "") -> str:
    """What query-migrate's answer says, as a sentence with QEMU's reason, or `otherwise` if it has none."""
    status = figures["status"]
    if status == "none":
        return "QEMU has not begun the migration"
    reason = f": {why}" if (why := figures.get("error-desc") or otherwise) else ""
    return f"QEMU reports that the migration {_OUTCOMES.get(status, f'is {status}')}{reason}"


def demand_completed(figures: dict[str, Any], otherwise: str = "it gives no reason") -> dict[str, Any]:
    """Return the figures of a migration that has ended. Raises QemuError unless it completed."""
    if figures["status"] != "completed":
        why = figures.get("error-desc") or ""
        far = "the QEMU at the other end could not load the guest; its own messages say why"
        hint = lock_hint(why) or (far if "Sibling indicated error" in why else None)
        raise QemuError(reported(figures, otherwise), hint=hint)
    return figures


def resume_stopped(monitor: Monitor) -> None:
    """Resume a guest that was stopped for a migration, unless it runs or QEMU has sent all of it. Raises QemuError.

    A guest that was sent stays stopped: another QEMU may run it by now.
    """
    monitor.wait_until_running()
    if monitor.run_state() in ("paused", SENT) and not monitor.has_sent():
        monitor.resume()


def end_qemu(monitor: Monitor) -> None:
    """Tell QEMU to end; it may end before its answer is out. Raises QemuError."""
    with suppress(QemuGone):
        monitor.execute("quit")


class ProcessWatch:
    """Watches a process that we need not have started. If it is not known or not to be seen, `fd` is None, and it was
    never seen to have ended."""

    def __init__(self, pid: int) -> None:
        self.fd = hold_if_seen(pid)

    @property
    def fds(self) -> dict[str, int]:
        """The pidfd under its name in the guardian's notes, if there is one."""
        return {} if self.fd is None else {"pidfd": self.fd}

    def has_ended(self, patience: int = 0) -> bool:
        """Whether it was seen to have ended, within so many milliseconds."""
        return self.fd is not None and bool(polled(self.fd).poll(patience))

    def close(self) -> None:
        """Watch no more; a second call does nothing."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
