"""Detect whether a QEMU has a file open as a disk image. It locks certain bytes so that no other QEMU opens it."""

from __future__ import annotations

import fcntl
import os
import struct

FIRST_LOCK, LOCKS = 100, 200
"""The bytes of an image that QEMU locks, one for each permission (block/file-posix.c, RAW_LOCK_PERM_BASE)."""


def is_image_of_qemu(fd: int) -> bool | None:
    """Return whether a process on any host holds QEMU's locks on an open file (F_OFD_GETLK, fcntl(2)).

    None if the file system has no locks. A lock on the whole file, such as flock(2) over NFS, is not QEMU's."""
    wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, FIRST_LOCK, LOCKS, 0)
    try:
        kind, _, start, _, _ = struct.unpack("hhqqi", fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))
    except OSError:
        return None
    return bool(kind != fcntl.F_UNLCK and start >= FIRST_LOCK)
