"""A session at work: the machine of session/protocol/wire.py over connections that come and go.

Each link has a thread that reads and one that writes; whichever writer is free takes the next frames, so a slow link
carries less and a dead one nothing. One more thread ticks. All of them meet in the machine, under one lock, held for
microseconds: buffers are hashed, sent and received outside it.

Who sees no sign for `retry` seconds, once a first link was dialled, that the session goes on (Wire.life), gives up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from statepipe.errors import IntegrityError, NoKeyError, PeerError, QemuError, StatepipeError
from statepipe.session.linknews import LinkNews, Tell, nobody
from statepipe.session.protocol.channels import ChannelVerdict, Incoming, Outgoing
from statepipe.session.protocol.frames import Violation
from statepipe.session.protocol.states import Change, Event, State
from statepipe.session.protocol.wire import Wire
from statepipe.session.transport import Transport, drain
from statepipe.stage import FLUSH, Buffer
from statepipe.threads import NoThread, join, start

FAREWELL = 5.0
"""Seconds at most to tell the peer how it ended, where nothing depends on its answer any more."""

_KINDS: dict[int, type[StatepipeError]] = {1: StatepipeError, 3: IntegrityError, 4: NoKeyError, 6: QemuError}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: `tick` between signs of life, `retry` without anything that is heard. A link silent for `limit` ticks is
    dead. `tell` is told when nothing comes any more, `longer` is how to wait longer, if there is a way."""

    tick: float = 1.0
    limit: int = 5
    retry: float = 30.0
    tell: Tell = nobody
    longer: str = "--retry SECONDS waits longer"


class Session:
    """One session, from its first link to its end. Leaving the context ends every thread and link."""

    def __init__(self, wire: Wire, timing: Timing, name: str) -> None:
        self.wire, self.timing, self.name = wire, timing, name
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self._readable = threading.Condition(self.lock)
        self._writable = threading.Condition(self.lock)  # and every verdict
        self._sendable = threading.Condition(self.lock)  # for all writers: that of a link not yet open can do nothing
        self._idle = threading.Condition(self.lock)  # a writer has finished a send
        self._sending = 0
        self._transports: dict[int, Transport] = {}
        self.failure: StatepipeError | None = None
        self._has_aborted = False  # we, and not the peer
        self.last_trouble: Exception | None = None  # why a link went: told if none comes back
        self._last_sign = float("inf")  # to dial the first time may take as long as it does
        self._life = self._greeted = 0  # links that were open since the last sign
        self._has_waited = False  # for a link that went silent, since then
        self._news = LinkNews(timing.tell, name, timing.retry)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.spawn(self._tick, "session")
        return self

    def __exit__(self, *error: object) -> None:
        with self.lock:
            if self._has_aborted:  # a socket closed over unread bytes is reset, which overtakes what was said
                self._idle.wait_for(lambda: not self._transports, FAREWELL)
            self.failure = self.failure or PeerError(f"the session with {self.name} is over")
            self.stopped.set()
            for transport in self._transports.values():
                transport.cut()
            self._wake_all()
        for thread in self._threads:
            join(thread)
        with self.lock:
            self.wire.forget()

    def spawn(self, work: Callable[[], None], name: str) -> None:
        """Do some of the session's work in a thread of its own; what that raises is the session's failure."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self.fail(error if isinstance(error, StatepipeError) else StatepipeError(f"{name}: {error!r}"))
                if not isinstance(error, StatepipeError):
                    raise

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        with self.lock:
            self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
            start(thread)

    # --- links

    def carry(self, number: int, transport: Transport, greeting: bytes) -> None:
        """Move bytes over a link until it dies. The machine has it already; `greeting` goes first."""
        with self.lock:
            self._transports[number] = transport
            self._last_sign = min(self._last_sign, time.monotonic())
            self._greeted += number in self.wire.links and self.wire.links[number].is_open
            for each in self._transports:
                if self.stopped.is_set() or each not in self.wire.links:  # this one took its place
                    self._transports[each].cut()
        writer = threading.Thread(target=self._write, args=(number, transport), name="link", daemon=True)
        try:
            transport.send([greeting])
            start(writer)
            self._read(number, transport)
        except Violation as error:
            self.fail(error)
            drain(transport)
        except (OSError, PeerError, NoThread) as error:  # the last where there can be none for its writer
            self._blame(number, error)
        finally:
            with self.lock:
                self._lose(number)
                del self._transports[number]
            if writer.ident is not None:
                join(writer)
            transport.close()

    def _read(self, number: int, transport: Transport) -> None:
        with self.lock:
            link = self.wire.links.get(number)
        while link is not None and (count := transport.recv_into(link.reader.room())):
            item = link.reader.filled(count)
            with self.lock:
                if item is not None:
                    self._announce(self.wire.receive(number, item))
                else:
                    link.heard = True  # a part of a long frame, over a slow link

    def _write(self, number: int, transport: Transport) -> None:
        while buffers := self._next(number):
            try:
                transport.send(buffers)
            except (OSError, PeerError) as error:
                self._blame(number, error)
                return transport.cut()  # its reader comes back, and says that it is lost
            finally:
                with self.lock:
                    self._sending -= 1
                    self._idle.notify_all()

    def _next(self, number: int) -> list[Buffer]:
        """What is to go over the link, once there is something; empty when the link is gone."""
        with self.lock:
            while number in self.wire.links:
                if buffers := self.wire.to_send(number):
                    self._sending += 1
                    return buffers
                self._sendable.wait()
        return []

    def _lose(self, number: int) -> None:
        """A link is no more, or taken for dead: whoever is blocked in it comes back."""
        self.wire.lost(number)
        if number in self._transports:
            self._transports[number].cut()
        self._wake_all()

    def _blame(self, number: int, error: Exception) -> None:
        """Remember why a link went, unless it was given up before: then that was why."""
        with self.lock:
            if number in self.wire.links:
                self.last_trouble = error

    def _tick(self) -> None:
        """Time in which we ourselves stood still (stopped by a shell, frozen with our group, without a turn) says
        nothing of the peer: it is no part of what was waited for."""
        before = time.monotonic()
        while not self.stopped.wait(self.timing.tick):
            with self.lock:
                now = time.monotonic()
                self._last_sign += max(now - before - self.timing.tick, 0)
                before = now
                for number in self.wire.tick(self.timing.limit):
                    self.last_trouble = PeerError(f"a link was silent for {self.timing.tick * self.timing.limit:g} s")
                    self._lose(number)
                    self._has_waited = True
                self._sendable.notify_all()
            self._tell_news()
            self._give_up_if_alone()

    def _tell_news(self) -> None:
        with self.lock:
            if not self.wire.opened or self.wire.state is not State.RUNNING or self.failure is not None:
                return
            heard = any(link.is_open and not link.silent for link in self.wire.links.values())
            cause = None if heard or self.links else self.last_trouble
        self._news.look(self.timing.tick, cause, heard=heard)

    def _give_up_if_alone(self) -> None:
        """A link that is up and has yet to show its use gets the time that silence takes, and what a silent one took is
        no part of the time to make another. Both once: a way that has new links for ever gains nothing by it."""
        timing = self.timing
        with self.lock:
            if self.wire.life != self._life:
                self._life, self._last_sign = self.wire.life, time.monotonic()
                self._greeted, self._has_waited = 0, False
            links, waited = self.links, time.monotonic() - self._last_sign
        if waited < timing.retry + (timing.tick * timing.limit if links or self._has_waited else 0):
            return
        cause = f": {self.last_trouble}" if self.last_trouble else ""
        if links or self._greeted > 1:
            what = f"nothing gets through to {self.name} and back for {timing.retry:g} s, though connections do{cause}"
            hint = "look at what stands between the hosts: a firewall or a proxy that holds back what it lets connect"
        else:
            what = f"no link to {self.name} for {timing.retry:g} s{cause}"
            hint = "; ".join(filter(None, ["look whether the other host and the network are up", timing.longer]))
        self.fail(PeerError(what, hint=hint))
        self._has_aborted = False  # the peer cannot hear of it: nothing to wait for

    # --- what changed

    def _announce(self, events: list[Event]) -> None:
        for event in events:
            if event.change is Change.READABLE:
                self._readable.notify_all()
            elif event.change is Change.ABORTED and event.verdict is not None:
                self._fail(error_of(event.verdict, self.name))
                self._has_aborted = False
            else:
                self._greeted += event.change is Change.OPENED
                self._writable.notify_all()
                self._sendable.notify_all()

    def _wake_all(self) -> None:
        for condition in (self._readable, self._writable, self._sendable, self._idle):
            condition.notify_all()

    def fail(self, error: StatepipeError) -> None:
        """The session failed: whoever waits for it raises this, and the peer is told. The first failure holds."""
        with self.lock:
            self._fail(error)

    def _fail(self, error: StatepipeError) -> None:
        if self.failure is None:
            self.failure = error
            self._has_aborted = True
            self.wire.abort(ChannelVerdict(error.exit_code, str(error)))
        self._wake_all()

    def check(self) -> None:
        """Raises the session's failure, if there is one."""
        if self.failure is not None:
            raise self.failure

    # --- for the two ends

    def meet(self) -> None:
        """Wait until a link was open. Raises the session's failure."""
        if not self.wait_until(lambda: self.wire.opened):
            self.check()

    def wait_until(self, look: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until `look` sees what it looks for, as things change; whether it did before the session failed, or
        `seconds` were over."""
        with self.lock:
            self._writable.wait_for(lambda: look() or self.failure is not None, seconds)
            return look()

    def put(self, channel: Outgoing, piece: Buffer) -> None:
        """Queue a piece, once the window has room. Raises the session's failure or the far consumer's."""
        with self.lock:
            while self._is_wanted(channel) and not channel.has_room(len(piece)):
                self._writable.wait()
            channel.write(piece)
            self._sendable.notify_all()

    def _is_wanted(self, channel: Outgoing) -> bool:
        self.check()
        if channel.verdict is not None:
            raise error_of(channel.verdict, self.name)
        return True

    def verdict(self, channel: Outgoing) -> ChannelVerdict:
        """Wait for the far consumer's verdict. Raises the session's failure."""
        if not self.wait_until(lambda: channel.verdict is not None):
            self.check()
        assert channel.verdict is not None  # the first holds
        return channel.verdict

    def end(self, channel: Outgoing) -> None:
        """Nothing more is written."""
        with self.lock:
            self.wire.end(channel)
            self._sendable.notify_all()

    def get(self, channel: Incoming, idle: float | None, is_cancelled: Callable[[], bool]) -> Buffer | None:
        """Return the next buffer; FLUSH after `idle` seconds without any; None at the end or once cancelled."""
        deadline = None if idle is None else time.monotonic() + idle
        with self.lock:
            while (data := self.wire.take(channel)) is None:
                self.check()
                if channel.is_whole or is_cancelled():
                    return None
                if not self._readable.wait(None if deadline is None else max(deadline - time.monotonic(), 0)):
                    return FLUSH
            if self.wire.has_to_send():
                self._sendable.notify_all()
            return data

    def wake(self) -> None:
        """Have all who wait look again: for whether they were cancelled, or what else has changed."""
        with self.lock:
            self._wake_all()

    def judge(self, channel: Incoming, verdict: ChannelVerdict) -> None:
        """Tell the writer what became of its channel."""
        with self.lock:
            self.wire.judge(channel, verdict)
            self._sendable.notify_all()

    def hear_close(self, seconds: float) -> bool:
        """Wait until the peer has heard all it wants; whether it did, before the session failed or time was up."""
        heard = (State.HEARD_CLOSE, State.OVER)
        return self.wait_until(lambda: self.wire.state in heard, seconds)

    def say_close(self) -> None:
        """We have heard all we want."""
        with self.lock:
            self.wire.close()
            self._sendable.notify_all()

    def part(self, seconds: float) -> bool:
        """Report that we have heard all we want; return whether the peer did the same within so many seconds."""
        self.say_close()
        heard = self.hear_close(seconds)
        self.flush(FAREWELL)
        return heard

    def flush(self, seconds: float) -> None:
        """Wait until what must be known is sent, where there is a link for it."""
        with self.lock:
            self._idle.wait_for(lambda: not (self.links and (self._sending or self.wire.has_to_send())), seconds)

    @property
    def links(self) -> int:
        """How many are up."""
        return sum(link.is_open for link in list(self.wire.links.values()))


def error_of(verdict: ChannelVerdict, name: str) -> StatepipeError:
    """The peer's failure as ours: of the same kind, so that both end with the same exit code."""
    kind = _KINDS.get(verdict.code, PeerError)
    return kind(f"{name} failed: {verdict.text or 'it gave no reason'}", hint="look at what it says over there")
