"""A connection to QEMU's monitor (QMP) for synchronous code: qemu.qmp's client in a thread of its own.

QEMU's monitor serves one client at a time and does not answer while QEMU's main loop is busy; a QEMU that was stopped
or waits for a disk answers late or never. So each command has a time limit that fits it (BOUNDS), `tell` reports a long
wait, and `hurry`, which any thread may call, shortens every wait. A missing answer is not a refusal: QemuSilent means
that QEMU may still execute the command.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPError, Runstate

from statepipe.errors import QemuError, QemuGone, QemuRefused, QemuSilent
from statepipe.qemu.answers import judge
from statepipe.qemu.client import Client
from statepipe.qemu.holders import lock_hint
from statepipe.qemu.process import listening_qemu
from statepipe.qemu.reach import ONE_MORE, reached, unreachable
from statepipe.shapes import Misshapen
from statepipe.telling import Tell, nobody
from statepipe.threads import begin, held
from statepipe.typed import Any, TypeVar

T = TypeVar("T")

Words = Callable[[float], str] | None
"""Describes a wait of so many seconds to the user."""

HURRY = 0.3
"""Seconds to wait for each answer once statepipe was told to stop: all is over within one second."""

GREETING_WORD, GREETING_TIME = 2.0, 6.0
"""Seconds without a greeting until statepipe reports it, and until it gives up: QEMU greets a client at once."""

START_TIME = 600.0
"""Seconds to wait for the greeting of a QEMU that statepipe has started: it allocates all its memory first, with
`prealloc` at about 1 GB a second."""

WORD = 10.0
"""Seconds without an answer until statepipe reports it; then again after four times as long, and so on."""

ANSWER = 30.0
"""Seconds to wait for an answer that needs only QEMU's main loop. The loop blocks for seconds while the memory of a
large guest is synchronized, and on an overloaded host."""

SETTLE = 60.0
"""Seconds to wait for an answer that depends on the guest's processors and disks."""

BOUNDS: Mapping[str, float | None] = {"stop": SETTLE, "migrate-continue": None, "cont": None}
"""Seconds to wait for the answer to a command for which ANSWER does not fit; None is without limit. `migrate-continue`
is answered once the last bytes are out, and its caller can cancel the migration. `cont` opens the disks first: when a
late disk answers, the guest runs, whether or not anything still waits for it."""


class Connection:
    """A connection to a QMP socket: executes commands and passes descriptors.

    `address` is as in reach.py, or a connected socket; then `pid` is the process at its other end, which a socketpair
    cannot report. `tell` receives messages about long waits. Raises QemuError if QEMU does not answer in time or ends.
    """

    def __init__(self, address: str | socket.socket, pid: int | None = None, tell: Tell = nobody) -> None:
        self._pid, self._tell = pid, tell
        self._most = math.inf  # seconds of any wait
        self._known: dict[str, Any] | None = None  # answers, while they are remembered
        self._limits: set[asyncio.Timeout] = set()
        self._spoken = -WORD
        self.place = f"QEMU at {address}" if isinstance(address, str) else "the QEMU that was started here"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="monitor", daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:  # a signal's exception during start() would leave `threading` inconsistent; the thread gets no signals
            begin(self._thread)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
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
            else f"{self.place} has not sent its greeting yet"
        )
        word, bound = (GREETING_WORD, GREETING_TIME) if isinstance(address, str) else (WORD, START_TIME)

        async def greet() -> None:
            await self._client.connect(address if isinstance(address, socket.socket) else await reached(address))

        def words(seconds: float) -> str:
            return self._waits("qmp_capabilities", seconds) if self._client.greeting else waits

        try:
            self._call(greet(), bound, words, word)
        except TimeoutError as error:
            if self._client.greeting is not None:
                raise self._silent("qmp_capabilities") from error
            hint = f"give statepipe a monitor of its own: {ONE_MORE}"
            raise QemuSilent(f"{waits} (waited {bound:g} s)", hint=hint) from error
        except (QMPError, OSError, EOFError) as error:
            raise unreachable(address, error, self._client.misfit, self._client.first_line) from error

    def _waits(self, command: str, seconds: float) -> str:
        late = "; the guest runs as soon as it can, perhaps when a disk answers" if command == "cont" else ""
        return f"{self.place} has not answered {command} for {seconds:g} s{late}"

    def _call(self, work: Coroutine[Any, Any, T], within: float | None, words: Words = None, word: float = WORD) -> T:
        """Run `work` in the monitor's thread and return its result.

        Raises TimeoutError after `within` seconds, or those of `hurry`. Reports `words` of the seconds so far after
        `word` seconds and again.
        """

        async def bounded() -> T:
            speaking = None if words is None else asyncio.ensure_future(self._speak(words, word))
            try:
                async with asyncio.timeout(None) as limit:
                    self._limits.add(limit)
                    allowed = self._most if within is None else min(within, self._most)
                    limit.reschedule(None if allowed == math.inf else self._loop.time() + allowed)
                    try:
                        return await work
                    finally:
                        self._limits.discard(limit)
            finally:
                if speaking is not None:
                    speaking.cancel()

        bounded_work = bounded()
        try:
            future = asyncio.run_coroutine_threadsafe(bounded_work, self._loop)
        except RuntimeError as error:  # the loop is closed; a coroutine that never ran would be reported at its end
            bounded_work.close()
            work.close()
            raise QemuGone(f"statepipe has disconnected from {self.place}") from error
        try:
            return future.result()
        except BaseException:
            future.cancel()  # a signal's exception: nothing waits for the result any more
            raise

    async def _speak(self, words: Callable[[float], str], seconds: float) -> None:
        """Report a wait after `seconds` and again; of several concurrent waits, only one is reported."""
        await asyncio.sleep(seconds)
        while True:
            now = asyncio.get_running_loop().time()
            if now - self._spoken >= GREETING_WORD:
                self._spoken = now
                self._tell(words(seconds))
            await asyncio.sleep(3 * seconds)
            seconds *= 4

    def hurry(self, most: float = HURRY) -> None:
        """Limit every wait, also those of other threads, to `most` seconds from now on: statepipe was told to stop, or
        QEMU may not answer."""

        def cut_short() -> None:
            self._most = min(most, self._most)
            soon = self._loop.time() + self._most
            for limit in self._limits:
                if not limit.expired() and (limit.when() or math.inf) > soon:
                    limit.reschedule(soon)

        with suppress(RuntimeError):  # the loop is closed, and nothing waits any more
            self._loop.call_soon_threadsafe(cut_short)

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command and return its answer (answers.py). An underscore in a name stands for QMP's hyphen.

        Raises QemuRefused with QEMU's message, QemuSilent without an answer in time (BOUNDS), QemuGone if QEMU ends.
        """
        if self._known is None:
            return self._execute(command, BOUNDS.get(command, ANSWER), arguments)
        asked = f"{command} {sorted(arguments.items())}"
        if asked not in self._known:
            self._known[asked] = self._execute(command, ANSWER, arguments)
        return self._known[asked]

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Send no query twice in this context, in which nothing may change: each answer takes 0.7 ms."""
        self._known = {}
        try:
            yield
        finally:
            self._known = None

    def _execute(self, command: str, within: float | None, arguments: Mapping[str, object]) -> Any:
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
            if self._client.misfit is not None:
                what = f"the answer of {self.place} to {command} is not QMP: {self._client.misfit}"
                raise QemuGone(what) from error
            raise QemuGone(f"QEMU went away during {command}") from error
        try:
            return judge(command, words, answer)
        except Misshapen as error:
            raise QemuError(f"unexpected answer to {command} from {self.place}: {error}") from error

    def _silent(self, command: str) -> QemuSilent:
        late = "" if command.startswith("query-") or command == "qmp_capabilities" else ", but may still execute it"
        return QemuSilent(
            f"QEMU does not answer {command}{late}",
            hint=f"check at {self.place} whether its guest runs and its migration settings are as before",
        )

    def _look(self, function: Callable[[], T]) -> T:
        """Call a function, which does not wait, in the monitor's thread, and return its result."""

        async def run() -> T:
            return function()

        return self._call(run(), None)

    def demand_handover(self) -> None:
        """Raises QemuError unless descriptors can be passed through this monitor."""
        peer = self._look(self._socket)
        if peer is not None and peer.family is not socket.AF_UNIX:
            what = f"{self.place} accepts a guest's stream only through a monitor at a unix socket"
            raise QemuError(what, hint=f"{ONE_MORE}, and give that PATH")

    def give(self, fd: int, name: str) -> None:
        """Pass a descriptor to QEMU under `name` (getfd), for use as `fd:NAME`. Raises QemuError."""

        async def send() -> None:
            self._client.send_fd_scm(fd)

        try:
            self._call(send(), ANSWER, lambda seconds: self._waits("getfd", seconds))
        except TimeoutError as error:
            raise self._silent("getfd") from error
        except (QMPError, OSError) as error:
            raise QemuGone("QEMU went away before it received its socket") from error
        self.execute("getfd", fdname=name)

    def _await(self, event: asyncio.Event, patience: float) -> None:
        try:
            self._call(self._until_set(event, patience), None)
        except TimeoutError as error:
            hint = f"check at {self.place} whether its guest runs"
            raise QemuSilent("QEMU has not finished its migration", hint=hint) from error

    async def _until_set(self, event: asyncio.Event, patience: float) -> None:
        if self._client.runstate is not Runstate.RUNNING:  # the connection ended after the last answer
            return
        waits = [asyncio.ensure_future(wait) for wait in (event.wait(), self._client.runstate_changed())]
        _, pending = await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        event.clear()
        for wait in pending:
            wait.cancel()

    @property
    def pid(self) -> int:
        """QEMU's process, or 0 if it is unknown.

        SO_PEERCRED names the process that listens at the socket. That may be a relay, which must not be killed in
        QEMU's place.
        """

        def listener() -> int:
            if (peer := self._socket()) is None:
                return 0
            pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return pid if listening_qemu(pid, uid) else 0

        return self._look(listener) if self._pid is None else self._pid

    def duplicate(self) -> socket.socket:
        """Return a second descriptor of the connection, for a process that outlives this one. Raises QemuGone."""

        def second() -> socket.socket | None:
            peer = self._socket()
            return None if peer is None else socket.socket(fileno=os.dup(peer.fileno()))

        if (found := self._look(second)) is None:
            raise QemuGone("the connection to QEMU's monitor has ended")
        return found

    def _socket(self) -> socket.socket | None:
        """Return the client's socket. qemu.qmp has no public access to it; its send_fd_scm does the same."""
        writer = self._client._writer
        return None if writer is None else writer.transport.get_extra_info("socket")

    def close(self) -> None:
        """Disconnect; QEMU is not changed."""
        try:
            self._call(self._client.disconnect(), HURRY)
        except (QMPError, OSError, EOFError, TimeoutError):  # QEMU closed the connection first
            pass
        finally:
            self._stop_loop()

    def _stop_loop(self) -> None:
        with held():  # the exception of a signal during join() would mark a running thread as ended
            asyncio.run_coroutine_threadsafe(self._wind_up(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    async def _wind_up(self) -> None:
        """Close the socket and end all tasks, without a report of their exceptions."""
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        if (writer := self._client._writer) is not None:
            writer.transport.abort()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            await asyncio.wait(left, timeout=HURRY)  # the client ends them in order, now that its socket is closed
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
