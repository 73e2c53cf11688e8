"""throttle: limit the rate at which bytes pass; the rate may change meanwhile.

A token bucket: time fills it at the rate, bytes empty it. It is empty at the first byte and has room for BURST seconds'
worth, so idle time is not saved up, and late wake-ups are made up for. A buffer is cut into pieces of PIECE seconds'
worth, each of which waits until the bucket has enough for all of it.

During the final stage of a migration the guest is stopped until the last byte has arrived, so with `until_switchover`
the limit ends there for good. The bytes that QEMU wrote into the pipe before still pass at the rate.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from statepipe.errors import IntegrityError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.stage import Buffer, Cancelled, Over
from statepipe.stages.context import Context
from statepipe.typed import Any

BURST = 0.1
"""Seconds' worth that may pass at once: 2 % of the bytes of 5 s, and enough for late wake-ups."""

PIECE = 0.02
"""Seconds' worth in a piece: after 5 s at most 0.4 % is lacking, and 50 wake-ups a second are few."""

LONGEST_WAIT = 60.0
"""Seconds of one wait, after which the clock is read again: at tiny rates the kernel's timeout would overflow."""

SHORTEST_WAIT = 1e-6
"""Seconds: a shorter wait is lost in the rounding of the clock's float, and would be repeated."""


class Bucket:
    """How many bytes may pass now. Times are seconds of one clock; `rate` is bytes a second, None for no limit."""

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self._filled = 0.0
        self._then: float | None = None

    def set_rate(self, rate: int | None, now: float) -> None:
        """Change the rate. The content stays, as far as the new rate has room for it."""
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
        """Return how many of `wanted` bytes (at least 1) pass now, and if none, the seconds until some may."""
        self._fill(now)
        if self.rate is None:
            return wanted, 0.0
        piece = min(wanted, max(1, int(self.rate * PIECE)))
        if self._filled < piece:
            return 0, max(SHORTEST_WAIT, (piece - self._filled) / self.rate)
        count = min(wanted, int(self._filled)) if wanted > piece else piece
        self._filled -= count
        return count, 0.0

    def give_back(self, count: int) -> None:
        """Put back bytes that did not pass."""
        self._filled += count


class Throttle:
    """The stage. A wait that is cancelled raises Cancelled."""

    def __init__(self, rate: int | None, context: Context, *, until_switchover: bool = False) -> None:
        self._clock, self._warn = context.clock, context.warn
        self._bucket = Bucket(rate)
        self._changed = threading.Condition()
        self._cancelled = False
        self._let_go = False
        self._admitted = 0
        self._stream = QemuStream() if until_switchover else None

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        return _Paced(self, upstream)

    def facts(self) -> dict[str, Any]:
        """Return the rate in bytes a second, None if there is no limit, or no longer."""
        return {"rate": None if self._let_go else self._bucket.rate}

    def set_rate(self, rate: int | None) -> None:
        """Change the rate from now on, also for a wait. A throttle that has let go stays without a limit."""
        with self._changed:
            self._bucket.set_rate(rate, self._clock())
            self._changed.notify_all()

    def cancel(self) -> None:
        """End any wait, now and later."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    @property
    def blind(self) -> bool:
        """Return whether it does not need to see the bytes: it does while it looks for the final stage."""
        return self._stream is None

    def passed(self, count: int) -> None:
        """Give back what `admit` let pass and did not: a small pipe takes a part of it."""
        with self._changed:
            self._bucket.give_back(self._admitted - count)
            self._admitted = 0

    def admit(self, wanted: int) -> int:
        """Wait until some of `wanted` bytes (at least 1) may pass; return how many."""
        with self._changed:
            while not self._cancelled:
                if self._let_go:
                    return wanted
                count, delay = self._bucket.take(wanted, self._clock())
                if count:
                    self._admitted = count
                    return count
                self._changed.wait(min(delay, LONGEST_WAIT))
        raise Cancelled

    def pace(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        """Yield the buffers, cut into pieces where they must wait."""
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
        """Look for the final stage, if this is a migration stream."""
        if self._stream is None:
            return
        try:
            self._stream.feed(buffer)
        except IntegrityError as error:
            self._warn(f"throttle keeps its rate to the end, because the stream cannot be followed: {error}")
            self._stream = None
            return
        if self._stream.switchover is not None:
            self._let_go, self._stream = True, None


class _Paced(Over[Buffer]):
    """Ends the throttle's own wait too."""

    def __init__(self, throttle: Throttle, upstream: Iterator[Buffer]) -> None:
        super().__init__(upstream, throttle.pace(upstream))
        self._throttle = throttle

    def cancel(self) -> None:
        self._throttle.cancel()
        super().cancel()
