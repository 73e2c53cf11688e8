"""How long requests for pages waited."""

from __future__ import annotations

from array import array

LAST = 4096
"""The median is that of so many waits, the latest."""


class Waits:
    """Seconds from the arrival of each request until the kernel had taken the answer."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._last = array("d")

    def add(self, seconds: float) -> None:
        """Add a request that was answered."""
        if self.count < LAST:
            self._last.append(seconds)
        else:
            self._last[self.count % LAST] = seconds
        self.count += 1
        self.longest = max(self.longest, seconds)

    @property
    def median(self) -> float:
        """Median of the latest waits in seconds; 0 without requests."""
        return sorted(self._last)[len(self._last) // 2] if self._last else 0.0  # `statistics` takes 3 ms to import
