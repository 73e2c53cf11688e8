"""How long requests have waited: their number, the median, the longest."""

from __future__ import annotations

from array import array
from statistics import median

LAST = 4096
"""Waits that the median is taken of: the latest."""


class Waits:
    """Seconds from the arrival of each request until what it asked for was handed to the kernel."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._last = array("d")

    def add(self, seconds: float) -> None:
        """One more has been answered."""
        if self.count < LAST:
            self._last.append(seconds)
        else:
            self._last[self.count % LAST] = seconds
        self.count += 1
        self.longest = max(self.longest, seconds)

    @property
    def median(self) -> float:
        """Of the latest; 0 where nobody has asked."""
        return median(self._last) if self._last else 0.0
