"""What a load claims for the QEMU that it starts, so that another load that starts now does not take it away.

A QEMU replaces the socket that it finds, and empties the log. The kernel tells who has them (qemu/taken.py), but only
once that QEMU has made them. Two loads that start at once would both see that they are free. So each claims them, by a
lock on one byte of a common file, whose place is a digest of the name. Nothing is left behind: the locks end with the
process. Ports, taps and pid files need none, as only one QEMU can have them.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from blake3 import blake3

from statepipe.pipeline.runtimefolder import open_runtime_folder
from statepipe.qemu.places import places

NAME = "places"
"""The file in the runtime folder. It stays empty."""


def claim(command: Sequence[str], folder: str, opened: ExitStack) -> list[str]:
    """Claim the sockets and files that a QEMU which is started in `folder` will make, until `opened` ends.

    Return those that another load has claimed, with their options. Without a runtime folder or locks, nothing is.
    """
    made = (place for place in places(command) if place.is_written)
    wanted = {path: place.option for place in made if (path := _to_make(folder, place.path))}
    with suppress(OSError):
        at, _ = open_runtime_folder()
        try:
            fd = os.open(NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=at)
        finally:
            os.close(at)
        opened.callback(os.close, fd)
        return [f"{path} ({option})" for path, option in wanted.items() if not _lock(fd, path)]
    return []


def _to_make(folder: str, path: str) -> str | None:
    """Return the real path of a socket or file that QEMU will make; None for what is there to be shared."""
    real = os.path.realpath(os.path.join(folder, path))
    with suppress(OSError):
        mode = os.stat(real).st_mode
        return real if stat.S_ISREG(mode) or stat.S_ISSOCK(mode) else None
    return real


def _lock(fd: int, path: str) -> bool:
    """Return whether nobody else has the lock of this path, which we have then. Raises OSError without locks."""
    byte = int.from_bytes(blake3(os.fsencode(path)).digest(7), "big")
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except BlockingIOError:
        return False
    return True
