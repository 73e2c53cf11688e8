"""The folder for what statepipe keeps between runs: keys, pinned peers, an authority, settings.

Also the values of the setting `records`, which several rooms need.
"""

from __future__ import annotations

import os

from statepipe.errors import StatepipeError

LARGE, TLS_ONLY = RECORDS = ("large", "tls")
"""What may protect a TLS link: large records where the peer knows them, too, or only TLS's own."""


def config_folder() -> str:
    """Return `$XDG_CONFIG_HOME/statepipe` if set; else `/etc/statepipe` for root, `~/.config/statepipe` for others.

    The folder need not exist. Raises StatepipeError for a user without a known home.
    """
    folder = known_folder()
    if folder is None:
        raise StatepipeError(
            f"user {os.geteuid()} has no home: it is not in the user database, and HOME is not set",
            hint="set HOME, or XDG_CONFIG_HOME: keys and pins are kept there",
        )
    return folder


def known_folder() -> str | None:
    """Do as `config_folder`; return None for a user without a known home."""
    base = os.environ.get("XDG_CONFIG_HOME")
    if not base and os.geteuid() == 0:
        base = "/etc"
    elif not base and (own := home()) is not None:
        base = os.path.join(own, ".config")
    return os.path.join(base, "statepipe") if base else None


def home() -> str | None:
    """Return the user's home; None if neither HOME nor the user database has it, as in some containers."""
    found = os.path.expanduser("~")
    return found if os.path.isabs(found) else None
