"""The locks of QEMU on disk images: certain bytes of the file, so that no other QEMU writes to it."""

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


_WRITING, _SHARED = (1, 3), 100
"""The permissions to write and to resize (QEMU include/block/block-common.h, BLK_PERM_*), and how far behind a
permission's own byte the one is that denies it to others (RAW_LOCK_SHARED_BASE)."""


def deny_writing(fd: int) -> bool:
    """Let no QEMU write to an open image until the descriptor is closed; return False if one does so already.

    On a file system without locks nothing happens, as with QEMU's own (`locking=auto`).
    """
    for which in _WRITING:
        deny = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, FIRST_LOCK + which + _SHARED, 1, 0)
        look = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, FIRST_LOCK + which, 1, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, deny)
            kind, *_ = struct.unpack("hhqqi", fcntl.fcntl(fd, fcntl.F_OFD_GETLK, look))
        except OSError:
            continue
        if kind != fcntl.F_UNLCK:
            return False
    return True
