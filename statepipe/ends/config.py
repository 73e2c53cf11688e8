"""Where statepipe keeps what it must remember from one run to the next: keys, pinned peers, an authority."""

from __future__ import annotations

import os

from statepipe.errors import StatepipeError


def config_folder() -> str:
    """`$XDG_CONFIG_HOME/statepipe` where that is set; else `/etc/statepipe` for root, `~/.config/statepipe` for others.

    The folder need not exist. Raises StatepipeError for a user whose home nobody knows.
    """
    base = os.environ.get("XDG_CONFIG_HOME")
    if not base and os.geteuid() == 0:
        base = "/etc"
    elif not base and (own := home()) is not None:
        base = os.path.join(own, ".config")
    if not base:
        raise StatepipeError(
            f"user {os.geteuid()} has no home: it is in no database of users, and HOME is not set",
            hint="set HOME, or XDG_CONFIG_HOME: keys and pins are kept there",
        )
    return os.path.join(base, "statepipe")


def home() -> str | None:
    """The user's home; None where neither HOME nor the database of users tells it, as of a container's bare number."""
    found = os.path.expanduser("~")
    return found if os.path.isabs(found) else None
