"""How patient a session is, and who is told when it has to be."""

from __future__ import annotations

from dataclasses import dataclass

from statepipe.engine.linknews import Tell, nobody

FAREWELL = 5.0
"""Seconds at most to tell the peer how it ended, where nothing depends on its answer any more."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: `tick` between signs of life, `retry` without anything that is heard. A link silent for `limit` ticks is
    dead. `tell` is told when nothing comes any more, `longer` is how to wait longer, if there is a way."""

    tick: float = 1.0
    limit: int = 5
    retry: float = 30.0
    tell: Tell = nobody
    longer: str = "--retry SECONDS waits longer"
