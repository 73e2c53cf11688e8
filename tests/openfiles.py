"""What a process has open, by /proc."""

from __future__ import annotations

import os
from contextlib import suppress


def open_files(pid: int) -> dict[str, str]:
    """Where each descriptor of a process leads, by its number; none that is closed meanwhile."""
    found = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found[entry.name] = os.readlink(entry.path)
    return found
