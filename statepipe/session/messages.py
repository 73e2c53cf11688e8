"""Messages within a session, for those who move a guest between hosts: small JSON objects, each once and in order.

    be32 length, JSON of that length

They are a channel like the stream's, so what guards that guards them: one that was lost with its link goes again, and
the digest is proved at the end. A message is acknowledged once somebody has heard it, so those that nobody hears fill
the window and then stop whoever tells them.
"""

from __future__ import annotations

import json
import threading
import time
from struct import Struct
from typing import Any

from statepipe.errors import IntegrityError, PeerError
from statepipe.session.protocol.channels import ChannelVerdict
from statepipe.session.protocol.frames import Violation
from statepipe.session.session import Session
from statepipe.shapes import Misshapen, anything, parse, table, text, told

MESSAGES = 1
"""Their channel, each way. Both sides allow each other two."""

MAX_MESSAGE = 64 << 10
"""Bytes of one: the largest that we say, a description of a guest's devices, has some 10 KiB."""

_LENGTH = Struct(">I")

_OBJECT = table(anything, most=MAX_MESSAGE, names=text(64))
"""What every message is. What is in it, they know for whom it is (migration/negotiation.py)."""


class Messages:
    """What the two sides tell each other. Made before the session is entered: the peer may speak at once.

    Any thread may `tell`, one `hear`s. Both raise what ended the session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._telling = threading.Lock()
        self._held = bytearray()
        with session.lock:
            self._outgoing, self._incoming = session.wire.open(MESSAGES), session.wire.read(MESSAGES)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message, waiting only while the window is full. Raises PeerError if it is too long."""
        letters = json.dumps(message, separators=(",", ":")).encode()
        if len(letters) > MAX_MESSAGE:
            raise PeerError(f"what is to be told needs {len(letters)} bytes, of {MAX_MESSAGE} that a message may have")
        packed = _LENGTH.pack(len(letters)) + letters
        with self._telling:
            self._session.put(self._outgoing, packed)
            self._outgoing.absorb(packed)

    def end(self) -> None:
        """Tell no more."""
        with self._telling:
            self._session.end(self._outgoing)

    def hear(self, within: float | None = None) -> dict[str, Any] | None:
        """The next message, waiting for it; None once the peer has finished.

        Raises Violation for what is none, PeerError if it has not come whole within so many seconds.
        """
        deadline = None if within is None else time.monotonic() + within
        try:
            while (message := self._cut()) is None:
                if not self._read(deadline):
                    return None
        except (Violation, IntegrityError) as error:
            self._session.fail(error)
            raise
        return message

    def _read(self, deadline: float | None) -> bool:
        """Take what comes next; whether that was not the end. Raises PeerError if nothing has come by the deadline."""
        data = self._session.get(self._incoming, _left(deadline), lambda: _left(deadline) == 0)
        if data is not None and len(data):
            self._incoming.absorb(data)
            self._held += data
            return True
        if _left(deadline) == 0 and not self._incoming.is_whole:
            raise PeerError(f"{self._session.name} has not said in time what is due")
        if data is not None:
            return True
        self._incoming.prove()
        if self._held:
            raise Violation("it ended in the midst of a message")
        self._session.judge(self._incoming, ChannelVerdict())
        return False

    def _cut(self) -> dict[str, Any] | None:
        """The first of the messages that have come whole."""
        if len(self._held) < _LENGTH.size:
            return None
        length = _LENGTH.unpack_from(self._held)[0]
        if length > MAX_MESSAGE:
            raise Violation(f"a message of {length} bytes, of {MAX_MESSAGE} allowed")
        end = _LENGTH.size + length
        if len(self._held) < end:
            return None
        letters = bytes(self._held[_LENGTH.size : end])
        del self._held[:end]
        return _parse(letters)


def _parse(letters: bytes) -> dict[str, Any]:
    try:
        message: dict[str, Any] = parse(letters, _OBJECT)
    except Misshapen as error:
        raise Violation(f"a message that is no JSON object: {told(error)}") from error
    return message


def _left(deadline: float | None) -> float | None:
    """Seconds until then."""
    return None if deadline is None else max(deadline - time.monotonic(), 0)
