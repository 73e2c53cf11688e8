"""Messages in a session, for the two sides of a migration: small JSON objects, each delivered once and in order.

    be32 length, JSON of that length

They use a channel, with the same guarantees as the stream's: what was lost with a link is sent again, and the digest is
proved at the end. A message is acknowledged once it was read, so unread messages fill the window and then block `tell`.
"""

from __future__ import annotations

import json
import threading
import time
from struct import Struct

from statepipe.errors import IntegrityError, PeerError
from statepipe.session.protocol.frames import Violation
from statepipe.session.session import Session
from statepipe.session.streams import Inlet, Outlet
from statepipe.shapes import Misshapen, anything, parse, table, text, told
from statepipe.typed import Any

MESSAGES = 1
"""Their channel in each direction. Each side allows the other two channels."""

MAX_MESSAGE = 64 << 10
"""Bytes of a message at most: our largest, a description of a guest's devices, has about 10 KiB."""

_LENGTH = Struct(">I")

_OBJECT = table(anything, most=MAX_MESSAGE, names=text(64))
"""The shape of every message. Its reader checks the content (migration/negotiation.py)."""


class Messages:
    """The messages of both sides. Create it before the session is entered, because the peer may send at once.

    Any thread may call `tell`, one may call `hear`. Both raise what ended the session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._outlet, self._inlet = Outlet(session, MESSAGES), Inlet(session, MESSAGES)
        self._telling = threading.Lock()
        self._held = bytearray()

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message, waiting only while the window is full. Raises PeerError if it is too long."""
        letters = json.dumps(message, separators=(",", ":")).encode()
        if len(letters) > MAX_MESSAGE:
            raise PeerError(f"a message of {len(letters)} bytes is too long: at most {MAX_MESSAGE} are allowed")
        with self._telling:
            self._outlet.write(_LENGTH.pack(len(letters)) + letters)

    def end(self) -> None:
        """Send no more."""
        with self._telling:
            self._outlet.end()

    def hear(self, within: float | None = None) -> dict[str, Any] | None:
        """Wait for the next message and return it; None once the peer has finished.

        Raises Violation for anything else, PeerError if it did not arrive completely within so many seconds.
        """
        deadline = None if within is None else time.monotonic() + within
        try:
            while (message := self._cut()) is None:
                self._inlet.idle = None if deadline is None else max(deadline - time.monotonic(), 0)
                if (data := next(self._inlet, None)) is None:
                    if self._held:
                        raise Violation("it ended in the middle of a message")
                    self._inlet.accept()
                    return None
                if not len(data) and self._inlet.idle == 0:
                    raise PeerError(f"{self._session.name} did not send the expected message in time")
                self._held += data
        except (Violation, IntegrityError) as error:
            self._session.fail(error)
            raise
        return message

    def _cut(self) -> dict[str, Any] | None:
        """Return the first message that has arrived completely, if there is one."""
        if len(self._held) < _LENGTH.size:
            return None
        length = _LENGTH.unpack_from(self._held)[0]
        if length > MAX_MESSAGE:
            raise Violation(f"a message of {length} bytes: at most {MAX_MESSAGE} are allowed")
        end = _LENGTH.size + length
        if len(self._held) < end:
            return None
        letters = bytes(self._held[_LENGTH.size : end])
        del self._held[:end]
        try:
            message: dict[str, Any] = parse(letters, _OBJECT)
        except Misshapen as error:
            raise Violation(f"a message that is not a JSON object: {told(error)}") from error
        return message
