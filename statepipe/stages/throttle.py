"""throttle: bytes pass no faster than a rate, and the rate may change while they do.

A token bucket: time fills it at the rate, bytes empty it. It is empty at the first byte and holds BURST seconds'
worth, so that time in which nothing could pass is not saved up, and a wake-up that comes late is made good. A buffer
is cut into pieces of PIECE seconds' worth, each of which waits until the bucket holds all of it.

At a migration stream's final stage the guest stands still until the last byte has arrived: `until_switchover`
lets go there, for good. What QEMU has written ahead of it into the pipe still passes at the rate.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from statepipe.errors import IntegrityError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.stage import Buffer, Cancelled, Over
from statepipe.stages.context import Context

BURST = 0.1
"""Seconds' worth that may pass at once: 2 % of what passes in 5 s, and room for wake-ups that come late."""

PIECE = 0.02
"""Seconds' worth that wait together: what 5 s may lack at their end is then 0.4 %, and 50 wake-ups a second are few."""

LONGEST_WAIT = 60.0
"""Seconds of one wait, after which the clock is looked at again: the kernel's longest would overflow at tiny rates."""

SHORTEST_WAIT = 1e-6
"""Seconds: a shorter one is lost in the rounding of a clock's float, and would be waited for again and again."""


class Bucket:
    """How many bytes may pass at a moment. Times are seconds of one clock; `rate` is bytes a second, None no limit."""

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self._filled = 0.0
        self._then: float | None = None

    def set_rate(self, rate: int | None, now: float) -> None:
        """What was filled in so far stays, as far as the new rate has room for it."""
        if self._then is not None:
            self._fill(now)
        self.rate = rate

    def _fill(self, now: float) -> None:
        if self.rate is None:
            self._filled = 0.0
        else:
            room = max(1.0, self.rate * BURST)
            passed = 0.0 if self._then is None else now - self._then
            self._filled = min(room, self._filled + self.rate * passed)
        self._then = now

    def take(self, wanted: int, now: float) -> tuple[int, float]:
        """Bytes of `wanted` (at least 1) that pass now; if none, the seconds until some may."""
        self._fill(now)
        if self.rate is None:
            return wanted, 0.0
        piece = min(wanted, max(1, int(self.rate * PIECE)))
        if self._filled < piece:
            return 0, max(SHORTEST_WAIT, (piece - self._filled) / self.rate)
        count = min(wanted, int(self._filled)) if wanted > piece else piece
        self._filled -= count
        return count, 0.0


class Throttle:
    """The stage. Raises Cancelled out of a wait that was cancelled."""

    def __init__(self, rate: int | None, context: Context, *, until_switchover: bool = False) -> None:
        self._clock, self._warn = context.clock, context.warn
        self._bucket = Bucket(rate)
        self._changed = threading.Condition()
        self._cancelled = False
        self._let_go = False
        self._stream = QemuStream() if until_switchover else None

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        return _Paced(self, upstream)

    def facts(self) -> dict[str, Any]:
        """Its rate in bytes a second, None if there is no limit, or none any more."""
        return {"rate": None if self._let_go else self._bucket.rate}

    def set_rate(self, rate: int | None) -> None:
        """A new rate from now on, also for whoever waits; a throttle that has let go does not take hold again."""
        with self._changed:
            self._bucket.set_rate(rate, self._clock())
            self._changed.notify_all()

    def cancel(self) -> None:
        """End the wait, now and for good."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    @property
    def blind(self) -> bool:
        """Whether it need not see the bytes: not while it looks for the final stage."""
        return self._stream is None

    def passed(self, count: int) -> None:
        """The bucket was emptied when they were admitted."""

    def admit(self, wanted: int) -> int:
        """Wait until some of `wanted` bytes (at least 1) may pass; how many."""
        with self._changed:
            while not self._cancelled:
                if self._let_go:
                    return wanted
                count, delay = self._bucket.take(wanted, self._clock())
                if count:
                    return count
                self._changed.wait(min(delay, LONGEST_WAIT))
        raise Cancelled

    def pace(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        """The buffers, cut where they must wait."""
        for buffer in upstream:
            self._follow(buffer)
            if not len(buffer):
                yield buffer
            left = memoryview(buffer)
            while left:
                count = self.admit(len(left))
                yield left[:count]
                left = left[count:]

    def _follow(self, buffer: Buffer) -> None:
        """Look for the final stage; in what is no migration stream there is none."""
        if self._stream is None:
            return
        try:
            self._stream.feed(buffer)
        except IntegrityError as error:
            self._warn(f"throttle holds its rate to the end, for this is no migration stream: {error}")
            self._stream = None
            return
        if self._stream.switchover is not None:
            self._let_go, self._stream = True, None


class _Paced(Over[Buffer]):
    """Wakes the throttle's own wait as well."""

    def __init__(self, throttle: Throttle, upstream: Iterator[Buffer]) -> None:
        super().__init__(upstream, throttle.pace(upstream))
        self._throttle = throttle

    def cancel(self) -> None:
        self._throttle.cancel()
        super().cancel()
