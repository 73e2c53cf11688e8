"""The memory of parts, given out as fast as a slow store takes them, and not in leaps of a whole part.

While the store is slower than the stream, all parts but one are on their way. That one would be filled at once when
another has arrived, and then the stream would stand still until the next one has. Whoever measures how long it waits,
as `zstd:auto` does, would see a fast store and a silent one in turns. So the part is filled in about the time that the
store took for those before it. As soon as another one arrives, nothing waits.

Measured with `zstd:auto`, text, and a store that takes a part of 8 MiB each 0.5 s: filled at once, the level was 1, 3
or 5, seldom 6 or 8 (ratio 4.22); filled so, 7 or 8 (ratio 4.49).
"""

from __future__ import annotations

import queue
import time
from contextlib import suppress

from statepipe.objectstore.workers import HEED, heed

EAGER = 0.8
"""The part of the store's time that filling takes, so that no connection waits for the part: with two parts of 105 MiB,
one of which is sent, no put took longer (400 MB, medians of 5 in turns: 3.0 s, 3.1 s filled at once)."""


class Pace:
    """Buffers that are free, and when the one that is being filled should be full."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._spare: bytearray | None = None
        self._waited_at: float | None = None  # when the last one arrived that was waited for
        self._taken = 0  # buffers since then
        self._begun = self._span = 0.0

    def put(self, buffer: bytearray) -> None:
        """Give a buffer back. Any thread may call it."""
        self._free.put(buffer)

    def take(self) -> bytearray:
        """Return a buffer, once one is free. Raises a signal's exception."""
        self._taken += 1
        self._span = 0.0
        spare, self._spare = self._spare, None
        if spare is not None:
            return spare
        try:
            return self._free.get_nowait()
        except queue.Empty:
            buffer, before = self._waited(), self._waited_at
        self._begun = self._waited_at = time.monotonic()
        if before is not None:
            self._span = EAGER * (self._begun - before) / self._taken
        self._taken = 0
        return buffer

    def _waited(self) -> bytearray:
        while True:
            with suppress(queue.Empty):
                return self._free.get(timeout=HEED)
            heed()

    def keep(self, share: float) -> None:
        """Wait until the buffer that was taken last may be filled to this share, or until another one is free."""
        early = self._begun + self._span * share - time.monotonic()
        if self._span and early > 0:
            try:
                self._spare = self._free.get(timeout=early)
            except queue.Empty:
                return
            self._span = 0.0
