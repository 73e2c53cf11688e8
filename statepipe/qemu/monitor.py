"""What statepipe asks QEMU's monitor about a guest and its migration, in the terms of QMP's commands and events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from statepipe.errors import QemuError, QemuSilent
from statepipe.qemu.connection import SETTLE, WORD, Connection
from statepipe.qemu.runstates import FINAL, SENT
from statepipe.typed import Any

LOOK_AGAIN = 0.05
"""Seconds between two queries for changes that no event reports."""

UNLOCK = 5.0
"""Seconds to retry `cont` while another QEMU holds a disk's lock: a killed one holds it until it is reaped."""

FLOWING = 300.0
"""Seconds to wait for query-migrate during a migration: QEMU's main loop blocks while the last bytes are written, which
is as long as the guest is stopped (99 MB at 10 MB/s: 10 s). The session ends a stalled link sooner."""


class Monitor(Connection):
    """A connection to QEMU's monitor, by which a guest is moved, stopped and resumed. Made as a Connection is."""

    def migrate(self, uri: str) -> None:
        """Start QEMU's migration. If an event then reports that it failed, each wait for the outcome ends.

        Raises QemuError.
        """
        self._loop.call_soon_threadsafe(self._client.expect_migration)
        self.execute("migrate", uri=uri)

    def migration(self) -> dict[str, Any]:
        """Return query-migrate's answer; `status` is always set ("none" before any migration). Raises QemuError."""
        return {"status": "none", **self.execute("query-migrate")}

    def flowing(self) -> dict[str, Any]:
        """Return the same during a migration, which can delay QEMU's answer (FLOWING). Raises QemuError."""
        return {"status": "none", **self._execute("query-migrate", FLOWING, {})}

    def expect_incoming(self) -> None:
        """Take the events from now on for those of a guest that QEMU is about to be told to load."""
        self._loop.call_soon_threadsafe(lambda: self._client.expect_migration(incoming=True))

    def on_events(self, heard: Callable[[str], object]) -> None:
        """Have `heard` called, from the monitor's thread, with each status of our migration as soon as an event reports
        it, and with STOP and RESUME. It must not wait. Needs the capability `events`."""
        self._client.heard = heard

    def migration_settled(self, patience: float) -> None:
        """Wait until an event reports that a migration has ended, the connection ends, or `patience` seconds have
        passed. Raises QemuSilent."""
        self._await(self._client.settled, patience)

    def migration_outcome(self, patience: float = WORD) -> dict[str, Any]:
        """Wait until the migration is completed, failed or cancelled, and return query-migrate's answer.

        QEMU is also asked every `patience` seconds, for the case that the capability `events` is off. Raises QemuError.
        """
        while (answer := self.our_migration())["status"] not in FINAL:
            self._await_change(patience)
        return answer

    def incoming_outcome(self, patience: float = WORD) -> dict[str, Any]:
        """Do the same for a guest that QEMU loads. If an event reported that it is loaded, QEMU is not asked again."""
        while (answer := self.our_migration())["status"] not in FINAL:
            self._await(self._client.settled, patience)
            if self._client.is_loaded:
                return {"status": "completed"}
        return answer

    def migration_changed(self, status: str, patience: float) -> dict[str, Any]:
        """Return query-migrate's answer as soon as its status is not `status`, or after `patience` seconds.

        Needs the capability `events`. Raises QemuError.
        """
        if (answer := self.our_migration())["status"] == status:
            self._await_change(patience)
            answer = self.our_migration()
        return answer

    @property
    def broken_off(self) -> str | None:
        """How our migration (`migrate`) ended, if an event reported that it failed or was cancelled."""
        return self._client.broken_off

    def our_migration(self) -> dict[str, Any]:
        """Return query-migrate's answer. If an event reported before the question that our migration failed or was
        cancelled, an answer with another status is about a later migration of another client's. Raises QemuError."""
        status = self.broken_off  # before the question: an event after QEMU's answer does not make the answer wrong
        answer = self.flowing()
        if status is None or answer["status"] in ("failed", "cancelled"):
            return answer
        return {"status": status, "error-desc": "another client of QEMU's monitor has begun a migration since"}

    def wait_until_running(self) -> None:
        """Wait until the guest leaves finish-migrate, which it does shortly after a migration. Raises QemuError.

        A guest that was paused before leaves it without an event, so QEMU is asked repeatedly.
        """
        began = time.monotonic()
        while self.run_state() == "finish-migrate":
            if time.monotonic() - began > (SETTLE if self._most == math.inf else UNLOCK):
                raise QemuSilent(f"{self.place} still reports finish-migrate: its guest is stopped")
            self._await_change(LOOK_AGAIN)

    def has_sent(self) -> bool:
        """Return whether QEMU has sent its whole guest, so that another QEMU may run it. Raises QemuError.

        Before 8.1, a stopped guest is in postmigrate after a failed migration too. No migration begins in that state.
        """
        return self.run_state() == SENT and self.migration()["status"] == "completed"

    def resume(self, *, sent: bool = False) -> None:
        """Send `cont` once the guest is settled; retry while another QEMU still holds the lock of a disk.

        A guest that QEMU has sent is resumed only with `sent`. Raises QemuError; QemuSilent after SETTLE seconds: the
        guest may still run later.
        """
        self.wait_until_running()
        if not sent and self.has_sent():
            raise QemuError(f"QEMU has sent all of the guest and keeps it stopped ({SENT})")
        deadline = time.monotonic() + UNLOCK
        while True:
            try:
                self._execute("cont", SETTLE, {})
                return
            except QemuError as error:
                if isinstance(error, QemuSilent) or "lock" not in str(error) or time.monotonic() > deadline:
                    raise
            self._await_change(LOOK_AGAIN)

    def _await_change(self, patience: float) -> None:
        """Wait for an event, the end of the connection, or `patience` seconds. Raises QemuSilent."""
        self._await(self._client.changed, patience)

    def run_state(self) -> str:
        """Return the guest's run state, such as "running" or "postmigrate". Raises QemuError."""
        return str(self.execute("query-status")["status"])

    def demand_idle(self) -> None:
        """Raises QemuError during a migration: another client is moving the guest."""
        if (status := self.migration()["status"]) not in ("none", *FINAL):
            what = f"another client of QEMU's monitor has begun a migration, which is {status}"
            raise QemuError(what, hint="wait until it ends, or cancel it with migrate_cancel at QEMU's monitor")

    def demand_waiting(self) -> None:
        """Raises QemuError unless QEMU waits for an incoming migration."""
        if (found := self.run_state()) != "inmigrate":
            what = f"QEMU is not waiting for an incoming migration (its guest is {found})"
            raise QemuError(what, hint="start QEMU with -incoming defer")
