"""Watch the rounds of a save while its bytes flow, in a thread of its own that looks at QEMU's figures.

It warns if the rounds come to no end. When their time is over, it cancels the save, or stops the guest so that the rest
is soon sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from statepipe.errors import QemuError, QemuGone, StatepipeError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.qemu.pace import WAYS_OUT, Pace, StreamPace
from statepipe.telling import Tell
from statepipe.threads import beside, beside_if_possible
from statepipe.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # it imports asyncio, which would delay a save without a monitor
    from statepipe.qemu.monitor import Monitor

LOOK = 1.0
"""Seconds between two looks at QEMU's figures."""

STREAM_LOOK = 0.1
"""Seconds between two looks at a stream: up to this much of a round may be counted to its neighbour."""


def followed(stream: QemuStream, tell: Tell) -> AbstractContextManager[None]:
    """Within it, follow the rounds of a stream whose QEMU reports nothing else (exec:), and tell of a guest that
    changes its memory too fast. If no thread can be started, the save continues without this."""
    over, pace = threading.Event(), StreamPace()

    def follow() -> None:
        while not over.wait(STREAM_LOOK):
            words = pace.judge(time.monotonic(), stream.rounds, stream.offset)
            if words is not None and stream.switchover is None:  # else it is about to end
                tell(words)

    return beside_if_possible("rounds", follow, over.set)


class Limits(NamedTuple):
    """`offline` stops the guest first. After `seconds` (None: never) the save is cancelled or, with `suspends`, the
    guest stopped."""

    offline: bool = False
    seconds: float | None = None
    suspends: bool = False


class Rounds:
    """Follows the rounds of a save through `monitor`; `stop_guest` stops the guest.

    `overdue` is why the save was cancelled, None if it was not.
    """

    def __init__(self, monitor: Monitor, limits: Limits, tell: Tell, stop_guest: Callable[[], None]) -> None:
        self._monitor, self._limits, self._tell, self._stop_guest = monitor, limits, tell, stop_guest
        self._over = threading.Event()
        self._pace, self._is_stopped = Pace(), limits.offline
        self.overdue: StatepipeError | None = None

    def followed(self) -> AbstractContextManager[None]:
        """Within it, the rounds are followed."""
        return beside("rounds", self._follow, self._over.set)

    def _follow(self) -> None:
        """Until it is over or QEMU is gone. An error of one look is told once, and takes no time limit away."""
        began, said, seconds = time.monotonic(), "", self._limits.seconds
        while not self._over.wait(LOOK):
            try:
                figures = self._monitor.flowing()
                if (words := self._pace.judge(figures)) is not None and not self._is_stopped:
                    self._tell(words)
                if seconds is not None and time.monotonic() - began >= seconds and figures["status"] == "active":
                    self._run_out_of_time()
                    seconds = None
            except QemuGone:  # whoever reads the stream sees that too
                return
            except QemuError as error:
                if str(error) != said:
                    said = str(error)
                    self._tell(said)

    def _run_out_of_time(self) -> None:
        """Raises QemuError."""
        if self._limits.suspends:
            self._is_stopped = True
            self._stop_guest()
            return
        what = f"the guest's memory was not sent within {self._limits.seconds:g} s"
        self.overdue = StatepipeError(what, hint=WAYS_OUT)
        self._monitor.execute("migrate_cancel")
