"""The source's half of a migration: QEMU's stream goes to the other host, its guest is given away in two phases.

QEMU streams into a socketpair (`fd:`), with the return path, and stops at pre-switchover until both sides have said
that all is well. Cancelling shuts the socketpair, so that not even a stalled link can hold QEMU.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from statepipe.commands.coordinator import Coordinator
from statepipe.commands.journal import Journal
from statepipe.commands.outgoing import IDLE
from statepipe.ends.fd import FdSource, write_all
from statepipe.engine.peer import Peer
from statepipe.engine.pipeline import NamedStage, Pipeline
from statepipe.errors import QemuError
from statepipe.formats.handover import Action, Event, Source, source
from statepipe.formats.qemustream import QemuStream
from statepipe.qemu.monitor import Monitor
from statepipe.stages.watch import watch

CAPABILITIES = ("events", "return-path", "pause-before-switchover")

STATES = {
    "pre-switchover": Event.PRE_SWITCHOVER,
    "completed": Event.COMPLETED,
    "failed": Event.FAILED,
    "cancelled": Event.FAILED,
}
"""What QEMU's migration states are to us; every other, and any that a later QEMU adds, is on the way."""

_LAST = ("completed", "failed", "cancelled")
_PAST = {"failed": "failed", "cancelled": "been cancelled"}

LOOK = 1.0
"""Seconds between two looks at QEMU's figures, for who asks how it goes."""


class Departure(Coordinator):
    """Runs the source's half. The capabilities are the caller's to set; `words` see the plain stream.

    `look` is given QEMU's figures (query-migrate) each time they were asked for.
    """

    def __init__(
        self,
        monitor: Monitor,
        peer: Peer,
        words: Sequence[NamedStage],
        journal: Journal,
        look: Callable[[dict[str, Any]], None] = lambda figures: None,
    ) -> None:
        super().__init__(source(), monitor, peer, journal)
        self.stream = QemuStream()
        self.pipeline: Pipeline | None = None
        self._words = words
        self._look = look
        self._runs = monitor.run_state() == "running"
        self._ours, self._theirs = socket.socketpair()

    def run(self) -> Source:
        """Migrate; where it ended. What went wrong first is in `cause`."""
        with self._ours:
            self.coordinate(self._begin, self._act_on_qemu, self._shut)
        state: Source = self.side.state
        if state is Source.KEPT:
            self.monitor.wait_until_running()
        return state

    def _begin(self) -> None:
        with self._theirs:
            self.monitor.give(self._theirs.fileno(), "statepipe-migrate")
            self.monitor.execute("migrate", uri="fd:statepipe-migrate")
        for name, work in (("stream", self._send), ("back", self._receive), ("qemu", self._follow)):
            self.spawn(name, work)

    def _send(self) -> None:
        """QEMU's stream, followed to its own end, to the other host."""
        stages = [("watch", watch(self.stream, lambda message: True)), *self._words]
        with FdSource(self._ours.fileno(), "the migration socket", IDLE) as flow:
            self.pipeline = Pipeline(flow, stages, self.peer.outgoing)
            self.pipeline.run()

    def _receive(self) -> None:
        """The return path back into QEMU, for as long as it is open."""
        for buffer in self.peer.incoming:
            with suppress(BrokenPipeError):  # QEMU has closed it: its own word on the migration is what counts
                write_all(self._ours.fileno(), buffer)

    def _follow(self) -> None:
        """QEMU's migration states as events, until the last one. Raises QemuGone."""
        status = ""
        while status not in _LAST:
            figures = self.monitor.migration_changed(status, LOOK)
            self._look(figures)
            if figures["status"] != status and figures["status"] in STATES:
                self.put(STATES[figures["status"]], _reason(figures))
            status = figures["status"]

    def _act_on_qemu(self, action: Action) -> None:
        if action is Action.CONTINUE:
            self.monitor.execute("migrate-continue", state="pre-switchover")
        elif action is Action.CANCEL:
            self._shut()
            self.monitor.execute("migrate_cancel")
        elif action is Action.RESUME and self._runs:
            self._resume()

    def _resume(self) -> None:
        """The destination may take a moment to let go of a disk that both have open (image locks)."""
        deadline = time.monotonic() + UNLOCK
        while True:
            try:
                self.monitor.execute("cont")
                return
            except QemuError as error:
                if "lock" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(UNLOCK_PAUSE)

    def _shut(self) -> None:
        """No byte goes to or comes from QEMU any more: what blocks there, blocks no longer."""
        with suppress(OSError):  # QEMU was first
            self._ours.shutdown(socket.SHUT_RDWR)


UNLOCK, UNLOCK_PAUSE = 5.0, 0.1
"""Seconds: how long, and how often, `cont` is tried while another QEMU holds a lock that no event tells the end of."""


def _reason(figures: dict[str, Any]) -> QemuError | None:
    if (past := _PAST.get(figures["status"])) is None:
        return None
    return QemuError(f"QEMU says that the migration has {past}: {figures.get('error-desc') or 'it gives no reason'}")
