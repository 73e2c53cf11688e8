"""How patient a session is."""

from __future__ import annotations

from dataclasses import dataclass

FAREWELL = 5.0
"""Seconds at most to tell the peer how it ended, where nothing depends on its answer any more."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: `tick` between signs of life, `retry` without anything that is heard. A link silent for `limit` ticks is
    dead."""

    tick: float = 1.0
    limit: int = 5
    retry: float = 30.0
