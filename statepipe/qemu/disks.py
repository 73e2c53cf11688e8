"""What a disk image looks like at one moment: its fingerprint.

Reading a whole disk would take longer than the save, so a fingerprint is taken: size, modification time, and the BLAKE3
of samples spread over the image. For a block device there is no modification time that tells, and the samples alone
must do. An image with little in it is read whole: then its content is known without its date, as of a copy restored.

Nothing is opened but what was seen, without opening it, to be a regular file or a block device: a FIFO would wait for
ever, and a device may act on being opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from blake3 import blake3

SAMPLE, SAMPLES = 4096, 256
"""1 MiB read of each disk, its first and last bytes included: 15 ms from a cold SSD."""

BLOCK, WHOLE = 64 << 10, 64 << 20
"""Bytes that are read at a time, and the most data, holes not counted, for which an image is read whole while its guest
stands still: 64 MiB take 50 ms from the page cache, 0.2 s from an SSD."""

Disk = dict[str, Any]


def fingerprints(paths: Iterable[str]) -> list[Disk]:
    """Those of several disks."""
    return [fingerprint(path) for path in paths]


def fingerprint(path: str, place: str | None = None) -> Disk:
    """Path, format, size (bytes), mtime (ns, None for a device) and sampled digest of a disk image; the digest of its
    content where that was read whole. `place` is by which name it is opened, where QEMU's is not ours.

    Of one that cannot be read (another user's, or the unlinked overlay of -snapshot): path and `unknown`, the reason.
    """
    try:
        fd = open_image(place or path, os.O_RDONLY)
        try:
            return _fingerprint(fd, path)
        finally:
            os.close(fd)
    except NoImage as error:
        return {"path": path, "unknown": str(error)}
    except OSError as error:
        return {"path": path, "unknown": os.strerror(error.errno or 0)}


class NoImage(Exception):
    """A name that stands for nothing that a disk can be in."""


def open_image(path: str, access: int) -> int:
    """A descriptor of a regular file or a block device; `access` is O_RDONLY or O_RDWR.

    Raises OSError, and NoImage for what else the name stands for: that is not opened, only looked at (O_PATH).
    """
    try:
        seen = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except ValueError as error:  # a NUL, or a lone surrogate
        raise NoImage("it is no file's name") from error
    try:
        status = os.fstat(seen)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise NoImage("it is not a regular file or a block device")
        if status.st_dev in _kernels_own():
            raise NoImage("it is no file on a disk, but a word with the kernel")
        return os.open(f"/proc/self/fd/{seen}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(seen)


def _kernels_own() -> set[int]:
    """The file systems whose regular files do something on being read."""
    found = set()
    for root in ("/proc", "/sys", "/sys/kernel/debug", "/sys/kernel/tracing"):
        with suppress(OSError):
            found.add(os.stat(root).st_dev)
    return found - {os.stat("/").st_dev}


def samples(fd: int, size: int) -> str:
    """The digest of the samples of an open image. Raises OSError."""
    digest = blake3()
    for offset in _places(size):
        digest.update(os.pread(fd, SAMPLE, offset))
    return digest.hexdigest()


def _fingerprint(fd: int, path: str) -> Disk:
    status = os.fstat(fd)
    size = os.lseek(fd, 0, os.SEEK_END)
    regular = stat.S_ISREG(status.st_mode)
    seen = {
        "path": path,
        "format": format_of(os.pread(fd, 4, 0)),
        "size": size,
        "mtime_ns": status.st_mtime_ns if regular else None,
        "samples_blake3": samples(fd, size),
    }
    content = _content(fd, size) if regular else None
    return seen if content is None else seen | {"content_blake3": content}


def _content(fd: int, size: int) -> str | None:
    """The digest of every block that is not all zeros, with its offset: the same for a copy, sparse or not. None where
    there is more data than is read."""
    digest, left, block = blake3(), WHOLE, bytes(BLOCK)
    for start, end in _data(fd, size):
        if (left := left - (end - start)) < 0:
            return None
        for offset in range(start, end, BLOCK):
            piece = os.pread(fd, min(BLOCK, size - offset), offset)
            if piece != block[: len(piece)]:
                digest.update(offset.to_bytes(8) + piece)
    return digest.hexdigest()


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """From where to where there is data, in whole blocks; all of it, on a file system that does not tell."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = -(-os.lseek(fd, start, os.SEEK_HOLE) // BLOCK) * BLOCK
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but holes from here on
                return
            start, end = at, size
        yield max(start // BLOCK * BLOCK, at), end
        at = end


def _places(size: int) -> list[int]:
    last = max(size - SAMPLE, 0)
    return sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)})


def format_of(magic: bytes) -> str:
    """What the first bytes of an image say of its format."""
    return {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdx": "vhdx"}.get(magic[:4], "raw")
