"""What of a disk in use can be held against another host's view of it, to tell whether both see one disk.

Its content cannot: the guest writes to it between two looks. What stands still is its format, the size that the guest
sees, its number on its file system, where the guest sees it, and QEMU's locks on it, which are seen from every host
that has the same file. Only what the guest does not write to is compared by what it holds.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from typing import Any

from statepipe.imagelocks import is_image_of_qemu
from statepipe.qemu.disks import NoImage, format_of, open_image, samples
from statepipe.qemu.images import Image, Images
from statepipe.qemu.view import View
from statepipe.shapes import either, fields, flag, many, maybe, text, whole

Facts = dict[str, Any]

QCOW2_SIZE = struct.Struct(">24xQ")
"""Where a qcow2's header has the size of the disk that is in it; the file grows with what is written."""

_PATH, _PLACES = text(4096), many(text(4096), most=256)

DISK = either(
    fields({"path": _PATH, "unknown": text(1000)}, {"devices": _PLACES, "driver": text(64), "size": maybe(whole())}),
    fields(
        {"path": _PATH, "format": text(64), "size": maybe(whole()), "locked": maybe(flag)},
        {"devices": _PLACES, "inode": whole(), "samples_blake3": text(128)},
    ),
)
"""One disk, or why it could not be looked at."""


def disk_facts(its: Images, names: Iterable[str] | None = None) -> list[Facts]:
    """Of all images, or of those which another host calls by these names; with them, what is no file here.

    Of no other is anything told.
    """
    if names is None:
        return [_facts(row, its.view, row.path) for row in its.rows]
    found = {name: row for name in names if (row := its.find(name)) is not None}
    found |= {row.path: row for row in its.rows if not row.is_file}
    return [_facts(row, its.view, name) for name, row in found.items()]


def _facts(row: Image, view: View, name: str) -> Facts:
    seen: Facts = {"path": name} | ({} if row.devices is None else {"devices": list(row.devices)})
    if not row.is_file:
        return seen | {"driver": row.driver, "size": row.size, "unknown": f"{row.driver} keeps it, no file of a host"}
    try:
        with view.place(row.path) as place:
            return seen | glance(place, still=row.read_only)
    except OSError as error:
        return seen | {"unknown": os.strerror(error.errno or 0)}


def glance(place: str, *, still: bool) -> Facts:
    """What stands still of the image of that name on this host; of one that is not written to, its samples too."""
    try:
        fd = open_image(place, os.O_RDONLY)
    except NoImage as error:
        return {"unknown": str(error)}
    except OSError as error:
        return {"unknown": os.strerror(error.errno or 0)}
    try:
        status = os.fstat(fd)
        head = os.pread(fd, QCOW2_SIZE.size, 0)
        kind, size = format_of(head), os.lseek(fd, 0, os.SEEK_END)
        content = {"samples_blake3": samples(fd, size)} if still else {}
    except OSError as error:
        return {"unknown": os.strerror(error.errno or 0)}
    finally:
        os.close(fd)
    if kind == "qcow2" and len(head) == QCOW2_SIZE.size:
        size = QCOW2_SIZE.unpack(head)[0]
    seen: Facts = {"format": kind, "size": size if kind in ("raw", "qcow2") else None, "locked": _is_locked(place)}
    seen |= {"inode": status.st_ino} if stat.S_ISREG(status.st_mode) else {}
    return seen | content


def _is_locked(path: str) -> bool | None:
    """Whether somebody, here or on another host, holds QEMU's locks on it; None where it cannot be told."""
    try:
        fd = open_image(path, os.O_RDWR)
    except (NoImage, OSError):
        return None
    try:
        return is_image_of_qemu(fd)
    finally:
        os.close(fd)
