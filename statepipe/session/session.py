"""A session at work: the state machine of session/protocol/wire.py over connections that come and go.

Each link has a thread that reads and one that writes. Whichever writer is free takes the next frames, so a slow link
carries less and a dead one nothing. Where there is only one link and its writer has nothing to do, the thread that
writes a channel may send by itself what the socket takes at once: a few bytes, which take less time than to wake the
writer, and all frames on a machine without a core to spare. There, to wake the writer for each frame took 16 % of a
sender's CPU time. One more thread ticks. All of them use the machine under one lock, held for microseconds: buffers are
hashed, sent and received outside it.

After a first link was dialled, a side that sees no progress of the session (Wire.life) for `retry` seconds gives up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from statepipe.errors import IntegrityError, NoKeyError, PeerError, QemuError, StatepipeError
from statepipe.session.linknews import LinkNews, Tell, nobody
from statepipe.session.protocol.channels import ChannelVerdict, Incoming, Outgoing
from statepipe.session.protocol.frames import Violation
from statepipe.session.protocol.states import Change, Event, State
from statepipe.session.protocol.wire import Wire
from statepipe.session.transport import Transport, drain
from statepipe.stage import FLUSH, Buffer
from statepipe.threads import NoThread, cores, held, join, start
from statepipe.typed import Self

FAREWELL = 5.0
"""Seconds at most to report the end to the peer, when nothing depends on its answer any more."""

FEW_CORES = 2
"""With so many, a source and one thread of ours keep them busy. On 2, with large records and both ends there: 3.0 CPU
s/GB with the writer woken for each frame, 2.75 without, and the same speed. With more cores, to seal beside the thread
that reads and hashes makes a sender faster."""

FEW_BYTES = 16 << 10
"""To seal and send them takes 20 µs of processor time, to wake another thread some 40."""

LOOK_THERE = "read its messages on the other host"

_KINDS: dict[int, type[StatepipeError]] = {1: StatepipeError, 3: IntegrityError, 4: NoKeyError, 6: QemuError}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: `tick` between signs of life, `retry` without progress before a session gives up.

    A link silent for `limit` ticks is dead. `tell` reports that nothing arrives any more; `longer` is the hint for a
    longer wait, if there is a way.
    """

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
        self._sendable = threading.Condition(self.lock)  # for all writers: that of an unopened link can do nothing
        self._idle = threading.Condition(self.lock)  # a writer has finished a send
        self._sending: set[int] = set()  # links that a thread sends over
        self._transports: dict[int, Transport] = {}
        self.failure: StatepipeError | None = None
        self._has_aborted = False  # we, not the peer
        self.last_trouble: Exception | None = None  # why a link failed: reported if none comes back
        self._last_sign = float("inf")  # the first dial may take as long as it does
        self._life = self._greeted = 0  # links that have opened since the last sign
        self._has_waited = False  # for a link that fell silent, since then
        self._news = LinkNews(timing.tell, name, timing.retry)
        self._threads: list[threading.Thread] = []
        self._lacks_cores = cores() <= FEW_CORES

    def __enter__(self) -> Self:
        self.spawn(self._tick, "session")
        return self

    def __exit__(self, *error: object) -> None:
        with self.lock:
            if self._has_aborted:  # closing a socket with unread bytes resets it, and a reset overtakes our reason
                self._idle.wait_for(lambda: not self.links, FAREWELL)
            self.failure = self.failure or PeerError(f"the session with {self.name} has ended")
            self.stopped.set()
            for transport in self._transports.values():
                transport.cut()
            self._wake_all()
        for thread in self._threads:
            join(thread)
        with self.lock:
            self.wire.forget()

    def spawn(self, work: Callable[[], None], name: str) -> None:
        """Do some of the session's work in a new thread. An exception becomes the session's failure."""

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
        """Send the greeting and move bytes over a link, which the machine already knows, until the link fails."""
        with self.lock:
            self._transports[number] = transport
            self._sending.add(number)  # nothing is sent before the greeting
            self._last_sign = min(self._last_sign, time.monotonic())
            self._greeted += number in self.wire.links and self.wire.links[number].is_open
            for each in self._transports:
                if self.stopped.is_set() or each not in self.wire.links:  # this link has replaced it
                    self._transports[each].cut()
            link = self.wire.links.get(number)
        writer = threading.Thread(target=self._write, args=(number, transport), name="link", daemon=True)
        try:
            try:
                transport.send([greeting])
            finally:
                with self.lock:
                    self._sending.discard(number)
            start(writer)
            for item in transport.items(link.reader) if link is not None else ():
                with self.lock:
                    if item is not None:
                        self._announce(self.wire.receive(number, item))
                    elif link is not None:
                        link.heard = True  # part of a long frame, over a slow link
        except Violation as error:
            self.fail(error)
            drain(transport)
        except (OSError, PeerError, NoThread) as error:  # NoThread: its writer could not be started
            self._blame(number, error)
        finally:
            with self.lock:
                self._lose(number)
                del self._transports[number]
            if writer.ident is not None:
                join(writer)
            with self.lock:  # its number may belong to another file once it is closed
                self._idle.wait_for(lambda: number not in self._sending)
            transport.close()

    def _write(self, number: int, transport: Transport) -> None:
        """Send what the machine gives for a link, until the link is gone."""
        while True:
            with self.lock:
                while (buffers := self._taken(number, transport)) is None:
                    if number not in self.wire.links:
                        return
                    self._sendable.wait()
            if not self._sent(number, transport, partial(transport.send, buffers)):
                return

    def _send_here(self) -> None:
        """Send what the only link takes at once in the calling thread, if its writer has nothing to do.

        Signals that end us wait for it: an exception in the midst of a record would end the link.
        """
        with held():
            with self.lock:
                if len(self._transports) != 1:
                    return self._sendable.notify_all()
                number, transport = next(iter(self._transports.items()))
                buffers = None if transport.is_behind else self._taken(number, transport)
            if buffers is None:
                return
            self._sent(number, transport, partial(transport.send_now, buffers))
            with self.lock:
                if transport.is_behind or self.wire.has_to_send() or self.wire.has_data_to_send():
                    self._sendable.notify_all()  # the writer could not do it meanwhile

    def _taken(self, number: int, transport: Transport) -> list[Buffer] | None:
        """Take what is to be sent over a link now, unless another thread sends over it; None if there is nothing. The
        list is empty if only the rest of an earlier send is left. The lock is held."""
        if number in self._sending or number not in self.wire.links:
            return None
        buffers = self.wire.to_send(number)
        if not buffers and not transport.is_behind:
            return None
        self._sending.add(number)
        return buffers

    def _sent(self, number: int, transport: Transport, send: Callable[[], None]) -> bool:
        """Send what was taken for a link; return whether the link still works."""
        try:
            send()
            return True
        except (OSError, PeerError) as error:
            self._blame(number, error)
            transport.cut()  # its reader returns, and reports the loss
            return False
        finally:
            with self.lock:
                self._sending.discard(number)
                self._idle.notify_all()

    def _lose(self, number: int) -> None:
        """Forget a link that has ended or counts as dead, and wake whoever is blocked in it."""
        self.wire.lost(number)
        if number in self._transports:
            self._transports[number].cut()
        self._wake_all()

    def _blame(self, number: int, error: Exception) -> None:
        """Remember why a link failed, unless it was given up before: then that was the reason."""
        with self.lock:
            if number in self.wire.links:
                self.last_trouble = error

    def _tick(self) -> None:
        """Look after links and news once a tick.

        Time in which this process itself was stopped (by a shell, with its cgroup, without a processor) does not count
        as waiting for the peer.
        """
        before = time.monotonic()
        while not self.stopped.wait(self.timing.tick):
            with self.lock:
                now = time.monotonic()
                self._last_sign += max(now - before - self.timing.tick, 0)
                before = now
                for number in self.wire.tick(self.timing.limit):
                    self.last_trouble = self._silence(number)
                    self._lose(number)
                    self._has_waited = True
                self._sendable.notify_all()
                is_running = self.wire.opened and self.wire.state is State.RUNNING and self.failure is None
                heard = any(link.is_open and not link.silent for link in self.wire.links.values())
                cause = None if heard or self.links else self.last_trouble
            if is_running:
                self._news.look(self.timing.tick, cause, heard=heard)
            self._give_up_if_alone()

    def _silence(self, number: int) -> PeerError:
        """Return the error of a link that is silent."""
        seconds = self.timing.tick * self.timing.limit
        if self.wire.links[number].is_open:
            return PeerError(f"a link was silent for {seconds:g} s")
        what = f"{self.name} accepted a connection, but did not begin the session within {seconds:g} s"
        return PeerError(what, hint="check that it is statepipe that listens there, and is not stopped")

    def _give_up_if_alone(self) -> None:
        """Fail after `retry` seconds without progress.

        An open link that is still to prove useful gets the time of a silent link in addition, and the time that a
        silent link took does not count as time to make another. Each is granted once, so a path that brings new links
        forever gains nothing.
        """
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
            what = f"connections to {self.name} open, but no data got through for {timing.retry:g} s{cause}"
            hint = "check for a firewall or proxy between the hosts that accepts connections and drops their data"
        else:
            what = f"no link to {self.name} for {timing.retry:g} s{cause}"
            hint = "; ".join(filter(None, ["check that the other host and the network are up", timing.longer]))
        self.fail(PeerError(what, hint=hint))
        self._has_aborted = False  # the peer cannot be told: nothing to wait for

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
        """End the session with an error: each waiting call raises it, and the peer gets it. The first one counts."""
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
        """Wait until a link has opened. Raises the session's failure."""
        if not self.wait_until(lambda: self.wire.opened):
            self.check()

    def wait_until(self, look: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until `look` returns true, the session fails, or `seconds` have passed. Return what `look` returns."""
        with self.lock:
            self._writable.wait_for(lambda: look() or self.failure is not None, seconds)
            return look()

    def put(self, channel: Outgoing, piece: Buffer) -> None:
        """Queue a piece once the window has room. Raises the session's failure or the remote consumer's."""
        with self.lock:
            while True:
                self.check()
                if channel.verdict is not None:
                    raise error_of(channel.verdict, self.name)
                if channel.has_room(len(piece)):
                    break
                self._writable.wait()
            channel.write(piece)
            if len(piece) > FEW_BYTES and not self._lacks_cores:
                self._sendable.notify_all()
                return
        self._send_here()

    def end(self, channel: Outgoing) -> None:
        """End a channel: nothing more is written."""
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
        """Make every waiting call check again what it waits for."""
        with self.lock:
            self._wake_all()

    def judge(self, channel: Incoming, verdict: ChannelVerdict) -> None:
        """Send the verdict on a channel to its writer."""
        with self.lock:
            self.wire.judge(channel, verdict)
            self._sendable.notify_all()

    def hear_close(self, seconds: float) -> bool:
        """Wait for the peer's CLOSE; return whether it came, before the session failed or the seconds had passed."""
        heard = (State.HEARD_CLOSE, State.OVER)
        return self.wait_until(lambda: self.wire.state in heard, seconds)

    def say_close(self) -> None:
        """Send CLOSE: we have heard all we want."""
        with self.lock:
            self.wire.close()
            self._sendable.notify_all()

    def part(self, seconds: float) -> bool:
        """Send CLOSE and wait for the peer's, so many seconds; return whether it came."""
        self.say_close()
        heard = self.hear_close(seconds)
        self.flush(FAREWELL)
        return heard

    def flush(self, seconds: float) -> None:
        """Wait until everything that the peer must know is sent, while there is a link for it."""
        with self.lock:
            self._idle.wait_for(lambda: not (self.links and self._has_more()), seconds)

    def _has_more(self) -> bool:
        """Return whether something that the peer must know is not sent yet. The lock is held."""
        is_behind = any(transport.is_behind for transport in self._transports.values())
        return bool(self._sending) or is_behind or self.wire.has_to_send()

    @property
    def links(self) -> int:
        """The number of open links."""
        return sum(link.is_open for link in list(self.wire.links.values()))


def error_of(verdict: ChannelVerdict, name: str) -> StatepipeError:
    """Return the peer's failure as an error of the same kind, so that both sides exit with the same code."""
    kind = _KINDS.get(verdict.code, PeerError)
    return kind(f"{name} failed: {verdict.text or 'it gave no reason'}", hint=LOOK_THERE)
