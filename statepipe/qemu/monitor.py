"""QEMU's monitor (QMP), for code that is not asynchronous: qemu.qmp's client in a thread of its own."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate

from statepipe.errors import QemuError, QemuGone
from statepipe.qemu.process import is_qemu

T = TypeVar("T")

Reply = Any
"""What QEMU returned: JSON of the shape that its QAPI schema gives for the command."""

FINAL = ("completed", "failed", "cancelled")
"""The states a migration ends in; every other, and any that a later QEMU adds, is on the way."""

HURRY = 0.3
"""Seconds that QEMU has for each answer once we were told to stop: so all is over within one second."""

LOOK_AGAIN = 0.05
"""Seconds between two looks at what no event tells."""

UNLOCK = 5.0
"""Seconds that `cont` is tried while another QEMU holds a lock: one that was killed holds it until it is reaped."""


class Monitor:
    """A connection to a QMP socket: `execute` commands, hand over descriptors.

    `address` is a path or a connected socket; then `pid` is the process at its other end, which a socketpair does not
    tell. Raises QemuError when nobody answers there or QEMU goes away.
    """

    def __init__(self, address: str | socket.socket, pid: int | None = None) -> None:
        self._patience: float | None = None
        self._pid = pid
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="monitor", daemon=True)
        _start_undisturbed(self._thread)
        self._client = QMPClient("statepipe")
        self._migration_events = EventListener("MIGRATION")
        self._resume_events = EventListener("RESUME")
        for listener in (self._migration_events, self._resume_events):
            self._client.register_listener(listener)
        try:
            self._call(self._client.connect(address))
        except (QMPError, OSError, EOFError) as error:
            self._stop_loop()
            raise _unreachable(address, error) from error

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(self._patience)
        except TimeoutError as error:
            future.cancel()
            raise QemuGone("QEMU does not answer: look whether its guest runs, its settings as before") from error

    def hurry(self) -> None:
        """From now on, wait for nothing longer than HURRY: whoever told us to stop does not wait for ever either."""
        self._patience = HURRY

    def execute(self, command: str, **arguments: object) -> Reply:
        """Run a command. An underscore in an argument's name stands for QMP's hyphen.

        Raises QemuError with QEMU's own words if it refuses, QemuGone if it goes away meanwhile.
        """
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return self._call(self._client.execute(command, words or None))
        except ExecuteError as error:
            raise QemuError(f"QEMU refused {command}: {error}") from error
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            raise QemuGone(f"QEMU went away during {command}") from error

    def give(self, fd: int, name: str) -> None:
        """Hand a descriptor to QEMU under `name` (getfd), as for `fd:NAME`. Raises QemuError."""
        try:
            self._call(self._give(fd))
        except (QMPError, OSError) as error:
            raise QemuGone("QEMU went away before it could take its socket") from error
        self.execute("getfd", fdname=name)

    async def _give(self, fd: int) -> None:
        self._client.send_fd_scm(fd)

    def migration(self) -> dict[str, Any]:
        """query-migrate's answer; `status` is always there ("none" before any migration). Raises QemuError."""
        return {"status": "none", **self.execute("query-migrate")}

    def migration_outcome(self, patience: float | None = None) -> dict[str, Any]:
        """Wait until the migration is completed, failed or cancelled; query-migrate's answer.

        Needs the capability `events`, or `patience`: seconds between two looks. Raises QemuError.
        """
        while (answer := self.migration())["status"] not in FINAL:
            self._call(self._change(self._migration_events, patience))
        return answer

    def migration_changed(self, status: str, patience: float) -> dict[str, Any]:
        """query-migrate's answer, as soon as its status is another than `status`, or after so many seconds.

        Needs the capability `events`. Raises QemuError.
        """
        if (answer := self.migration())["status"] == status:
            self._call(self._change(self._migration_events, patience))
            answer = self.migration()
        return answer

    def wait_until_running(self) -> None:
        """Wait until the guest is settled: after a migration it is finish-migrate a moment longer. Raises QemuError.

        One that was paused before leaves finish-migrate without an event, so it is looked at again and again.
        """
        while self.run_state() == "finish-migrate":
            self._call(self._change(self._resume_events, LOOK_AGAIN))

    def resume(self) -> None:
        """`cont`, once the guest is settled, and again while another QEMU has still to let go of a disk (image locks).

        Raises QemuError.
        """
        self.wait_until_running()
        deadline = time.monotonic() + UNLOCK
        while True:
            try:
                self.execute("cont")
                return
            except QemuError as error:
                if "lock" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(LOOK_AGAIN)

    async def _change(self, events: EventListener, patience: float | None = None) -> None:
        """Until one of the events, the end of the connection, or `patience` seconds have passed."""
        if self._client.runstate is not Runstate.RUNNING:  # it has ended between a command's answer and this wait
            return
        waits = [asyncio.ensure_future(events.get()), asyncio.ensure_future(self._client.runstate_changed())]
        _, pending = await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()

    @property
    def pid(self) -> int:
        """QEMU's process, 0 if it is unknown.

        SO_PEERCRED tells who listens at the socket, and a relay between QEMU and us is none to be ended in its place.
        """
        return self._call(self._peer()) if self._pid is None else self._pid

    async def _peer(self) -> int:
        writer = self._client._writer  # qemu.qmp has no public way to the socket either; see its send_fd_scm
        if writer is None:
            return 0
        peer: socket.socket = writer.transport.get_extra_info("socket")
        pid = int(struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        return pid if is_qemu(pid) else 0

    def run_state(self) -> str:
        """The guest's run state, as "running" or "postmigrate". Raises QemuError."""
        return str(self.execute("query-status")["status"])

    def demand_waiting(self) -> None:
        """Raises QemuError unless it waits for a guest to come."""
        if (found := self.run_state()) != "inmigrate":
            hint = "start it with -incoming defer"
            raise QemuError(f"QEMU does not wait for a guest: its own is {found}", hint=hint)

    def close(self) -> None:
        """Leave; QEMU stays as it is."""
        try:
            self._call(self._client.disconnect())
        except (QMPError, OSError, EOFError, QemuGone):  # it left first, which is as good
            pass
        finally:
            self._stop_loop()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def demand_completed(figures: dict[str, Any], otherwise: str = "it gives no reason") -> dict[str, Any]:
    """The figures of a migration that has ended. Raises QemuError, with `otherwise` where QEMU itself has no reason."""
    if figures["status"] != "completed":
        raise QemuError(f"QEMU says {figures['status']}: {figures.get('error-desc') or otherwise}")
    return figures


def _start_undisturbed(thread: threading.Thread) -> None:
    """Start it while signals wait, as an exception of theirs would leave `threading` in disorder. It gets none."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unreachable(address: str | socket.socket, error: Exception) -> QemuError:
    if isinstance(address, str):
        reason = getattr(error, "exc", error)
        return QemuError(
            f"no QMP monitor answers at {address}: {reason}",
            hint="start QEMU with -qmp unix:PATH,server=on,wait=off and name that PATH; a monitor serves one client",
        )
    return QemuGone("QEMU ended before its monitor answered")
