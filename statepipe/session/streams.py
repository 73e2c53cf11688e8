"""The two ends of a channel, as a pipeline needs them: a sink that gets the remote consumer's verdict, and a source.

The sink's `commit` sends END and returns once the remote consumer has reported that the bytes are where they belong;
it raises that consumer's failure. The source ends only after the digest of everything matched. Then its owner, who
alone knows whether the consumer has done its part, calls `accept` or `refuse`.
"""

from __future__ import annotations

from collections.abc import Callable

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.session.protocol.channels import ChannelVerdict
from statepipe.session.protocol.frames import FRAME_SIZE
from statepipe.session.session import FAREWELL, Session, error_of
from statepipe.stage import Buffer, Cancelled
from statepipe.typed import Self


class Outlet:
    """Writes a channel. `bytes` counts the bytes written. Create it before the peer can refer to the channel.

    As a context, it is the only stream of its session: leaving it ends the session, and reports a failure to the peer.
    `until_closed` is called after a good verdict, to wait for what the peer still has to send.
    """

    def __init__(self, session: Session, number: int = 0) -> None:
        self.session, self.bytes = session, 0
        self.until_closed: Callable[[], object] = lambda: None
        with session.lock:
            self._channel = session.wire.open(number)

    @property
    def resent(self) -> int:
        """Bytes that were sent over more than one link, because the first one failed."""
        return self._channel.resent

    @property
    def is_refused(self) -> bool:
        """Whether the remote consumer has failed and takes no more."""
        return self._channel.verdict is not None and self._channel.verdict.code != 0

    def facts(self) -> dict[str, int]:
        """Return the number of open links, and `resent`."""
        return {"links": self.session.links, "resent": self.resent}

    def write(self, buffer: Buffer) -> None:
        """Queue the whole buffer, within the window. Raises the session's failure or the remote consumer's."""
        view = memoryview(buffer)
        for place in range(0, len(view), FRAME_SIZE):
            piece = view[place : place + FRAME_SIZE]
            self._channel.absorb(piece)
            self.session.put(self._channel, piece)
            self.bytes += len(piece)

    def end(self) -> None:
        """End the stream without waiting for its verdict."""
        self.session.end(self._channel)

    def commit(self) -> None:
        """End the stream and wait for its verdict. Raises the remote consumer's failure."""
        self.end()
        self.wait_for_verdict(lambda: False)
        self.until_closed()

    def wait_for_verdict(self, is_cancelled: Callable[[], bool]) -> None:
        """Wait for the verdict, from any thread, until cancelled. Raises the session's failure or the consumer's."""
        if not self.session.wait_until(lambda: self._channel.verdict is not None or is_cancelled()):
            self.session.check()
        if self._channel.verdict is not None and self._channel.verdict.code:
            raise error_of(self._channel.verdict, self.session.name)

    def __enter__(self) -> Self:
        """Wait for the peer, before any byte is read. Raises the session's failure."""
        self.session.meet()
        return self

    def __exit__(self, *error: object) -> None:
        if self._channel.verdict is not None:
            self.session.part(min(FAREWELL, self.session.timing.retry))
        else:
            self.session.fail(failure_of(error[1]))
            self.session.flush(FAREWELL)


class Inlet:
    """Reads a channel to its proved end. `bytes` counts the bytes read.

    With `idle` (seconds), yields a flush mark when no bytes arrived for that long. What flows back to a sink is read
    with `answering`, that sink: its end is the sink's verdict, and a bad one is raised, even while nothing is written.
    Raises IntegrityError if the digest is wrong, the session's failure, and Cancelled.
    """

    def __init__(
        self, session: Session, number: int = 0, idle: float | None = None, answering: Outlet | None = None
    ) -> None:
        self.session, self.bytes, self.idle = session, 0, idle
        self._answering, self._cancelled = answering, False
        with session.lock:
            self._channel = session.wire.read(number)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Buffer:
        data = self.session.get(self._channel, self.idle, lambda: self._cancelled)
        if data is not None:
            self._channel.absorb(data)
            self.bytes += len(data)
            return data
        if not self._channel.is_whole:
            raise Cancelled
        try:
            self._channel.prove()
        except IntegrityError as error:
            self.refuse(error)
            raise
        if self._answering is not None:
            self._answering.wait_for_verdict(lambda: self._cancelled)
        raise StopIteration

    def cancel(self) -> None:
        """Wake a blocked read, from any thread."""
        self._cancelled = True
        self.session.wake()

    def accept(self) -> None:
        """Report that all bytes are where they belong: the remote commit returns."""
        self.session.judge(self._channel, ChannelVerdict())

    def refuse(self, error: BaseException) -> None:
        """Report that the consumer failed: the remote writer gets this error. The other direction continues."""
        failure = failure_of(error)
        self.session.judge(self._channel, ChannelVerdict(failure.exit_code, str(failure)))


def failure_of(error: object) -> StatepipeError:
    """Return the reason for giving up, as it is reported to the peer."""
    return error if isinstance(error, StatepipeError) else StatepipeError(str(error or "") or "it was stopped")
