"""Messages about a session's links: nothing arrives from the other side any more, and something does again.

A link that breaks and is replaced at once is not reported. While nothing arrives, this is reported again each minute.
The receiver of the messages prints only a few a minute of each kind (ends/ration.py), as links may come and go all day.
"""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[object, str], object]
"""Takes the kind of a message, and its line. Must not wait: the session's clock stands still meanwhile."""

QUIET = 3.0
"""Seconds of silence until the first message: three signs of life are missing then."""

REMINDER = 60.0
"""Seconds until the next message."""


def nobody(kind: object, text: str) -> None:
    """Drop the message."""


class LinkNews:
    """The messages of one session. Call `look` at each tick."""

    def __init__(self, tell: Tell, name: str, patience: float) -> None:
        self._tell, self._name, self._patience = tell, name, patience
        self._quiet = 0.0
        self._next: float = QUIET

    def look(self, seconds: float, cause: Exception | None, *, heard: bool) -> None:
        """Take note of so many seconds: whether anything was `heard` in them, and the last error."""
        if heard:
            if self._next > QUIET:
                self._tell("back", f"{self._name} is back after {self._quiet:.0f} s")
            self._quiet, self._next = 0.0, QUIET
            return
        self._quiet += seconds
        if self._quiet >= self._next and self._patience > QUIET:  # else the session's end is reported as soon
            self._next += REMINDER
            why = f" ({cause})" if cause else ""
            quiet = f"nothing has arrived from {self._name} for {self._quiet:.0f} s{why}"
            self._tell("quiet", f"{quiet}; waiting up to {self._patience:g} s")
