"""What others can make us say: so many lines a minute, however many they are.

Whoever scans ports would fill a log, and whoever fills it hides another. So each reason is told once a minute, whatever
address it came from, and of all no more than some; what was held back is counted, and told when the minute is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from statepipe.errors import PeerError
from statepipe.telling import Tell

MINUTE = 60.0

REASONS = 30
"""Reasons for turning somebody away, told a minute. A stranger has some ten (OpenSSL's), and the rest are for peers."""

LINE = 400
"""Characters of a line: an error of ours has 100 to 300, the peer's part of one may have 1,024 bytes."""


class Ration:
    """For any thread. `rest` is what is told of those held back, with {} for their number."""

    def __init__(self, say: Tell, lines: int, rest: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._lines, self._rest, self._clock = say, lines, rest, clock
        self._lock = threading.Lock()
        self._told: set[object] = set()
        self._held = 0
        self._began = clock()

    def tell(self, reason: object, text: str) -> None:
        """Tell it, unless this reason was told, or too much was, within the minute."""
        self.look()
        with self._lock:
            if reason in self._told or len(self._told) >= self._lines:
                self._held += 1
                return
            self._told.add(reason)
        self._say(text if len(text) <= LINE else f"{text[:LINE]}...")

    def look(self) -> None:
        """Begin a new minute where one is over: to be called now and then."""
        with self._lock:
            if self._clock() - self._began < MINUTE:
                return
        self.end()

    def end(self) -> None:
        """Tell how many were held back."""
        with self._lock:
            held, self._held, self._began = self._held, 0, self._clock()
            self._told.clear()
        if held:
            self._say(self._rest.format(held))


class Refusals(Ration):
    """Who was turned away, and why. An address is no part of the reason: a scan has as many as it likes."""

    def __init__(self, say: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(say, REASONS, "and {} more were turned away", clock)

    def __call__(self, where: str, error: PeerError) -> None:
        """Somebody was turned away."""
        self.tell(str(error).replace(where, ""), f"turned away {where}: {error}")
