"""A session's channel as a pipeline has it: a sink that commits only with the far consumer's verdict, and a source.

The sink's `commit` is END, DONE, CLOSE: it returns once the receiver's consumer has said that the bytes are where
they belong, and raises that consumer's failure as our own. The source ends only after the digest of everything agreed;
then its owner, who alone knows whether the consumer has done its part, says `done` or `fail`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.session.protocol.channels import ChannelVerdict
from statepipe.session.protocol.frames import FRAME_SIZE
from statepipe.session.session import FAREWELL, Session, error_of
from statepipe.stage import Buffer, Cancelled


class SessionSink:
    """Writes a channel. Leaving without `commit` ends the session and tells the peer why. `bytes` counts what was
    written; `resent` what had to go twice.

    `until_closed` waits, after a good verdict, for what the peer has still to send before the session may close.
    """

    def __init__(self, session: Session, number: int = 0, until_closed: Callable[[], None] = lambda: None) -> None:
        self.session, self.bytes = session, 0
        self.until_closed = until_closed
        with session.lock:
            self._channel = session.wire.open(number)
        self._committed = False

    @property
    def resent(self) -> int:
        """Bytes that went over more than one link, since the first had died."""
        return self._channel.resent

    def facts(self) -> dict[str, int]:
        """How many links are up, and `resent`."""
        return {"links": self.session.links, "resent": self.resent}

    def __enter__(self) -> Self:
        """Wait until the peer is there: before any byte is taken from a source. Raises what became of the dial."""
        self.session.meet()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._committed:
            self.session.fail(_failure(error[1]))
            self.session.flush(FAREWELL)

    def write(self, buffer: Buffer) -> None:
        """Queue it all, within the window. Raises the session's failure or the far consumer's."""
        view = memoryview(buffer)
        for place in range(0, len(view), FRAME_SIZE):
            piece = view[place : place + FRAME_SIZE]
            self._channel.absorb(piece)
            self.session.put(self._channel, piece)
            self.bytes += len(piece)

    def commit(self) -> None:
        """End the channel and wait for the verdict. Raises it, unless it is good."""
        self.session.end(self._channel)
        verdict = self.session.verdict(self._channel)
        self._committed = True
        if not verdict.code:
            self.until_closed()
        self.session.say_close()
        self.session.hear_close(min(FAREWELL, self.session.timing.retry))
        if verdict.code:
            raise error_of(verdict, self.session.name)

    def hear(self, is_cancelled: Callable[[], bool]) -> None:
        """Wait for the verdict, from any thread, until cancelled. Raises it, unless it is good."""
        if not self.session.wait_until(lambda: self._channel.verdict is not None or is_cancelled()):
            self.session.check()
        verdict = self._channel.verdict
        if verdict is not None and verdict.code:
            raise error_of(verdict, self.session.name)

    def end(self) -> None:
        """Nothing more is written; what became of it nobody here waits for."""
        self.session.end(self._channel)


class SessionSource:
    """Reads a channel to its proven end. With `idle` (milliseconds), a flush mark when nothing has come for so long.

    `bytes` counts what came. Raises IntegrityError where the digest is not the sender's, the session's failure, and
    Cancelled.
    """

    def __init__(self, session: Session, number: int = 0, idle: int | None = None) -> None:
        self.session, self.bytes = session, 0
        self._idle = None if idle is None else idle / 1000
        self._cancelled = self._proved = False
        with session.lock:
            self._channel = session.wire.read(number)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Buffer:
        data = self.session.get(self._channel, self._idle, lambda: self._cancelled)
        if data is None:
            self._prove()
            raise StopIteration
        self._channel.absorb(data)
        self.bytes += len(data)
        return data

    def _prove(self) -> None:
        if not self._channel.is_whole:
            raise Cancelled
        try:
            self._channel.prove()
        except IntegrityError as error:
            self.session.judge(self._channel, ChannelVerdict(error.exit_code, str(error)))
            raise
        self._proved = True

    def cancel(self) -> None:
        """Wake a blocked read, from any thread."""
        self._cancelled = True
        self.session.wake()

    def done(self) -> bool:
        """The bytes are where they belong: tell the sender. Whether it has heard it, within the session's `retry`."""
        self.session.judge(self._channel, ChannelVerdict())
        return self._part(max(FAREWELL, self.session.timing.retry))

    def fail(self, error: BaseException) -> bool:
        """The consumer failed: tell the sender why. Whether it has heard it."""
        failure = _failure(error)
        self.session.judge(self._channel, ChannelVerdict(failure.exit_code, str(failure)))
        return self._part(min(FAREWELL, self.session.timing.retry))

    def _part(self, seconds: float) -> bool:
        heard = self.session.hear_close(seconds)
        self.session.say_close()
        self.session.flush(FAREWELL)
        return heard


class SessionReturn(SessionSource):
    """What comes back to a sink. Its end is the verdict on that: a bad one is raised, also while nothing is written."""

    def __init__(self, session: Session, sink: SessionSink) -> None:
        super().__init__(session)
        self._sink = sink

    def __next__(self) -> Buffer:
        try:
            return super().__next__()
        except StopIteration:
            self._sink.hear(lambda: self._cancelled)
            raise


def _failure(error: object) -> StatepipeError:
    """What made us give up, in words for the peer."""
    return error if isinstance(error, StatepipeError) else StatepipeError(str(error or "") or "it was stopped")
