"""At which unix sockets of this host somebody listens.

A socket is told by its file. /proc/net/unix has only the name that it was bound by, which may be relative to a folder
that nobody knows; the kernel's sock_diag(7) has the file's number.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20

UDIAG_SHOW_NAME, UDIAG_SHOW_VFS, UNIX_DIAG_NAME, UNIX_DIAG_VFS = 1, 2, 0, 1
"""linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h."""

NLM_F_REQUEST, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 1, 0x300, 2, 3

LISTEN = 10
"""TCP_LISTEN, which sock_diag has for sockets of all kinds."""

_HEADER, _MESSAGE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBxI8x"), struct.Struct("=HH")
"""nlmsghdr, unix_diag_msg, nlattr."""

MINOR_BITS = 20
"""linux/kdev_t.h: of a device's number, the rest is its major."""

PATIENCE = 5.0
"""Seconds for the kernel's next answer, which comes at once."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The file of a socket: its number (32 bits of it), its device's (major, minor), and the last part of the name that
    it was bound by."""

    inode: int
    device: tuple[int, int]
    name: str


@dataclass(frozen=True, slots=True)
class Listened:
    """Names that sockets were bound by, and their files."""

    names: frozenset[str] = field(default_factory=frozenset)
    files: frozenset[Bound] = field(default_factory=frozenset)

    def has(self, path: str, status: os.stat_result) -> bool:
        """Whether somebody listens at the socket of that path.

        Another file system may have a file of the same number. Some (btrfs, overlayfs) tell stat of another device than
        the kernel's own: there the name has to do.
        """
        inode, device = status.st_ino & 0xFFFFFFFF, (os.major(status.st_dev), os.minor(status.st_dev))
        name = os.path.basename(path)
        return path in self.names or any(
            each.inode == inode and (each.device == device or each.name == name) for each in self.files
        )


def listened_at() -> Listened:
    """All in our network namespace. A name tells less than a file: a socket that is gone may have had it."""
    with suppress(OSError, struct.error):  # a kernel without it, or a sandbox
        return Listened(files=frozenset(_files()))
    names: frozenset[str] = frozenset()
    with suppress(OSError):
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()
        rows = [line.split(maxsplit=7) for line in lines]
        names = frozenset(row[7] for row in rows if len(row) == 8 and row[3] == "00010000")  # __SO_ACCEPTCON
    return Listened(names)


def _files() -> Iterator[Bound]:
    """Raises OSError, struct.error."""
    asked = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 1 << LISTEN, 0, UDIAG_SHOW_NAME | UDIAG_SHOW_VFS, 0, 0)
    header = _HEADER.pack(_HEADER.size + len(asked), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(PATIENCE)
        kernel.send(header + asked)
        while True:
            for kind, body in _messages(kernel.recv(1 << 16)):
                if kind == NLMSG_ERROR:
                    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
                if kind == NLMSG_DONE:
                    return
                if (file := _file(body)) is not None:
                    yield file


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and content of each."""
    while len(data) >= _HEADER.size:
        size, kind, _, _, _ = _HEADER.unpack_from(data)
        if size < _HEADER.size:
            return
        yield kind, data[_HEADER.size : size]
        data = data[-(-size // 4) * 4 :]


def _file(body: bytes) -> Bound | None:
    """That of one socket, if it is bound to one. Raises struct.error."""
    left, found = body[_MESSAGE.size :], {}
    while len(left) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(left)
        if size < _ATTRIBUTE.size:
            break
        found[kind] = left[_ATTRIBUTE.size : size]
        left = left[-(-size // 4) * 4 :]
    if UNIX_DIAG_VFS not in found:
        return None
    inode, device = struct.unpack("=II", found[UNIX_DIAG_VFS])
    name = os.fsdecode(found.get(UNIX_DIAG_NAME, b"").rstrip(b"\0"))
    return Bound(inode, (device >> MINOR_BITS, device & ((1 << MINOR_BITS) - 1)), os.path.basename(name))
