"""The folder of a save's or a load's FIFOs, in the runtime folder: it is locked as long as its owner or the owner's
guardian lives, so that others can tell it from one that was left behind (leftover.py)."""

from __future__ import annotations

import fcntl
import os

from statepipe.ends.naming import if_known
from statepipe.pipeline.runtimefolder import open_runtime_folder


def own_path(kind: str) -> str:
    """Return a path that no folder has, for one of `kind` ("save", "load"). Raises OSError."""
    folder, place = open_runtime_folder()
    os.close(folder)
    return os.path.join(place, f"{kind}-{os.urandom(8).hex()}")


def claim(path: str) -> int:
    """Make the folder, and return a descriptor that locks it until each duplicate of it is closed. Raises OSError."""
    top = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if_known(lambda: fcntl.flock(top, fcntl.LOCK_SH))  # no sweep comes between the folder and its lock
        os.mkdir(path, 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if_known(lambda: fcntl.flock(fd, fcntl.LOCK_SH))
        return fd
    finally:
        os.close(top)
