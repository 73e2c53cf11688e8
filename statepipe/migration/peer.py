"""The other host of a migration: a byte stream in each direction and messages, all in one session.

Channel 0 is the migration stream in one direction and QEMU's return path in the other; channel 1 has the messages. No
stream ends the session: its failure is an event like others, and the two sides go on.
"""

from __future__ import annotations

from contextlib import ExitStack

from statepipe.errors import InterruptedBySignal, PeerError, StatepipeError
from statepipe.session.messages import Messages
from statepipe.session.session import FAREWELL, Session
from statepipe.session.streams import Inlet, Outlet
from statepipe.typed import Any, Self

Message = dict[str, Any]

CHANNELS = 2
"""Channels that each side of such a session writes."""

PARTING = 5.0
"""Seconds in which the other side must end its messages. It may have to end its QEMU first."""


class Peer:
    """The other host, over a session that is not entered yet, as the other side may send at once.

    `outgoing` takes bytes for it, `incoming` yields those from it. Threads may use all of it at the same time; every
    call raises PeerError once the other host is lost for good.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.outgoing = Outlet(session)
        self.incoming = Inlet(session)
        self._messages = Messages(session)
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        """Enter the session."""
        self._inside.enter_context(self.session)
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Leave the session: calls that wait raise PeerError. A second call does nothing."""
        self._inside.close()

    @property
    def name(self) -> str:
        """The name for users."""
        return self.session.name

    @property
    def links(self) -> int:
        """How many links are up."""
        return self.session.links

    @property
    def patience(self) -> float:
        """Seconds without any link until the other host counts as lost."""
        return self.session.timing.retry

    def tell(self, message: Message) -> None:
        """Send a message. Raises PeerError, also for a message that is too long."""
        try:
            self._messages.tell(message)
        except StatepipeError as error:
            raise _lost(error) from error

    def hear(self, within: float | None = None) -> Message | None:
        """Wait for the next message, at most so many seconds; None at the end of the other side's messages."""
        try:
            return self._messages.hear(within)
        except StatepipeError as error:
            raise _lost(error) from error

    def fall_silent(self) -> None:
        """End our messages."""
        self._messages.end()

    def part(self, *, in_peace: bool) -> None:
        """Close the session before it is left: with `in_peace`, both sides confirm that they have received everything;
        else the other side has not finished, and is told that this one has."""
        if in_peace:
            self.session.part(FAREWELL)
        else:
            self.session.fail(PeerError("this side has ended the session"))
            self.session.flush(FAREWELL)

    def farewell(self) -> None:
        """Close in peace a session without streams. Raises PeerError, also if the other side sends more messages."""
        self.fall_silent()
        if self.hear(max(FAREWELL, self.patience)) is not None:
            raise PeerError(f"{self.name} sent another message instead of ending the session")
        self.part(in_peace=True)

    def abandon(self, error: BaseException) -> None:
        """Tell the other side that the migration is off, and why."""
        failure = error if isinstance(error, StatepipeError) else StatepipeError(mistake(error))
        self.session.fail(failure)
        self.session.flush(FAREWELL)


def mistake(error: BaseException) -> str:
    """Return what is reported of an error that nobody foresaw: only its type, as its text may contain anything."""
    return f"an internal error of statepipe ({type(error).__name__})"


def _lost(error: StatepipeError) -> StatepipeError:
    """Whatever ended the session, the other side cannot be reached. A signal to us is no failure of the other side."""
    return error if isinstance(error, PeerError | InterruptedBySignal) else PeerError(str(error), hint=error.hint)
