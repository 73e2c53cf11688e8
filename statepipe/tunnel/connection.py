"""One connection in a tunnel: a program's socket on this host, a session to the other end, and two directions.

Each direction is a thread. The two programs see what they would see over one unix socket:

1. The bytes that a program writes arrive in order, followed by its half-close. A slow reader delays only its own
   connection, because each session has its own window.
2. If a program closes its socket while the other still writes, only that direction fails: the writer gets EPIPE, and
   everything that the first program wrote before still arrives.
3. There is no time limit while a program keeps its socket open, because only the program knows whether it still reads.
4. A session that fails or is ended ends both directions at once: both programs see the end of their sockets.
5. When both directions have ended, we wait for the other end's final message as long as for a lost link (the time to
   notice the loss, and `--retry` after that). If it never comes, this is reported but is not a failure: each side has
   already proved that everything arrived.

`carry` returns the first error that broke the connection. It is not raised, because it affects no other connection.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress

from statepipe.errors import PeerError, StatepipeError
from statepipe.session.protocol.frames import FRAME_SIZE
from statepipe.session.session import FAREWELL, Session
from statepipe.session.streams import Inlet, Outlet

LEFT = "read the messages of that program"


class Connection:
    """A new session, and the program's socket once it is known.

    `what` says in messages what the connection is for. `remark` is a message about the end that is not a failure. The
    context `ending` is exited before the session waits for its threads, to end an attempt to connect.
    """

    def __init__(self, number: int, session: Session, ending: AbstractContextManager[object] | None = None) -> None:
        self.number, self.session = number, session
        self.outlet, self.inlet = Outlet(session), Inlet(session)  # before the peer can refer to them
        self.what = ""
        self.remark: str | None = None
        self._program: socket.socket
        self._going = 2
        self._failure: StatepipeError | None = None
        self._inside = ExitStack()
        self._inside.enter_context(session)
        self._inside.enter_context(ending or nullcontext())

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"connection {self.number}" + (f" ({self.what})" if self.what else "")

    def carry(self, program: socket.socket) -> StatepipeError | None:
        """Carry both directions until both have ended. Return the error that broke the connection, or None."""
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
                self._shut(socket.SHUT_RDWR)  # wakes a direction that still waits after the session failed
        return self._failure

    def meet(self) -> None:
        """Wait until the other end is reached, or the session has failed: `carry` reports that."""
        self.session.wait_until(lambda: self.session.wire.opened)

    def refuse(self, error: StatepipeError) -> StatepipeError:
        """Report to the other end why no program could be reached here."""
        with self._inside:
            self.session.fail(error)
            self.session.flush(FAREWELL)
        return error

    def break_off(self, error: StatepipeError) -> None:
        """End it from any thread."""
        self.session.fail(error)

    def leave(self) -> None:
        """Close a connection that was never carried."""
        self._inside.close()

    # --- the directions

    def _go(self, work: Callable[[], None]) -> None:
        """Run a direction to its end. An exception becomes the session's failure."""
        work()
        with self.session.lock:
            self._going -= 1
        self.session.wake()

    def _take(self) -> None:
        """Send what the local program writes to the other end."""
        try:
            while buffer := self._read():
                self.outlet.write(buffer)
            self.outlet.commit()  # returns when the remote program has all of it
        except StatepipeError as error:
            if not self.outlet.is_refused:
                raise
            self._note(error)
            self._refuse()

    def _refuse(self) -> None:
        """Make further writes fail with EPIPE. A program that polls for room sees it only when there is room."""
        self._shut(socket.SHUT_RD)
        while self._read():
            continue

    def _read(self) -> bytes:
        """Read from the program; empty at the end. A program that closes with unread bytes has ended too."""
        try:
            return self._program.recv(FRAME_SIZE)
        except ConnectionResetError:
            self._note(PeerError("the local program closed its connection before it had read everything", hint=LEFT))
            return b""
        except OSError as error:
            raise PeerError(f"cannot read from the local program: {os.strerror(error.errno or 0)}") from error

    def _give(self) -> None:
        """Give what the other end sends to the local program."""
        for buffer in self.inlet:
            try:
                self._program.sendall(buffer)
            except OSError:
                error = PeerError("the remote program closed its connection before it had read everything", hint=LEFT)
                self._note(
                    PeerError("the local program closed its connection before it had read everything", hint=LEFT)
                )
                self.inlet.refuse(error)
                return
        self._shut(socket.SHUT_WR)
        self.inlet.accept()

    # --- their end

    def _have_ended(self) -> bool:
        """Wait for both directions; return whether they ended before the session failed."""
        if self.session.wait_until(lambda: not self._going or self.outlet.is_refused) and self._going:
            self._shut(socket.SHUT_RD)  # the local program may be silent; nothing that it writes is needed
        return self.session.wait_until(lambda: not self._going)

    def _part(self) -> None:
        timing = self.session.timing
        seconds = timing.tick * timing.limit + timing.retry
        if not self.session.part(seconds):
            self.remark = f"everything arrived, but the other end did not confirm the end within {seconds:g} s"

    def _shut(self, how: int) -> None:
        with suppress(OSError):  # the program may have closed it
            self._program.shutdown(how)

    def _note(self, error: StatepipeError | None) -> None:
        """Record an error; the first one is kept."""
        with self.session.lock:
            self._failure = self._failure or error
