"""The destination's half of a migration: the stream goes into a QEMU that waits, paused, until GO has come.

QEMU loads from a socketpair whose other direction is the return path. The guest is there when QEMU says `completed`
and the stream's digest agreed; it runs when the source says GO, and not a moment before. Whatever fails until then,
this QEMU is ended, and seen to have ended before the source hears of it, unless we break off over a mistake of our own.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

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

CAPABILITIES = ("events", "return-path", "late-block-activate")


@dataclass(frozen=True, slots=True)
class Speech:
    """What QEMU says outside of its monitor, which is its own reason where it gives up: its last words, empty where
    none are known, and where a person reads all of them. One that `is_ours` was started here, and ends by itself."""

    last_words: Callable[[], str] = str
    where: Callable[[], str] = str
    is_ours: bool = True


class _GaveUp(QemuError):
    """QEMU would have no more of the guest; why, it tells elsewhere."""


def ran_early(cause: BaseException | None = None) -> QemuError:
    """Of a guest that somebody else has let run, after the first `cause` why it was not to come."""
    what = "the guest ran here before the source had said that it may"
    hint = "another client of QEMU's monitor has told it so; its disks may no longer be as the source left them"
    return QemuError(what if cause is None else f"{what}; and {cause}", hint=hint)


class Arrival(Coordinator):
    """Runs the destination's half; `side` has reached INCOMING. `words` undo the source's stages; `end` ends QEMU and
    returns when it has ended; `runs` says whether the guest is to run once it is here."""

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
        speech: Speech | None = None,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        super().__init__(side, monitor, peer, journal, say)
        self.ran = False  # it was seen to run although nobody had let it
        self._end, self._speech = end, speech or Speech()
        self._came_as: str | None = None  # its run state as it was here, before anybody let it run
        self._reason = ""  # QEMU's, by its monitor
        self._runs = runs
        self._decided = threading.Event()  # the stream was verified, or no longer matters
        self._ours, self._theirs = socket.socketpair()
        sink = FdSink(self._ours.fileno(), "the migration socket")
        self._pipeline = Pipeline(peer.incoming, words, sink)

    def status(self) -> dict[str, Any]:
        """How it goes, ready for JSON: the pipeline's, `phase`, how many links are up."""
        return self._pipeline.status() | {"phase": self.side.state.name.lower(), "links": self.peer.links}

    def set_rate(self, rate: int | None) -> None:
        """Raises StatepipeError."""
        raise StatepipeError("how fast it goes, the source decides", hint="statepipe rate there")

    def run(self) -> Destination:
        """Take the guest; where it ended. What went wrong first is in `cause`."""
        with self._ours:
            self.coordinate(self._begin, self._act_on_qemu, self._release)
        state: Destination = self.side.state
        return state

    def waits_for(self) -> str | None:
        """What this state waits for; nothing of a QEMU that has ended, which is heard of next."""
        if self.has_ended():
            return None
        qemu = f"QEMU here (process {self.pid})"
        words = {
            Destination.WAITING: "the whole guest is here, paused; the source has not said yet that it may run",
            Destination.STARTING: f"{qemu} was told to run the guest and has not answered; until it has, whether the "
            "guest runs here is not known, and statepipe stays; if it is killed, its guardian waits in its place",
            Destination.STRAYED: f"{qemu} was told to end and has not ended yet; until it has, its guest runs here",
            Destination.ENDING: f"{qemu} was told to end and has not ended yet; {self.told_of_guest}",
        }
        return words.get(self.side.state)

    @property
    def told_of_guest(self) -> str:
        """What is to be said of the guest in a QEMU that is ended."""
        return "until it is ended, its guest runs here" if self.ran else "its guest never ran"

    def _begin(self) -> None:
        with self._theirs:
            self.monitor.execute("stop")  # one that was started without -S would run its guest as soon as it has it
            start_incoming(self.monitor, self._theirs, stays=not self._speech.is_ours)
        for name, work in (("stream", self._load), ("back", self._answer), ("qemu", self._follow)):
            self.spawn(name, work)

    def _load(self) -> None:
        """The stream into QEMU; whole and verified when this returns."""
        try:
            self._pipeline.pour()
        except ReaderGone as error:
            raise _GaveUp("QEMU took no more of the guest") from error
        self._decided.set()
        self.peer.incoming.accept()

    def _answer(self) -> None:
        """QEMU's return path to the source, until QEMU closes it."""
        with FdSource(self._ours.fileno(), "the return path") as answers:
            try:
                Pipeline(answers, [], self.peer.outgoing).pour()
            except PeerError:
                raise
            except StatepipeError as error:  # a reset: it has ended with bytes of ours unread
                raise _GaveUp("QEMU broke the return path off") from error
        self.peer.outgoing.end()

    def _follow(self) -> None:
        """Until QEMU has the whole guest, paused, and the stream was seen to be whole. Raises QemuError."""
        if (figures := self.monitor.migration_outcome())["status"] != "completed":
            self._reason = figures.get("error-desc") or ""
            raise _GaveUp(reported({"status": figures["status"]}))
        state = self.monitor.run_state()
        if state not in (*UNRUN, SUSPENDED) if self._runs else state == RUNNING:
            self.ran = True
            raise ran_early()
        self._came_as = state  # one that is suspended or was stopped, say by an I/O error, over there is so here too
        self._decided.wait()
        self.put(Event.COMPLETED)

    def _act_on_qemu(self, action: Action) -> None:
        if action is Action.END:
            self._decided.set()
            self.spawn("end", self._see_ended, Event.OVERDUE)
        elif action is Action.START:
            self.spawn("start", self._start, Event.FAILED)

    def _message(self, action: Action) -> Message:
        """With QEMU's own reason, where it is QEMU that would not: the source's people see nothing else of it."""
        if action in ENDS and isinstance(self.cause, _GaveUp | QemuGone) and self.has_ended():
            self.cause = self._explained(self.cause)
        return super()._message(action)

    def _explained(self, cause: QemuError) -> QemuError:
        own = self._speech.last_words() or told(self._reason)
        where = self._speech.where()
        what = f"{cause}: {own or where or 'it gives no reason'}"
        return type(cause)(what, hint=where if own else cause.hint)

    def _see_ended(self) -> None:
        self.monitor.hurry()
        with suppress(QemuError):  # it answers nothing, and is ended all the same
            self._ask_last()
        if self.ran:
            self.put(Event.STRAYED)
        self._end()
        self.put(Event.ENDED)

    def _ask_last(self) -> None:
        """Whether its guest runs, by another client's word, and why it gave up: a QEMU that stays after it has failed
        knows, and whoever follows it may not have asked yet. Raises QemuError."""
        if not self.ran and self.monitor.run_state() not in (*UNRUN, self._came_as):
            self.ran = True
            self.cause = ran_early(self.cause)
        if not self._speech.is_ours and isinstance(self.cause, _GaveUp) and not self._reason:
            self._reason = self.monitor.migration().get("error-desc") or ""

    def _start(self) -> None:
        """Run the guest, and see that it does. Raises QemuError."""
        if self.has_ended():  # before it was told: so its guest never ran
            self.put(Event.ENDED, QemuGone("QEMU has ended before its guest could run"))
            return
        if self._runs:
            self.monitor.execute("cont")
        self.put(Event.RUNNING)
        self._announce()

    def _announce(self) -> None:
        """Have the guest's network cards tell the switches where they are now, if this QEMU can (4.0 and newer)."""
        with suppress(QemuError):  # it runs, whatever becomes of that
            parameters = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
            self.monitor.execute("announce-self", **parameters)

    def _release(self) -> None:
        self._decided.set()
        with suppress(OSError):  # QEMU was first
            self._ours.shutdown(socket.SHUT_RDWR)
