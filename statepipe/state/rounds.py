"""What becomes of a save's rounds while its bytes flow: a thread of its own looks at QEMU's figures.

It tells where they lead to no end, and acts when their time is over: the save is cancelled, or the guest stopped, so
that what is left is soon through.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from statepipe.errors import QemuError, QemuGone, StatepipeError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.qemu.pace import WAYS_OUT, Pace, StreamPace
from statepipe.telling import Tell
from statepipe.threads import beside, beside_if_possible

if TYPE_CHECKING:  # it takes asyncio, which a save without a monitor must not wait for
    from statepipe.qemu.monitor import Monitor

LOOK = 1.0
"""Seconds between two looks."""


def followed(stream: QemuStream, tell: Tell) -> AbstractContextManager[None]:
    """During the context, follow the rounds of a stream whose QEMU reports nothing else (exec:); `tell` hears of a
    guest that changes its memory too fast. If no thread can be started, the save continues without this."""
    over, pace = threading.Event(), StreamPace()

    def follow() -> None:
        while not over.wait(STREAM_LOOK):
            words = pace.judge(time.monotonic(), stream.rounds, stream.offset)
            if words is not None and stream.switchover is None:  # else it has its end
                tell(words)

    return beside_if_possible("rounds", follow, over.set)


STREAM_LOOK = 0.1
"""Seconds between two looks at a stream: so much of a round may be counted to its neighbour."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How the guest is to get through: `offline` stops it first; after `seconds` (None: for ever) the save is cancelled
    or, with `suspends`, the guest stopped."""

    offline: bool = False
    seconds: float | None = None
    suspends: bool = False


class Rounds:
    """`overdue` is why the save was cancelled, `stopped` when the guest was stopped (time.monotonic): None if not."""

    def __init__(self, monitor: Monitor, limits: Limits, tell: Tell, stops: Callable[[], object]) -> None:
        """`stops` hears before the guest is stopped."""
        self._monitor, self._limits, self._tell, self._stops = monitor, limits, tell, stops
        self._over = threading.Event()
        self._pace, self._seconds = Pace(), limits.seconds
        self.overdue: StatepipeError | None = None
        self.stopped: float | None = None

    def stop_guest(self) -> None:
        """Raises QemuError."""
        if self.stopped is None:  # it may take more than one word
            self._stops()
            self.stopped = time.monotonic()
        self._monitor.execute("stop")

    def followed(self) -> AbstractContextManager[None]:
        """Within it, the rounds are looked at."""
        return beside("rounds", self._follow, self._over.set)

    def _follow(self) -> None:
        """Whatever QEMU has to say at one look: the time goes on. One that has gone, who reads the stream hears of."""
        began, said = time.monotonic(), ""
        while not self._over.wait(LOOK):
            try:
                self._look(time.monotonic() - began)
            except QemuGone:
                return
            except QemuError as error:
                if str(error) != said:
                    said = str(error)
                    self._tell(said)

    def _look(self, elapsed: float) -> None:
        """After so many seconds. Raises QemuError."""
        figures = self._monitor.flowing()
        if (words := self._pace.judge(figures)) is not None and self.stopped is None:
            self._tell(words)
        if self._seconds is not None and elapsed >= self._seconds and figures["status"] == "active":
            self._run_out_of_time()
            self._seconds = None

    def _run_out_of_time(self) -> None:
        """Raises QemuError."""
        if self._limits.suspends:
            self.stop_guest()
            return
        what = f"the guest's memory was not through after {self._limits.seconds:g} s"
        self.overdue = StatepipeError(what, hint=WAYS_OUT)
        self._monitor.execute("migrate_cancel")
