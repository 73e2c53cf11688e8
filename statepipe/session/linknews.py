"""What is told of a session's links: that nothing comes from the other side any more, and that something does again.

A link that breaks and is made anew at once is no news. While nothing comes, that is told again each minute. Whoever is
told prints only a few lines a minute of each kind (ends/ration.py), for links may come and go all day.
"""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[object, str], object]
"""Told a line, and of which kind it is. Must not wait: a session's clock stands still meanwhile."""

QUIET = 3.0
"""Seconds without a sign of the other side until it is told: three signs of life are missing then."""

REMINDER = 60.0
"""Seconds until it is told again."""


def nobody(kind: object, text: str) -> None:
    """Nobody is told."""


class LinkNews:
    """One session's. `look` is called at each tick."""

    def __init__(self, tell: Tell, name: str, patience: float) -> None:
        self._tell, self._name, self._patience = tell, name, patience
        self._quiet = 0.0
        self._next: float = QUIET

    def look(self, seconds: float, cause: Exception | None, *, heard: bool) -> None:
        """So many seconds went by; whether anything was heard in them, and what last went wrong."""
        if heard:
            if self._next > QUIET:
                self._tell("back", f"{self._name} is there again, after {self._quiet:.0f} s")
            self._quiet, self._next = 0.0, QUIET
            return
        self._quiet += seconds
        if self._quiet >= self._next and self._patience > QUIET:  # else its end is told as soon
            self._next += REMINDER
            why = f" ({cause})" if cause else ""
            quiet = f"nothing has come from {self._name} for {self._quiet:.0f} s{why}"
            self._tell("quiet", f"{quiet}; it is waited for, up to {self._patience:g} s")
