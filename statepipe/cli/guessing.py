"""What was probably meant by a name that is none."""

from __future__ import annotations

from collections.abc import Sequence


def closest(name: str, names: Sequence[str]) -> str | None:
    """The one of the names that it is most like; None if it is like none."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, names, 1, 0.7)), None)
