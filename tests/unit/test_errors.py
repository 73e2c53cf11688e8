"""Errors collect hints on their way up."""

from __future__ import annotations

import pytest

from statepipe.errors import StatepipeError

CASES: list[tuple[str | None, tuple[str | None, ...], bool, str | None]] = [
    (None, ("a",), False, "a"),
    ("b", ("a",), False, "b; a"),
    ("b", ("a",), True, "a; b"),
    ("c", ("a", None, "b"), True, "a; b; c"),
    ("a", (None, ""), False, "a"),
    (None, (None,), True, None),
]


@pytest.mark.parametrize(("had", "hints", "first", "hint"), CASES)
def test_hints_are_joined(had: str | None, hints: tuple[str | None, ...], first: bool, hint: str | None) -> None:
    error = StatepipeError("it failed", hint=had)
    error.advise(*hints, first=first)
    assert error.hint == hint
