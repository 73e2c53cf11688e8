"""What is done to a guest for one stream of it, and how it is undone where that stream does not come to its end.

Here, as far as QEMU was seen to be as before; by the guardian, where we are killed or where QEMU does not answer us. It
hears each step before QEMU does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

from statepipe.errors import QemuError, QemuGone, QemuRefused, StatepipeError
from statepipe.processes import hold_if_seen
from statepipe.qemu.monitor import FINAL, Monitor
from statepipe.qemu.runstates import LIVE
from statepipe.qemu.settings import are_restored
from statepipe.recovery.guardian import Guardian, socket_of
from statepipe.wakeups import polled


class Undoing:
    """Of the guest behind `monitor`, whose socket is `qmp`. `is_begun` says that QEMU was told to migrate, and has not
    refused."""

    def __init__(self, guardian: Guardian, monitor: Monitor, qmp: str) -> None:
        self._guardian, self._monitor, self._qmp = guardian, monitor, qmp
        self._known: dict[str, Any] = {}
        self._process: int | None = None  # QEMU's pidfd
        self.is_begun = False

    def begin(self, was: str, before: Mapping[str, Any]) -> None:
        """QEMU's settings (settings.adjust gives `before`) are about to be changed, of a guest whose run state is
        `was`."""
        self._process = process_of(self._monitor)
        self._known = {"state": "SENDING", "qmp": self._qmp, "runs": was in LIVE, "was": was, "before": before}
        self._known["socket"] = socket_of(self._qmp)
        self._guardian.note(self._known, {} if self._process is None else {"pidfd": self._process})

    def stops(self) -> None:
        """The guest is about to be stopped."""
        self._guardian.note({"stopped": True})

    def migrate(self, uri: str) -> None:
        """Have QEMU migrate. Raises QemuError."""
        self.is_begun = True
        try:
            self._monitor.migrate(uri)
        except QemuRefused:
            self.is_begun = False
            raise

    def keep(self, snapshot: int) -> None:
        """`snapshot` is our end of a snapshot's stream, which must be read to its end."""
        self._guardian.note({}, {"snapshot": snapshot})

    def over(self) -> None:
        """There is nothing to undo any more, whatever comes."""
        self._known = {}
        self._guardian.note({"over": True})

    def close(self) -> None:
        """Let go of QEMU's process."""
        if self._process is not None:
            os.close(self._process)

    def _is_under_way(self) -> bool:
        """Whether QEMU reports a migration that may be ours: after an event that ours broke off, it is another
        client's. Raises QemuError."""
        if not self.is_begun or self._monitor.broken_off is not None:
            return False
        return self._monitor.migration()["status"] not in ("none", *FINAL)

    def is_done(self) -> bool:
        """Whether nothing is left to undo, as QEMU says, or because its process was seen to have ended. Where that is
        not known, a monitor that broke off says nothing of the guest. Raises QemuError."""
        if not self._known:
            return True
        try:
            if self._is_under_way():
                return False
            state = self._monitor.run_state()
            as_before = state in LIVE if self._known["runs"] else state == self._known["was"]
            return (as_before or self._monitor.has_sent()) and are_restored(self._monitor, self._known["before"])
        except QemuGone:
            return self._process is not None and bool(polled(self._process).poll(ENDING))


ENDING = 2000
"""Milliseconds in which the process ends of a QEMU whose monitor has broken off, if it does."""


def process_of(monitor: Monitor) -> int | None:
    """Return a pidfd of QEMU's process, or None as `hold_if_seen` does."""
    return hold_if_seen(monitor.pid)


@contextmanager
def undone(guardian: Guardian, monitor: Monitor, qmp: str) -> Iterator[Undoing]:
    """What fails within it in a way that was foreseen, who is within it undoes, and if QEMU is not seen to be as
    before, the guardian does once we have ended."""
    with closing(Undoing(guardian, monitor, qmp)) as undoing:
        try:
            yield undoing
        except StatepipeError as error:
            settle(guardian, error, undoing.is_done)
            raise


def settle(guardian: Guardian, error: StatepipeError, is_done: Callable[[], bool]) -> None:
    """Settle the guardian where all is seen to be undone; else it is left at work, and the error's hint says so."""
    with suppress(QemuError):
        if is_done():
            guardian.settle()
            return
    guardian.leave()
    if guardian.has_ended():
        hint = "statepipe's guardian has ended too: look at QEMU, whether its guest runs and its settings are as before"
    else:
        hint = (
            f"what is not as before, statepipe's guardian (process {guardian.pid}) sets right once QEMU answers, and "
            "says what came of it"
        )
    error.advise(hint)
