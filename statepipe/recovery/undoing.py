"""Undo what one outgoing stream changed at QEMU and its guest, if the stream does not arrive.

We undo it ourselves as far as QEMU answers. The guardian, which hears of each step before QEMU does, undoes it if we
are killed or QEMU does not answer us.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress

from statepipe.errors import InterruptedBySignal, QemuError, QemuGone, StatepipeError, TruncatedError
from statepipe.qemu.migration import Outgoing, ProcessWatch, outcome, reported, resume_stopped
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.runstates import FINAL, LIVE
from statepipe.qemu.settings import are_restored
from statepipe.recovery.guardian import Guardian
from statepipe.recovery.rescue import socket_of
from statepipe.typed import Any

END_TIME = 2000
"""Milliseconds in which QEMU's process ends after its monitor broke off, if it does."""


class Undoing:
    """Undoes a stream of the guest behind `monitor`, whose socket is `qmp`.

    `migration` is QEMU's side of the stream. `stopped` is when a guest that ran was stopped for it (time.monotonic),
    None if it was not.
    """

    def __init__(self, guardian: Guardian, monitor: Monitor, qmp: str) -> None:
        self._guardian, self._monitor, self._qmp = guardian, monitor, qmp
        self._known: Mapping[str, Any] = {}
        self._process: ProcessWatch | None = None
        self.migration = Outgoing(monitor)
        self.stopped: float | None = None

    def begin(self, was: str, before: Mapping[str, Any]) -> None:
        """Note that QEMU's settings are about to be changed; `was` is the guest's run state, `before` the settings as
        `adjust` returns them."""
        self._process = ProcessWatch(self._monitor.pid)
        self._known = facts_of("SENDING", self._qmp, self._monitor.pid, was, before)
        self._guardian.note(self._known, self._process.fds)

    def stop_guest(self) -> None:
        """Stop the guest. Raises QemuError, after which a second call tries again."""
        self._guardian.note({"stopped": True})
        if self.stopped is None and self._known.get("runs"):
            self.stopped = time.monotonic()
        self._monitor.execute("stop")

    @property
    def has_touched(self) -> bool:
        """Whether the guest was stopped, or QEMU may have begun to migrate it."""
        return self.stopped is not None or self.migration.is_begun

    def keep(self, snapshot: int) -> None:
        """Note our end of a snapshot's stream, which must be read to its end."""
        self._guardian.note({}, {"snapshot": snapshot})

    def undo(self, error: BaseException, *, cancels: bool = False, if_failed: str | None = None) -> BaseException:
        """Let QEMU end the migration and the guest run on if it was stopped for it; the hint of `error` says what QEMU
        reports of both. With `cancels`, a migration that is under way is cancelled; else its stream was broken off.
        `if_failed` is a hint for a migration that QEMU itself reports as failed.

        Return the error to raise: another one if `error` only shows that QEMU has ended. After an error that nobody
        foresaw, nothing is done here: the guardian acts then.
        """
        if isinstance(error, InterruptedBySignal):
            self._monitor.hurry()
        if isinstance(error, QemuGone) or not isinstance(error, StatepipeError) or not self.has_touched:
            return error
        said: list[str] = []
        failed = False
        try:
            if self.migration.is_begun:
                figures = outcome(self._monitor, cancels=cancels)
                failed = figures["status"] == "failed"
                said += [] if (words := reported(figures)) in str(error) else [words]
            if self.stopped is None:
                self._monitor.wait_until_running()
            else:
                resume_stopped(self._monitor)
            said += [f"the guest is {self._monitor.run_state()} here"]
        except QemuError as refused:
            error.hint = None  # it may say that the guest runs on
            error.advise(*said, str(refused), refused.hint)
            if isinstance(error, TruncatedError) and isinstance(refused, QemuGone):
                return QemuGone("QEMU went away before all of its guest was sent", hint=str(error))
        else:
            if isinstance(error, TruncatedError):
                error.hint = None  # it only guesses what QEMU now reports
            error.advise(*said, if_failed if failed else None, first=True)
        return error

    def over(self) -> None:
        """Nothing is to be undone any more, whatever happens."""
        self._known = {}
        self._guardian.note({"over": True})

    def close(self) -> None:
        """Close QEMU's process descriptor."""
        if self._process is not None:
            self._process.close()

    def is_done(self) -> bool:
        """Return whether nothing is left to undo: QEMU reports so, or its process was seen to have ended. If its
        process is not known, a monitor that broke off proves nothing. Raises QemuError."""
        if not self._known:
            return True
        try:
            is_ours = self.migration.is_begun and self._monitor.broken_off is None  # else it is another client's
            if is_ours and self._monitor.migration()["status"] not in ("none", *FINAL):
                return False
            state = self._monitor.run_state()
            as_before = state in LIVE if self._known["runs"] else state == self._known["was"]
            return (as_before or self._monitor.has_sent()) and are_restored(self._monitor, self._known["before"])
        except QemuGone:
            return self._process is not None and self._process.has_ended(END_TIME)


def facts_of(state: str, qmp: str, pid: int, was: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the guardian must know to undo changed settings: in which `state` of a journal, behind which monitor
    and of which process, the guest's run state before and the settings as `adjust` returns them."""
    known = {"state": state, "qmp": qmp, "pid": pid, "socket": socket_of(qmp)}
    return known | {"runs": was in LIVE, "was": was, "before": before}


@contextmanager
def undone(guardian: Guardian, monitor: Monitor, qmp: str) -> Iterator[Undoing]:
    """Undo what is done within: foreseen failures are undone there, and if QEMU is then not seen to be as before, the
    guardian undoes the rest once we have ended."""
    with closing(Undoing(guardian, monitor, qmp)) as undoing:
        try:
            yield undoing
        except StatepipeError as error:
            settle(guardian, error, undoing.is_done)
            raise


def settle(guardian: Guardian, error: StatepipeError, is_done: Callable[[], bool]) -> None:
    """Settle the guardian if all is seen to be undone; else leave it at work and say so in the error's hint."""
    with suppress(QemuError):
        if is_done():
            guardian.settle()
            return
    guardian.leave()
    if guardian.has_ended():
        hint = "statepipe's guardian has ended too: look at QEMU, whether its guest runs and its settings are as before"
    else:
        hint = (
            f"statepipe's guardian (process {guardian.pid}) restores the rest once QEMU answers, and reports the result"
        )
    error.advise(hint)
