"""QEMU's monitor (QMP), for code that is not asynchronous: qemu.qmp's client in a thread of its own.

No wait here is silent, and none is without end unless it must be. QEMU's monitor serves one client at a time, is dumb
while its main loop is busy, and a QEMU that was stopped or waits for a disk answers late or never. So each command has
a bound that fits it (BOUNDS); while one waits, `tell` hears of it; and `hurry`, from any thread, cuts every wait short.
An answer that did not come is no refusal: QemuSilent says that QEMU may still do what it was told.
"""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPError, Runstate

from statepipe.errors import QemuError, QemuGone, QemuRefused, QemuSilent
from statepipe.qemu.answers import judge
from statepipe.qemu.client import Client
from statepipe.qemu.holders import lock_hint
from statepipe.qemu.process import listening_qemu
from statepipe.qemu.reach import ONE_MORE, reached, unreachable
from statepipe.qemu.runstates import SENT
from statepipe.shapes import Misshapen
from statepipe.telling import Tell
from statepipe.threads import begin, held

T = TypeVar("T")

Reply = Any
"""What QEMU returned: JSON of the command's shape (answers.py)."""

FINAL = ("completed", "failed", "cancelled")
"""The states a migration ends in; every other, and any that a later QEMU adds, is on the way."""

HURRY = 0.3
"""Seconds that QEMU has for each answer once we were told to stop: so all is over within one second."""

LOOK_AGAIN = 0.05
"""Seconds between two looks at what no event tells."""

DYING = 5000
"""Milliseconds in which a QEMU whose monitor has ended is to end too, if it does: a large one takes a second or two to
give its memory back, and closes its monitor first."""

UNLOCK = 5.0
"""Seconds that `cont` is tried while another QEMU holds a lock: one that was killed holds it until it is reaped."""

GREETING_WORD, GREETING_TIME = 2.0, 6.0
"""Seconds without a greeting until we say so, and until we give up: QEMU greets whom it serves at once."""

START_TIME = 600.0
"""Seconds that a QEMU which we have just started has for its greeting: it first takes all its memory, with
`prealloc` at about 1 GB a second."""

WORD = 10.0
"""Seconds without an answer until we say so; then again after four times as long, and so on."""

ANSWER = 30.0
"""Seconds that QEMU has for an answer which needs nothing but its main loop. That stands still for seconds while the
memory of a large guest is synchronized, and on a host that is busy beyond measure."""

SETTLE = 60.0
"""Seconds for what waits for the guest's processors and disks."""

FLOWING = 300.0
"""Seconds for query-migrate while the guest moves: QEMU's main loop stands still while it writes the last bytes, for as
long as the guest does (99 MB at 10 MB/s: 10 s). What is behind a stalled link, the session ends sooner."""

BOUNDS: Mapping[str, float | None] = {"stop": SETTLE, "migrate-continue": None, "cont": None}
"""Seconds for an answer, where ANSWER does not fit. `migrate-continue` is answered when the last bytes are out, and
whoever waits for it breaks it off otherwise. `cont` opens the disks first: a late one makes it late, and the guest runs
when the disk answers, whether anybody still waits or not."""


class Monitor:
    """A connection to a QMP socket: `execute` commands, hand over descriptors.

    `address` is one of reach.py's or a connected socket; then `pid` is the process at its other end, which a socketpair
    does not tell. `tell` hears what is waited for. Raises QemuError when nobody answers in time or QEMU goes away.
    """

    def __init__(self, address: str | socket.socket, pid: int | None = None, tell: Tell = lambda text: None) -> None:
        self._pid, self._tell = pid, tell
        self._hurried = False
        self._limits: set[asyncio.Timeout] = set()
        self._spoken = -WORD
        self.place = f"QEMU at {address}" if isinstance(address, str) else "the QEMU that was started here"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="monitor", daemon=True)
        _start_undisturbed(self._thread)
        self._client = Client()
        try:
            self._connect(address)
        except BaseException:
            self._stop_loop()
            raise

    def _connect(self, address: str | socket.socket) -> None:
        """Raises QemuError."""
        waits = (
            f"no greeting at {address}: another client may be connected; QEMU serves one at a time"
            if isinstance(address, str)
            else f"{self.place} has not greeted us yet"
        )
        word, bound = (GREETING_WORD, GREETING_TIME) if isinstance(address, str) else (WORD, START_TIME)
        try:
            self._call(self._greet(address), bound, self._first_words(waits), word)
        except TimeoutError as error:
            if self._client.greeting is not None:
                raise self._silent("qmp_capabilities") from error
            hint = f"give statepipe a monitor of its own: {ONE_MORE}"
            raise QemuSilent(f"{waits} (waited {bound:g} s)", hint=hint) from error
        except (QMPError, OSError, EOFError) as error:
            raise unreachable(address, error, self._client.misfit, self._client.first_line) from error

    def _first_words(self, waits: str) -> Callable[[float], str]:
        return lambda seconds: self._waits("qmp_capabilities", seconds) if self._client.greeting else waits

    def _waits(self, command: str, seconds: float) -> str:
        late = "; the guest runs as soon as it can, perhaps when a disk answers" if command == "cont" else ""
        return f"{self.place} has not answered {command} for {seconds:g} s{late}"

    async def _greet(self, address: str | socket.socket) -> None:
        await self._client.connect(address if isinstance(address, socket.socket) else await reached(address))

    def _call(
        self, work: Coroutine[Any, Any, T], within: float | None, words: Callable[[float], str], word: float = WORD
    ) -> T:
        """What it comes to. Raises TimeoutError after `within` seconds, or HURRY after `hurry`; meanwhile `words` of
        the seconds so far are told, after `word` of them and again."""
        future = asyncio.run_coroutine_threadsafe(self._bounded(work, within, words, word), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # a signal's, and nobody waits any more
            raise

    async def _bounded(
        self, work: Coroutine[Any, Any, T], within: float | None, words: Callable[[float], str], word: float
    ) -> T:
        loop = asyncio.get_running_loop()
        speaking = asyncio.ensure_future(self._speak(words, word))
        try:
            async with asyncio.timeout(None) as limit:
                self._limits.add(limit)
                allowed = HURRY if self._hurried else within
                limit.reschedule(None if allowed is None else loop.time() + allowed)
                try:
                    return await work
                finally:
                    self._limits.discard(limit)
        finally:
            speaking.cancel()

    async def _speak(self, words: Callable[[float], str], word: float) -> None:
        """Tell, after so many seconds and again; of several that wait, one speaks."""
        seconds = word
        await asyncio.sleep(word)
        while True:
            now = asyncio.get_running_loop().time()
            if now - self._spoken >= GREETING_WORD:
                self._spoken = now
                self._tell(words(seconds))
            await asyncio.sleep(3 * seconds)
            seconds *= 4

    def hurry(self) -> None:
        """From now on, wait for nothing longer than HURRY: whoever told us to stop does not wait for ever either.

        From any thread; it also cuts short what is waited for in another one.
        """
        with suppress(RuntimeError):  # it is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._cut_short)

    def _cut_short(self) -> None:
        self._hurried = True
        soon = self._loop.time() + HURRY
        for limit in self._limits:
            if not limit.expired() and (limit.when() or math.inf) > soon:
                limit.reschedule(soon)

    def execute(self, command: str, **arguments: object) -> Reply:
        """Run a command. An underscore in an argument's name stands for QMP's hyphen.

        Raises QemuRefused with QEMU's own words, QemuSilent if it does not answer in time (BOUNDS),
        QemuGone if it goes away meanwhile.
        """
        return self._execute(command, BOUNDS.get(command, ANSWER), arguments)

    def _execute(self, command: str, within: float | None, arguments: Mapping[str, object]) -> Reply:
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            answer = self._call(
                self._client.execute(command, words or None),
                within,
                lambda seconds: self._waits(command, seconds),
            )
        except TimeoutError as error:
            raise self._silent(command) from error
        except ExecuteError as error:
            raise QemuRefused(f"QEMU refused {command}: {error}", hint=lock_hint(str(error))) from error
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            raise self._gone(command) from error
        try:
            return judge(command, words, answer)
        except Misshapen as error:
            raise QemuError(f"what {self.place} answers to {command} is not understood: {error}") from error

    def _silent(self, command: str) -> QemuSilent:
        late = "" if command.startswith("query-") or command == "qmp_capabilities" else ", which it may still do"
        return QemuSilent(
            f"QEMU does not answer {command}{late}",
            hint=f"look at {self.place}, whether its guest runs and its migration settings are as before",
        )

    def _gone(self, command: str) -> QemuGone:
        if self._client.misfit is not None:
            return QemuGone(f"what {self.place} says to {command} is not QMP: {self._client.misfit}")
        return QemuGone(f"QEMU went away during {command}")

    def demand_handover(self) -> None:
        """Raises QemuError unless descriptors can be handed over here."""
        if self._call(self._family(), None, lambda seconds: "") is not socket.AF_UNIX:
            what = f"{self.place} takes a guest's stream only through a monitor at a unix socket"
            raise QemuError(what, hint=f"{ONE_MORE}, and name that PATH")

    async def _family(self) -> int:
        peer = self._socket()
        return socket.AF_UNIX if peer is None else peer.family

    def give(self, fd: int, name: str) -> None:
        """Hand a descriptor to QEMU under `name` (getfd), as for `fd:NAME`. Raises QemuError."""
        try:
            self._call(self._give(fd), ANSWER, lambda seconds: self._waits("getfd", seconds))
        except TimeoutError as error:
            raise self._silent("getfd") from error
        except (QMPError, OSError) as error:
            raise QemuGone("QEMU went away before it could take its socket") from error
        self.execute("getfd", fdname=name)

    async def _give(self, fd: int) -> None:
        self._client.send_fd_scm(fd)

    def migrate(self, uri: str) -> None:
        """Have QEMU migrate: a failure that an event tells of from now on ends each wait for the outcome.

        Raises QemuError.
        """
        self._loop.call_soon_threadsafe(self._client.expect_migration)
        self.execute("migrate", uri=uri)

    def migration(self) -> dict[str, Any]:
        """query-migrate's answer; `status` is always there ("none" before any migration). Raises QemuError."""
        return {"status": "none", **self.execute("query-migrate")}

    def flowing(self) -> dict[str, Any]:
        """The same, of one that is on its way, which may keep QEMU from answering (FLOWING). Raises QemuError."""
        return {"status": "none", **self._execute("query-migrate", FLOWING, {})}

    def migration_outcome(self, patience: float = WORD) -> dict[str, Any]:
        """Wait until the migration is completed, failed or cancelled; query-migrate's answer.

        Without the capability `events`, it is looked at every `patience` seconds. Raises QemuError.
        """
        while (answer := self._ours(self.flowing()))["status"] not in FINAL:
            self._await_change(patience)
        return answer

    def migration_changed(self, status: str, patience: float) -> dict[str, Any]:
        """query-migrate's answer, as soon as its status is another than `status`, or after so many seconds.

        Needs the capability `events`. Raises QemuError.
        """
        if (answer := self._ours(self.flowing()))["status"] == status:
            self._await_change(patience)
            answer = self._ours(self.flowing())
        return answer

    @property
    def broken_off(self) -> str | None:
        """How our migration ended (`migrate`), if an event has told that it failed or was cancelled."""
        return self._client.broken_off

    def _ours(self, answer: dict[str, Any]) -> dict[str, Any]:
        """What QEMU says of its migration, unless an event has told that ours broke off: then another client's has
        begun since, and its outcome says nothing of our stream."""
        if (status := self.broken_off) is None or answer["status"] in ("failed", "cancelled"):
            return answer
        return {"status": status, "error-desc": "another client of QEMU's monitor has begun a migration since"}

    def wait_until_running(self) -> None:
        """Wait until the guest is settled: after a migration it is finish-migrate a moment longer. Raises QemuError.

        One that was paused before leaves finish-migrate without an event, so it is looked at again and again.
        """
        began = time.monotonic()
        while self.run_state() == "finish-migrate":
            if time.monotonic() - began > (UNLOCK if self._hurried else SETTLE):
                raise QemuSilent(f"{self.place} still says finish-migrate: its guest stands still")
            self._await_change(LOOK_AGAIN)

    def has_sent(self) -> bool:
        """Whether QEMU has sent all of its guest, which another may run by now. Raises QemuError.

        Before 8.1 a stopped guest is postmigrate where its migration failed, too. No other begins in that state.
        """
        return self.run_state() == SENT and self.migration()["status"] == "completed"

    def resume(self, *, sent: bool = False) -> None:
        """`cont`, once the guest is settled, and again while another QEMU has still to let go of a disk (image locks).
        A guest that QEMU has sent is run only if that is what is meant (`sent`).

        Raises QemuError; QemuSilent, once SETTLE seconds have passed, where nobody knows yet whether it will run.
        """
        self.wait_until_running()
        if not sent and self.has_sent():
            raise QemuError(f"QEMU has sent all of the guest and holds it still ({SENT})")
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
        """Until an event has come, the connection has ended, or `patience` seconds have passed. Raises QemuSilent."""
        try:
            self._call(self._change(patience), None, lambda seconds: "")
        except TimeoutError as error:
            what = "QEMU has not finished its migration"
            raise QemuSilent(what, hint=f"look at {self.place}, whether its guest runs") from error

    async def _change(self, patience: float) -> None:
        if self._client.runstate is not Runstate.RUNNING:  # it has ended between a command's answer and this wait
            return
        waits = [asyncio.ensure_future(wait) for wait in (self._client.changed.wait(), self._client.runstate_changed())]
        _, pending = await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        self._client.changed.clear()
        for wait in pending:
            wait.cancel()

    @property
    def pid(self) -> int:
        """QEMU's process, 0 if it is unknown.

        SO_PEERCRED tells who listens at the socket, and a relay between QEMU and us is none to be ended in its place.
        """
        return self._call(self._peer(), None, lambda seconds: "") if self._pid is None else self._pid

    async def _peer(self) -> int:
        if (peer := self._socket()) is None:
            return 0
        pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid if listening_qemu(pid, uid) else 0

    def _socket(self) -> socket.socket | None:
        """qemu.qmp has no public way to it either; see its send_fd_scm."""
        writer = self._client._writer
        return None if writer is None else writer.transport.get_extra_info("socket")

    def run_state(self) -> str:
        """The guest's run state, as "running" or "postmigrate". Raises QemuError."""
        return str(self.execute("query-status")["status"])

    def demand_idle(self) -> None:
        """Raises QemuError while it migrates: then its guest is another client's to move."""
        if (status := self.migration()["status"]) not in ("none", *FINAL):
            what = f"another client of QEMU's monitor has begun a migration, which is {status}"
            raise QemuError(what, hint="wait for its end; or end it, with migrate_cancel at QEMU's monitor")

    def demand_waiting(self) -> None:
        """Raises QemuError unless it waits for a guest to come."""
        if (found := self.run_state()) != "inmigrate":
            what = f"QEMU is not waiting for an incoming migration (its guest is {found})"
            raise QemuError(what, hint="start QEMU with -incoming defer")

    def close(self) -> None:
        """Leave; QEMU stays as it is."""
        try:
            self._call(self._client.disconnect(), HURRY, lambda seconds: "")
        except (QMPError, OSError, EOFError, TimeoutError):  # it left first, which is as good
            pass
        finally:
            self._stop_loop()

    def _stop_loop(self) -> None:
        with held():  # a signal's exception in the midst of a join takes a thread that runs for one that has ended
            asyncio.run_coroutine_threadsafe(self._wind_up(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    async def _wind_up(self) -> None:
        """Nothing is left that waits, nor an open socket. What was given up has nobody to tell of its end."""
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        if (writer := self._client._writer) is not None:
            writer.transport.abort()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            await asyncio.wait(left, timeout=HURRY)  # the client ends them in order, now that its socket is gone
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def demand_completed(figures: dict[str, Any], otherwise: str = "it gives no reason") -> dict[str, Any]:
    """The figures of a migration that has ended. Raises QemuError, with `otherwise` where QEMU itself has no reason."""
    if figures["status"] != "completed":
        why = figures.get("error-desc") or otherwise
        raise QemuError(f"QEMU says {figures['status']}: {why}", hint=lock_hint(why))
    return figures


def _start_undisturbed(thread: threading.Thread) -> None:
    """Start it while signals wait, as an exception of theirs would leave `threading` in disorder. It gets none."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        begin(thread)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
