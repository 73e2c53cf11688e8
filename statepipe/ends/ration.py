"""Limit the messages that others can cause to a number of lines a minute.

A port scan could fill the log and hide other messages in it. So each reason is reported once a minute, from whatever
address it came, and the total is limited. Suppressed lines are counted, and the count is reported when the minute ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from statepipe.errors import PeerError
from statepipe.telling import Tell

MINUTE = 60.0

REASONS = 30
"""Refusals reported per minute. A stranger can cause about ten different ones (OpenSSL's); the rest are for peers."""

LINE = 400
"""Characters of a line at most: our errors have 100 to 300, the peer's part of one can have 1,024 bytes."""


class Ration:
    """Limits the lines from any thread. `rest` is the message about suppressed lines, with {} for their number."""

    def __init__(self, say: Tell, lines: int, rest: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._lines, self._rest, self._clock = say, lines, rest, clock
        self._lock = threading.Lock()
        self._told: set[object] = set()
        self._held = 0
        self._began = clock()

    def tell(self, reason: object, text: str) -> None:
        """Report `text`, unless the reason was reported or the limit was reached within the minute."""
        self.look()
        with self._lock:
            if reason in self._told or len(self._told) >= self._lines:
                self._held += 1
                return
            self._told.add(reason)
        self._say(text if len(text) <= LINE else f"{text[:LINE]}...")

    def look(self) -> None:
        """Begin a new minute if the last one has ended. Call it from time to time."""
        with self._lock:
            if self._clock() - self._began < MINUTE:
                return
        self.end()

    def end(self) -> None:
        """Report how many lines were suppressed."""
        with self._lock:
            held, self._held, self._began = self._held, 0, self._clock()
            self._told.clear()
        if held:
            self._say(self._rest.format(held))


class Refusals(Ration):
    """Reports refused connections. The address is not part of the reason, because a scan can use any number of them."""

    def __init__(self, say: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(say, REASONS, "and {} more were turned away", clock)

    def __call__(self, where: str, error: PeerError) -> None:
        """Report a connection that was turned away."""
        self.tell(str(error).replace(where, ""), f"turned away {where}: {error}")
