"""What a guest's disks looked like when its state was saved, and whether they still do.

Old RAM on a disk that has moved on destroys its file system. Reading a whole disk would take longer than the
save, so a fingerprint is taken: size, modification time, and the BLAKE3 of samples spread over the image. For a
block device there is no modification time that tells, and the samples alone must do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import Any

from blake3 import blake3

from statepipe.errors import StatepipeError

SAMPLE, SAMPLES = 4096, 256
"""1 MiB read of each disk, its first and last bytes included: 15 ms from a cold SSD."""

Disk = dict[str, Any]


def fingerprints(paths: Iterable[str]) -> list[Disk]:
    """Those of several disks."""
    return [fingerprint(path) for path in paths]


def fingerprint(path: str) -> Disk:
    """Path, format, size (bytes), mtime (ns, None for a device) and sampled digest of a disk image.

    Of one that cannot be read (another user's, or the unlinked overlay of -snapshot): path and `unknown`, the reason.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _fingerprint(fd, path)
        finally:
            os.close(fd)
    except OSError as error:
        return {"path": path, "unknown": os.strerror(error.errno or 0)}


def _fingerprint(fd: int, path: str) -> Disk:
    status = os.fstat(fd)
    size = os.lseek(fd, 0, os.SEEK_END)
    digest = blake3()
    for offset in _places(size):
        digest.update(os.pread(fd, SAMPLE, offset))
    regular = stat.S_ISREG(status.st_mode)
    return {
        "path": path,
        "format": _format(os.pread(fd, 4, 0)),
        "size": size,
        "mtime_ns": status.st_mtime_ns if regular else None,
        "samples_blake3": digest.hexdigest(),
    }


def _places(size: int) -> list[int]:
    last = max(size - SAMPLE, 0)
    return sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)})


def _format(magic: bytes) -> str:
    return {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdx": "vhdx"}.get(magic, "raw")


def unknown(disks: list[Disk] | None) -> str | None:
    """Why nobody can tell whether some of these disks changed, or None if all fingerprints are there."""
    if disks is None:
        return "the state does not say which disks the guest had: load cannot tell whether they changed"
    missing = [f"{disk['path']} ({disk['unknown']})" for disk in disks if "unknown" in disk]
    what = "these disks could not be read, load cannot tell whether they changed"
    return f"{what}: {', '.join(missing)}" if missing else None


def changes(saved: list[Disk]) -> list[str]:
    """For each disk that is not as it was saved, a line that names it and says what differs."""
    return [line for disk in saved if "unknown" not in disk and (line := _change(disk))]


def _change(saved: Disk) -> str | None:
    now = fingerprint(saved["path"])
    if "unknown" in now:
        return f"{saved['path']} cannot be read: {now['unknown']}"
    differ = [name for name in ("size", "mtime_ns", "samples_blake3") if saved[name] != now[name]]
    words = {"size": "its size", "mtime_ns": "its modification time", "samples_blake3": "its content"}
    return f"{saved['path']}: {' and '.join(words[name] for name in differ)} changed" if differ else None


def refuse_changed(saved: list[Disk] | None, force: bool) -> None:
    """Raises StatepipeError naming every disk that changed since the save, unless `force`."""
    lines = changes(saved or [])
    if lines and not force:
        raise StatepipeError(
            f"disks changed since the state was saved: {'; '.join(lines)}",
            hint="old memory on a newer disk destroys its file systems: restore the disk, or overrule with --force",
        )
