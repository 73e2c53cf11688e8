"""What a guest's disks looked like when its state was saved, and whether they still do.

Old RAM on a disk that has moved on destroys its file system. Reading a whole disk would take longer than the
save, so a fingerprint is taken: size, modification time, and the BLAKE3 of samples spread over the image. For a
block device there is no modification time that tells, and the samples alone must do.

Which disks there were is told by a state file or by a peer, so no name is opened for being told: where a QEMU is at
hand, it must have that disk itself. And nothing is opened but what was seen, without opening it, to be a regular file
or a block device: a FIFO would wait for ever, and a device may act on being opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
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
        fd = open_image(path, os.O_RDONLY)
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


def same_file(path: str) -> str | None:
    """The name without links, by which disks are compared; None for what is no file's name."""
    try:
        return os.path.realpath(path)
    except ValueError:
        return None


def named(saved: list[Disk] | None, command: Sequence[str]) -> list[Disk]:
    """Those of the disks that the command line of a QEMU, to be started in this folder, plainly names."""
    words = {part for word in command for part in re.split(r"[][,=\"{}]+", word) if part}
    files = {same_file(word) for word in words}
    return [disk for disk in saved or [] if same_file(disk["path"]) in files]


def _change(saved: Disk) -> str | None:
    now = fingerprint(saved["path"])
    if "unknown" in now:
        return f"{saved['path']} cannot be read: {now['unknown']}"
    differ = [name for name in ("size", "mtime_ns", "samples_blake3") if saved[name] != now[name]]
    words = {"size": "its size", "mtime_ns": "its modification time", "samples_blake3": "its content"}
    return f"{saved['path']}: {' and '.join(words[name] for name in differ)} changed" if differ else None


def refuse_changed(saved: list[Disk] | None, its: Sequence[str] | None, force: bool) -> None:
    """Raises StatepipeError naming every disk that changed since the save, unless `force`: then none is looked at.

    `its` are the images of the QEMU that is to load the state: it must have the guest's disks, and no other file is
    looked at. None: no QEMU is at hand.
    """
    known = [disk for disk in saved or [] if "unknown" not in disk]
    if force or not known:
        return
    if its is not None:
        files = {same_file(path) for path in its}
        if foreign := [str(disk["path"]) for disk in known if same_file(disk["path"]) not in files]:
            raise StatepipeError(
                f"this QEMU lacks disks that the guest had: {', '.join(foreign)}",
                hint="old memory on another disk destroys its file systems: give QEMU the guest's own, by these names, "
                "or overrule with --force",
            )
    if lines := [line for disk in known if (line := _change(disk))]:
        raise StatepipeError(
            f"disks changed since the state was saved: {'; '.join(lines)}",
            hint="old memory on a newer disk destroys its file systems: restore the disk, or overrule with --force",
        )
