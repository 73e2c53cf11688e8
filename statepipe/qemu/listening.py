"""At which unix sockets of this host somebody listens.

A socket is told by its file. /proc/net/unix has only the name that it was bound by, which may be relative to a folder
that nobody knows; the kernel's sock_diag(7) has the file's number.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, UDIAG_SHOW_VFS, UNIX_DIAG_VFS = 4, 20, 2, 1
"""linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h."""

NLM_F_REQUEST, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 1, 0x300, 2, 3

LISTEN = 10
"""TCP_LISTEN, which sock_diag has for sockets of all kinds."""

_HEADER, _MESSAGE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBxI8x"), struct.Struct("=HH")
"""nlmsghdr, unix_diag_msg, nlattr."""

PATIENCE = 5.0
"""Seconds for the kernel's next answer, which comes at once."""


@dataclass(frozen=True, slots=True)
class Listened:
    """Names that sockets were bound by, and numbers of their files."""

    names: frozenset[str] = field(default_factory=frozenset)
    inodes: frozenset[int] = field(default_factory=frozenset)

    def has(self, path: str, inode: int) -> bool:
        """Whether somebody listens at the socket of that path, whose file has that number."""
        return path in self.names or (inode & 0xFFFFFFFF) in self.inodes


def listened_at() -> Listened:
    """All in our network namespace; as much of it as this kernel tells."""
    names: frozenset[str] = frozenset()
    with suppress(OSError):
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()
        rows = [line.split(maxsplit=7) for line in lines]
        names = frozenset(row[7] for row in rows if len(row) == 8 and row[3] == "00010000")  # __SO_ACCEPTCON
    inodes: frozenset[int] = frozenset()
    with suppress(OSError, struct.error):  # a kernel without it, or a sandbox
        inodes = frozenset(_inodes())
    return Listened(names, inodes)


def _inodes() -> Iterator[int]:
    """Raises OSError, struct.error."""
    asked = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 1 << LISTEN, 0, UDIAG_SHOW_VFS, 0, 0)
    header = _HEADER.pack(_HEADER.size + len(asked), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(PATIENCE)
        kernel.send(header + asked)
        while True:
            for kind, body in _messages(kernel.recv(1 << 16)):
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return
                yield from _files(body)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and content of each."""
    while len(data) >= _HEADER.size:
        size, kind, _, _, _ = _HEADER.unpack_from(data)
        if size < _HEADER.size:
            return
        yield kind, data[_HEADER.size : size]
        data = data[-(-size // 4) * 4 :]


def _files(body: bytes) -> Iterator[int]:
    """The number of the file that a socket is bound to, if it is to one."""
    left = body[_MESSAGE.size :]
    while len(left) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(left)
        if size < _ATTRIBUTE.size:
            return
        if kind == UNIX_DIAG_VFS:
            yield struct.unpack_from("=I", left, _ATTRIBUTE.size)[0]
        left = left[-(-size // 4) * 4 :]
