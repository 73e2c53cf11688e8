"""Facts about a disk in use that two hosts can compare, to decide whether both see the same disk.

The content of a disk in use changes between two looks. Its format, its size for the guest, its inode, its place on the
guest's bus and QEMU's locks on it do not; a lock is visible on every host that has the same file. Only images that the
guest does not write to are compared by content.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress

from statepipe.imagelocks import is_image_of_qemu
from statepipe.qemu.disks import NoImage, format_of, open_image, samples
from statepipe.qemu.images import Image, Images
from statepipe.qemu.view import View
from statepipe.shapes import either, fields, flag, many, maybe, text, whole
from statepipe.typed import Any

Facts = dict[str, Any]

QCOW2_SIZE = struct.Struct(">24xQ")
"""The disk's size in a qcow2 header; the file itself grows as the guest writes."""

_PATH, _PLACES = text(4096), many(text(4096), most=256)

DISK = either(
    fields({"path": _PATH, "unknown": text(1000)}, {"devices": _PLACES, "driver": text(64), "size": maybe(whole())}),
    fields(
        {"path": _PATH, "format": text(64), "size": maybe(whole()), "locked": maybe(flag)},
        {"devices": _PLACES, "inode": whole(), "samples_blake3": text(128)},
    ),
)
"""One disk, or why it could not be read."""


def disk_facts(its: Images, names: Iterable[str] | None = None) -> list[Facts]:
    """Return the facts of all images; with `names`, of the images with these names and of those that are not files.

    Nothing is reported about other files, whatever a peer asks.
    """
    if names is None:
        return [_facts(row, its.view, row.path) for row in its.rows]
    found = {name: row for name in names if (row := its.find(name)) is not None}
    found |= {row.path: row for row in its.rows if not row.is_file}
    return [_facts(row, its.view, name) for name, row in found.items()]


def _facts(row: Image, view: View, name: str) -> Facts:
    seen: Facts = {"path": name} | ({} if row.devices is None else {"devices": list(row.devices)})
    if not row.is_file:
        return seen | {
            "driver": row.driver,
            "size": row.size,
            "unknown": f"{row.driver} provides it, not a file of this host",
        }
    try:
        with view.place(row.path) as place:
            return seen | glance(place, still=row.read_only)
    except OSError as error:
        return seen | {"unknown": os.strerror(error.errno or 0)}


def glance(place: str, *, still: bool) -> Facts:
    """Return the facts of the image at that name on this host; with `still`, which says that nothing writes to it, also
    the digest of its samples. `locked` is None if the file cannot be opened for writing."""
    try:
        fd = open_image(place, os.O_RDONLY)
        try:
            status = os.fstat(fd)
            head = os.pread(fd, QCOW2_SIZE.size, 0)
            kind, size = format_of(head), os.lseek(fd, 0, os.SEEK_END)
            content = {"samples_blake3": samples(fd, size)} if still else {}
        finally:
            os.close(fd)
    except NoImage as error:
        return {"unknown": str(error)}
    except OSError as error:
        return {"unknown": os.strerror(error.errno or 0)}
    if kind == "qcow2" and len(head) == QCOW2_SIZE.size:
        size = QCOW2_SIZE.unpack(head)[0]
    locked = None
    with suppress(NoImage, OSError):
        fd = open_image(place, os.O_RDWR)
        try:
            locked = is_image_of_qemu(fd)
        finally:
            os.close(fd)
    seen: Facts = {"format": kind, "size": size if kind in ("raw", "qcow2") else None, "locked": locked}
    seen |= {"inode": status.st_ino} if stat.S_ISREG(status.st_mode) else {}
    return seen | content
