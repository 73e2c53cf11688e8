"""The destination's side of a migration: load the stream into a QEMU that waits, paused, until the source sends GO.

QEMU loads from a socketpair whose other direction is the return path. The guest is here once QEMU has reported
`completed` and the stream's digest agrees; it runs when the source sends GO, and not before. After any failure before
that, this QEMU is ended, and was seen to have ended before the source is told; only after an error that nobody foresaw
it is the guardian that ends it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from statepipe.ends.fd import FdSink, FdSource
from statepipe.errors import PeerError, QemuError, QemuGone, ReaderGone, StatepipeError
from statepipe.migration.coordinator import ENDS, Coordinator
from statepipe.migration.peer import Message, Peer
from statepipe.pipeline.pipeline import NamedStage, Pipeline
from statepipe.qemu.migration import reported, start_incoming
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.runstates import RUNNING, SUSPENDED, UNRUN
from statepipe.recovery.handover import Action, Destination, Event, Side
from statepipe.recovery.journal import Journal
from statepipe.shapes import told
from statepipe.typed import Any

CAPABILITIES = ("events", "return-path", "late-block-activate")


@dataclass(frozen=True, slots=True)
class QemuOutput:
    """What QEMU writes outside of its monitor, where it gives its reason if it exits: its last lines, empty if they are
    not known, and where the user reads all of them. With `is_ours`, we started QEMU, and it exits by itself."""

    last_words: Callable[[], str] = str
    where: Callable[[], str] = str
    is_ours: bool = True


class _GaveUp(QemuError):
    """QEMU stopped loading the guest; its reason is elsewhere."""


def ran_early(cause: BaseException | None = None) -> QemuError:
    """The error of a guest that another client let run, after `cause`, the first reason why it was not to arrive."""
    what = "the guest ran here before the source allowed it"
    hint = "another client of QEMU's monitor started it; its disks may no longer be as the source left them"
    return QemuError(what if cause is None else f"{what}; and {cause}", hint=hint)


class Arrival(Coordinator):
    """Runs the destination's side; `side` has reached INCOMING.

    `words` undo the source's stages; `end` ends QEMU and returns when it has ended; `runs` says whether the guest runs
    once it is here.
    """

    def __init__(
        self,
        monitor: Monitor,
        peer: Peer,
        words: Sequence[NamedStage],
        journal: Journal,
        end: Callable[[], None],
        *,
        side: Side[Destination],
        runs: bool,
        output: QemuOutput | None = None,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        super().__init__(side, monitor, peer, journal, say)
        self.ran = False  # it was seen to run before anybody here let it
        self._end, self._output = end, output or QemuOutput()
        self._came_as: str | None = None  # its run state when it was here, before anybody let it run
        self._reason = ""  # QEMU's, by its monitor
        self._runs = runs
        self._is_started = False  # we have told QEMU to run the guest
        self._has_resumed = False  # by another client's command, before we told it
        self._lacks = {"QEMU", "stream"}  # what has not reported yet that the guest is here
        self._counting = threading.Lock()
        self._ours, self._theirs = socket.socketpair()
        sink = FdSink(self._ours.fileno(), "the migration socket")
        self._pipeline = Pipeline(peer.incoming, words, sink)

    def status(self) -> dict[str, Any]:
        """Return the status for JSON: the pipeline's, `phase`, and how many links are up."""
        return self._pipeline.status() | {"phase": self.side.state.name.lower(), "links": self.peer.links}

    def set_rate(self, rate: int | None) -> None:
        """Raises StatepipeError."""
        raise StatepipeError("only the source can set the rate of a migration", hint="use statepipe rate there")

    def run(self) -> Destination:
        """Take the guest, and return the final state. `cause` is the first thing that went wrong."""
        with self._ours:
            self.coordinate(self._begin, self._act_on_qemu, self._release)
        state: Destination = self.side.state
        return state

    def waits_for(self) -> str | None:
        """Return what this state waits for; None if QEMU has ended, which is the next event."""
        if self.has_ended():
            return None
        qemu = f"QEMU here (process {self.pid})"
        words = {
            Destination.WAITING: "the whole guest is here, paused; the source has not allowed it to run yet",
            Destination.STARTING: f"{qemu} was told to run the guest and has not answered; until then, whether the "
            "guest runs here is not known, and statepipe waits; if it is killed, its guardian waits instead",
            Destination.STRAYED: f"{qemu} was told to end and has not ended yet; until it has, its guest runs here",
            Destination.ENDING: f"{qemu} was told to end and has not ended yet; {self.told_of_guest}",
        }
        return words.get(self.side.state)

    @property
    def told_of_guest(self) -> str:
        """What to say of the guest in a QEMU that is being ended."""
        return "until it is ended, its guest runs here" if self.ran else "its guest never ran"

    def _begin(self) -> None:
        self.monitor.on_events(self._hear)
        with self._theirs:
            start_incoming(self.monitor, self._theirs, stays=not self._output.is_ours)
        for name, work in (("stream", self._load), ("back", self._answer), ("qemu", self._follow)):
            self.spawn(name, work)

    def _load(self) -> None:
        """Write the stream to QEMU; when this returns, it was whole and verified."""
        try:
            self._pipeline.pour()
        except ReaderGone as error:
            raise _GaveUp("QEMU stopped reading the guest") from error
        self._has("stream")
        self.peer.incoming.accept()

    def _has(self, what: str) -> None:
        """Take note that QEMU has the guest, or that the stream is verified; after the second of them, it is here."""
        with self._counting:
            is_last = self._lacks == {what}
            self._lacks.discard(what)
        if is_last:
            self.put(Event.COMPLETED)

    def _answer(self) -> None:
        """Send QEMU's return path to the source, until QEMU closes it."""
        with FdSource(self._ours.fileno(), "the return path") as answers:
            try:
                Pipeline(answers, [], self.peer.outgoing).pour()
            except PeerError:
                raise
            except StatepipeError as error:  # a reset: QEMU closed it with bytes of ours unread
                raise _GaveUp("QEMU closed the return path") from error
        self.peer.outgoing.end()

    def _hear(self, what: str) -> None:
        """Take note of an event of QEMU's, in the monitor's thread. A guest that is to run stands still until the
        source hears that it is here: so QEMU is not asked. If its guest ran before, another event has said so."""
        if what == "RESUME" and not self._is_started:
            self._has_resumed = True  # not to be ended before it has told the source's QEMU that all arrived
        elif what == "completed" and self._runs and not self._has_resumed:
            self._has("QEMU")

    def _follow(self) -> None:
        """Wait until QEMU has the whole guest, paused, unless an event has reported it. Raises QemuError."""
        if (figures := self.monitor.incoming_outcome())["status"] != "completed":
            self._reason = figures.get("error-desc") or ""
            raise _GaveUp(reported({"status": figures["status"]}))
        if "QEMU" not in self._lacks:
            with suppress(QemuError):  # it is asked only to tell at a bad end what the guest has done since
                state = self.monitor.run_state()
                if not self._is_started and state != RUNNING:
                    self._came_as = state
            return
        state = self.monitor.run_state()
        if self._has_resumed or (state not in (*UNRUN, SUSPENDED) if self._runs else state == RUNNING):
            self.ran = True
            raise ran_early()
        self._came_as = state  # suspended, or stopped by an I/O error, if it was so at the source
        self._has("QEMU")

    def _act_on_qemu(self, action: Action) -> None:
        if action is Action.END:
            self.spawn("end", self._see_ended, Event.OVERDUE)
        elif action is Action.START:
            self.spawn("start", self._start, Event.FAILED)

    def _message(self, action: Action) -> Message:
        """Add QEMU's own reason if QEMU gave up: the users of the source see nothing else of it."""
        cause = self.cause
        if action in ENDS and isinstance(cause, _GaveUp | QemuGone) and self.has_ended():
            own = self._output.last_words() or told(self._reason)
            where = self._output.where()
            what = f"{cause}: {own or where or 'it gives no reason'}"
            self.cause = type(cause)(what, hint=where if own else cause.hint)
        return super()._message(action)

    def _see_ended(self) -> None:
        """End QEMU. First ask whether another client let its guest run, and why it gave up: a QEMU that stays after a
        failure knows, and the thread that follows it may not have asked yet."""
        self.monitor.hurry()
        has_run = self._has_resumed  # what was heard holds, also of a QEMU that answers no more
        with suppress(QemuError):  # a QEMU that does not answer is ended all the same
            has_run = self.ran or has_run or self.monitor.run_state() not in (*UNRUN, self._came_as)
            if not self._output.is_ours and isinstance(self.cause, _GaveUp) and not self._reason:
                self._reason = self.monitor.migration().get("error-desc") or ""
        if has_run and not self.ran:
            self.ran = True
            self.cause = ran_early(self.cause)
        if self.ran:
            self.put(Event.STRAYED)
        self._end()
        self.put(Event.ENDED)

    def _start(self) -> None:
        """Run the guest, and see that it runs. Raises QemuError."""
        if self.has_ended():  # before it was told: so its guest never ran
            self.put(Event.ENDED, QemuGone("QEMU has ended before its guest could run"))
            return
        self._is_started = True
        if self._runs:
            self.monitor.execute("cont")
        self.put(Event.RUNNING)
        with suppress(QemuError):  # the guest runs, whether or not its network cards can announce it (QEMU 4.0)
            self.monitor.execute("announce-self", initial=50, max=550, rounds=5, step=100)

    def _release(self) -> None:
        with suppress(OSError):  # QEMU closed it first
            self._ours.shutdown(socket.SHUT_RDWR)
