"""The other host, as the two halves of a migration see it: two byte streams and messages, all in one session.

Channel 0 is the migration stream one way and QEMU's return path the other, channel 1 what the two halves tell each
other. None of the streams ends the session: a failed one is one event among others, and the halves talk on.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

from statepipe.errors import PeerError, StatepipeError
from statepipe.session.messages import Messages
from statepipe.session.session import FAREWELL, Session
from statepipe.session.streams import Inlet, Outlet

Message = dict[str, Any]

CHANNELS = 2
"""What each side of such a session writes."""

PARTING = 5.0
"""Seconds in which the other side is to say that it has nothing more to say. It may have to end its QEMU first."""


class Peer:
    """The other host, over a session that is not entered yet: the other side may speak at once.

    `outgoing` carries bytes there, `incoming` those from there. All of it may be used from different threads; every
    call raises PeerError once the other host cannot be reached for good.
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
        """Leave the session: whoever waits in a call raises PeerError. To leave twice is as good as once."""
        self._inside.close()

    @property
    def name(self) -> str:
        """For people."""
        return self.session.name

    @property
    def links(self) -> int:
        """How many are up."""
        return self.session.links

    @property
    def patience(self) -> float:
        """Seconds without any link until the other host is taken for lost."""
        return self.session.timing.retry

    def tell(self, message: Message) -> None:
        """Send a message. Raises PeerError also for one that is too long to be told."""
        try:
            self._messages.tell(message)
        except StatepipeError as error:
            raise _lost(error) from error

    def hear(self, within: float | None = None) -> Message | None:
        """Wait for the next one, so many seconds at the most; None once the other side has nothing more to say."""
        try:
            return self._messages.hear(within)
        except StatepipeError as error:
            raise _lost(error) from error

    def fall_silent(self) -> None:
        """Nothing more is told."""
        self._messages.end()

    def part(self, *, in_peace: bool) -> None:
        """The last act, before the session is left: both sides say that they have heard all.

        Not `in_peace`, where the other side has not finished: it is told that this one has.
        """
        if in_peace:
            self.session.part(FAREWELL)
        else:
            self.session.fail(PeerError("this side has ended the session"))
            self.session.flush(FAREWELL)

    def farewell(self) -> None:
        """Leave in peace a session in which no stream flowed. Raises PeerError, also for who talks on."""
        self.fall_silent()
        if self.hear(max(FAREWELL, self.patience)) is not None:
            raise PeerError(f"{self.name} sent another message instead of ending the session")
        self.part(in_peace=True)

    def abandon(self, error: BaseException) -> None:
        """Tell the other side that all is off, and why."""
        failure = error if isinstance(error, StatepipeError) else StatepipeError(mistake(error))
        self.session.fail(failure)
        self.session.flush(FAREWELL)


def mistake(error: BaseException) -> str:
    """What is told of an error that nobody foresaw: its kind, for what it says may be anything."""
    return f"an internal error of statepipe ({type(error).__name__})"


def _lost(error: StatepipeError) -> PeerError:
    """Whatever ended the session, the other side is out of reach."""
    return error if isinstance(error, PeerError) else PeerError(str(error), hint=error.hint)
