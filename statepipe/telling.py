"""Who is told something while work goes on: a callable that takes one line for a person.

Below the command line nobody prints. Whoever has news for a person is given a `Tell` by the caller.
"""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[str], object]
"""Takes one line, without a line feed. It must not raise."""


def nobody(text: str) -> None:
    """Takes a line and drops it: the default where the caller wants no news."""
