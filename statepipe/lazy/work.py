"""What a lazy load reports to `ps` and --status-fd, and how it answers `rate` and `cancel`."""

from __future__ import annotations

import time
from collections.abc import Callable

from statepipe.errors import StatepipeError
from statepipe.formats.qemu.postcopy import PAGE_SIZE
from statepipe.lazy.server import Server
from statepipe.typed import Any


class LazyWork:
    """Reports the figures of a server. `is_here` tells whether QEMU was told to run the guest."""

    def __init__(self, server: Server, is_here: Callable[[], bool]) -> None:
        self._server, self._is_here = server, is_here
        self._started = time.monotonic()

    def status(self) -> dict[str, Any]:
        """Return pages loaded, asked for (of zeros, too) and to come, the waits, and the seconds left, for JSON."""
        figures, now = self._server.figures, time.monotonic()
        waits, left = figures.waits, self._left(now)
        return {
            "seconds": round(now - self._started, 3),
            "bytes_in": figures.pages * PAGE_SIZE,
            "bytes_out": figures.pages * PAGE_SIZE,
            "stages": [],
            "phase": "memory" if self._is_here() else "devices",
            "lazy": {
                "pages": figures.pages,
                "pages_total": figures.total,
                "pages_first": figures.first,
                "zeros": figures.zeros,
                "asked": waits.count,
                "wait_median_ms": round(waits.median * 1000, 3),
                "wait_worst_ms": round(waits.longest * 1000, 3),
                "seconds_left": None if left is None else round(left, 1),
                "rate": self._server.rate,
            },
        }

    def _left(self, now: float) -> float | None:
        """Return the seconds until all pages are sent. None until the background sends, for example while the server
        learns: the pages that came before say nothing of its speed."""
        figures = self._server.figures
        if figures.pushed is None:
            return None
        began, before = figures.pushed
        sent, lacking, rate = figures.pages - before, figures.total - figures.pages, self._server.rate
        left = (now - began) * lacking / sent if sent else None
        if left is not None and rate:  # what the guest asked for came faster, and it asks most at the start
            left = max(left, lacking * PAGE_SIZE / rate)
        return left

    def set_rate(self, rate: int | None) -> None:
        """Limit what nobody has asked for to so many bytes a second; None lifts the limit."""
        self._server.set_rate(rate)

    def demand_cancellable(self) -> None:
        """Raises StatepipeError once the guest runs."""
        if self._is_here():
            raise StatepipeError(
                "the guest runs already, and needs the rest of its memory",
                hint="to end the guest, end its QEMU; to slow the load down: statepipe rate",
            )
