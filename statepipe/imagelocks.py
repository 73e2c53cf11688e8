"""Whether a QEMU has a file open as a disk image: it locks some bytes of each, so that no other opens it too."""

from __future__ import annotations

import fcntl
import os
import struct

FIRST_LOCK, LOCKS = 100, 200
"""The bytes of an image that QEMU locks for what it may do with it (block/file-posix.c, RAW_LOCK_PERM_BASE)."""


def is_image_of_qemu(fd: int) -> bool | None:
    """Whether somebody, here or on another host, holds QEMU's locks on an open file (F_OFD_GETLK, fcntl(2)); None where
    the file system has no locks. Who holds one on the whole file, as flock(2) over NFS does, is no QEMU."""
    wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, FIRST_LOCK, LOCKS, 0)
    try:
        kind, _, start, _, _ = struct.unpack("hhqqi", fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))
    except OSError:
        return None
    return bool(kind != fcntl.F_UNLCK and start >= FIRST_LOCK)
