"""Messages to the user during work: a callable that takes one line.

Only the command line prints. Code below it that has a message for the user gets a `Tell` from its caller.
"""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[str], object]
"""Takes one line, without a line feed. It must not raise."""


def nobody(text: str) -> None:
    """Take a line and drop it: the default if the caller wants no messages."""
