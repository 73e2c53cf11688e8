"""Where statepipe keeps what it must remember from one run to the next: keys, pinned peers, an authority."""

from __future__ import annotations

import os


def config_folder() -> str:
    """`$XDG_CONFIG_HOME/statepipe` where that is set; else `/etc/statepipe` for root, `~/.config/statepipe` for others.

    The folder need not exist.
    """
    base = os.environ.get("XDG_CONFIG_HOME")
    if not base:
        base = "/etc" if os.geteuid() == 0 else os.path.expanduser("~/.config")
    return os.path.join(base, "statepipe")
