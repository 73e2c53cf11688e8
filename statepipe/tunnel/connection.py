"""One connection in a tunnel: a program's socket here, a session to the other end, and a direction each way.

It owns all three. Each direction is a thread that ends by itself, as it would between two programs at one unix socket:

1. What a program writes arrives over there in order, then its half-close does. One that reads slowly holds its
   connection back, and no other: each session has a window of its own.
2. A program that leaves while the other still writes breaks that direction alone: the writer hears of it as from a
   socket (EPIPE), and what the leaver has written before still arrives.
3. For a program that keeps its socket open there is no time limit: it alone knows whether it still reads.
4. A session that has failed, or was ended, ends both directions at once: both programs see their sockets' end.
5. When both directions have ended, the other end's last word is waited for as long as a lost link would be (until it
   is noticed, and `--retry` from then on). If it never comes, that is told and no failure: each side has proved by then
   that everything arrived; only whether the other knows remains open.

What broke a connection, its first cause, is what `carry` gives: it concerns no other, so nobody raises it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress

from statepipe.errors import PeerError, StatepipeError
from statepipe.migration.peer import Inlet, Outlet
from statepipe.session.protocol.frames import FRAME_SIZE
from statepipe.session.session import FAREWELL, Session

LEFT = "look at what that program says"


class Connection:
    """A session that has just begun, entered here, and the program's socket once that is known.

    `remark` is what is to be told of an end that was none of the failures. `ending` is left before the session waits
    for its threads: it ends a dial that may last.
    """

    def __init__(self, number: int, session: Session, ending: AbstractContextManager[object] | None = None) -> None:
        self.number, self.session = number, session
        self.outlet, self.inlet = Outlet(session), Inlet(session)  # before the peer may speak of them
        self.remark: str | None = None
        self._program: socket.socket
        self._going = 2
        self._failure: StatepipeError | None = None
        self._inside = ExitStack()
        self._inside.enter_context(session)
        self._inside.enter_context(ending or nullcontext())

    def carry(self, program: socket.socket) -> StatepipeError | None:
        """Both ways until both have ended. What broke it, of whatever kind; None if nothing did."""
        self._program = program
        with program, self._inside:
            try:
                for work in (self._take, self._give):
                    self.session.spawn(lambda work=work: self._go(work), "tunnel")  # type: ignore[misc]
                if self._have_ended():
                    self._part()
                else:
                    self._note(self.session.failure)
            finally:
                self._shut(socket.SHUT_RDWR)  # wakes a direction that the session's failure has left behind
        return self._failure

    def refuse(self, error: StatepipeError) -> StatepipeError:
        """There is no program: tell the other end why."""
        with self._inside:
            self.session.fail(error)
            self.session.flush(FAREWELL)
        return error

    def break_off(self, error: StatepipeError) -> None:
        """End it from any thread."""
        self.session.fail(error)

    def leave(self) -> None:
        """Let go of one that was never carried."""
        self._inside.close()

    # --- the directions

    def _go(self, work: Callable[[], None]) -> None:
        """A direction, to its end. What it raises is the session's failure."""
        work()
        with self.session.lock:
            self._going -= 1
        self.session.wake()

    def _take(self) -> None:
        """What the program here writes, to the other end."""
        try:
            while buffer := self._read():
                self.outlet.write(buffer)
            self.outlet.commit()  # returns once all of it is with the program there
        except StatepipeError as error:
            if not self.outlet.is_refused:
                raise
            self._note(error)
            self._refuse()

    def _refuse(self) -> None:
        """Who writes on gets EPIPE; who waits until there is room, by poll, sees that only once there is some."""
        self._shut(socket.SHUT_RD)
        while self._read():
            continue

    def _read(self) -> bytes:
        """Empty at the end. A program that leaves with bytes unread has ended too, after what it wrote itself."""
        try:
            return self._program.recv(FRAME_SIZE)
        except ConnectionResetError:
            self._note(PeerError("the program here left before it had read everything", hint=LEFT))
            return b""
        except OSError as error:
            raise PeerError(f"cannot read from the program here: {os.strerror(error.errno or 0)}") from error

    def _give(self) -> None:
        """What comes from the other end, to the program here."""
        for buffer in self.inlet:
            try:
                self._program.sendall(buffer)
            except OSError:
                error = PeerError("the program there left before it had read everything", hint=LEFT)
                self._note(PeerError("the program here left before it had read everything", hint=LEFT))
                self.inlet.refuse(error)
                return
        self._shut(socket.SHUT_WR)
        self.inlet.accept()

    # --- their end

    def _have_ended(self) -> bool:
        """Wait for both; whether they ended before the session failed."""
        if self.session.wait_until(lambda: not self._going or self.outlet.is_refused) and self._going:
            self._shut(socket.SHUT_RD)  # the program here may be silent: what it writes nobody wants
        return self.session.wait_until(lambda: not self._going)

    def _part(self) -> None:
        timing = self.session.timing
        seconds = timing.tick * timing.limit + timing.retry
        self.session.say_close()
        if not self.session.hear_close(seconds):
            self.remark = f"the other end has not confirmed its end within {seconds:g} s, though all had arrived"
        self.session.flush(FAREWELL)

    def _shut(self, how: int) -> None:
        with suppress(OSError):  # the program may have left
            self._program.shutdown(how)

    def _note(self, error: StatepipeError | None) -> None:
        """The first cause holds."""
        with self.session.lock:
            self._failure = self._failure or error
