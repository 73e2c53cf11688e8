"""Guess which name a misspelt name was meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar of the names, or None if none is similar."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, list(names), 1, 0.65)), None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the beginning of a hint, "did you mean NAME? ", or "" if no name is similar."""
    found = closest(name, names)
    return f"did you mean {found}? " if found else ""
