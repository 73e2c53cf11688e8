"""Find the unix sockets and the ports of this host at which a process listens.

/proc/net/unix has only the name under which a socket was bound, which may be relative to an unknown folder; the
kernel's sock_diag(7) has the inode of its file.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from statepipe.processes import read_lines

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20

UDIAG_SHOW_NAME, UDIAG_SHOW_VFS, UNIX_DIAG_NAME, UNIX_DIAG_VFS = 1, 2, 0, 1
"""linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h."""

NLM_F_REQUEST, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 1, 0x300, 2, 3

LISTEN = 10
"""TCP_LISTEN, which sock_diag uses for all kinds of sockets."""

_HEADER, _MESSAGE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBxI8x"), struct.Struct("=HH")
"""nlmsghdr, unix_diag_msg, nlattr."""

MINOR_BITS = 20
"""linux/kdev_t.h: bits of the minor in a device's number; the rest is the major."""

PATIENCE = 5.0
"""Seconds to wait for the kernel's next answer, which normally arrives at once."""


class Bound(NamedTuple):
    """A socket's file: the lower 32 bits of its inode, its device (major, minor), and the last part of the name under
    which it was bound."""

    inode: int
    device: tuple[int, int]
    name: str


class Listened(NamedTuple):
    """The listening sockets: their files, or only names if the kernel does not report files."""

    names: frozenset[str] = frozenset()
    files: frozenset[Bound] = frozenset()

    def has(self, path: str, status: os.stat_result) -> bool:
        """Return whether a process listens at the socket with that path.

        Inodes repeat between file systems. Some (btrfs, overlayfs) give stat another device than the kernel's own; then
        the name decides.
        """
        inode, device = status.st_ino & 0xFFFFFFFF, (os.major(status.st_dev), os.minor(status.st_dev))
        name = os.path.basename(path)
        return path in self.names or any(
            each.inode == inode and (each.device == device or each.name == name) for each in self.files
        )


def listened_at() -> Listened:
    """Return all listening sockets in our network namespace."""
    with suppress(OSError, struct.error):  # a kernel without sock_diag, or a sandbox
        return Listened(files=frozenset(_files()))
    names: frozenset[str] = frozenset()
    with suppress(OSError):  # a name proves less than a file: a socket that is gone may have had it
        rows = [line.split(maxsplit=7) for line in read_lines("/proc/net/unix", "surrogateescape")]
        names = frozenset(row[7] for row in rows if len(row) == 8 and row[3] == "00010000")  # __SO_ACCEPTCON
    return Listened(names)


def _files() -> Iterator[Bound]:
    """Yield the listening sockets that are bound to a file. Raises OSError, struct.error."""
    asked = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 1 << LISTEN, 0, UDIAG_SHOW_NAME | UDIAG_SHOW_VFS, 0, 0)
    header = _HEADER.pack(_HEADER.size + len(asked), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(PATIENCE)
        kernel.send(header + asked)
        while True:
            for (_, kind, _, _, _), body in _records(_HEADER, kernel.recv(1 << 16)):
                if kind == NLMSG_ERROR:
                    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
                if kind == NLMSG_DONE:
                    return
                found = {kind: value for (_, kind), value in _records(_ATTRIBUTE, body[_MESSAGE.size :])}
                if UNIX_DIAG_VFS in found:
                    inode, device = struct.unpack("=II", found[UNIX_DIAG_VFS])
                    name = os.path.basename(os.fsdecode(found.get(UNIX_DIAG_NAME, b"").rstrip(b"\0")))
                    yield Bound(inode, (device >> MINOR_BITS, device & ((1 << MINOR_BITS) - 1)), name)


def _records(header: struct.Struct, data: bytes) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Yield the header and the content of each record. A header begins with the record's size; the next record begins
    at a multiple of 4 bytes."""
    while len(data) >= header.size:
        fields = header.unpack_from(data)
        if fields[0] < header.size:
            return
        yield fields, data[header.size : fields[0]]
        data = data[-(-fields[0] // 4) * 4 :]


ANY = frozenset((bytes(4), bytes(16)))
"""0.0.0.0 and ::."""

_MAPPED = bytes(10) + b"\xff\xff"
"""How an IPv6 address begins that is an IPv4 address."""

_NAMES = {"": ANY, "localhost": frozenset((b"\x7f\0\0\1", bytes(15) + b"\1"))}


class BoundPort(NamedTuple):
    """A port at which a process listens: `tcp` or `udp`, its address in 4 or 16 bytes, and its number."""

    kind: str
    address: bytes
    number: int

    def is_at(self, kind: str, host: str, number: int) -> bool:
        """Return whether another process can therefore not listen there too.

        A socket at `::` is taken to have IPv4 as well, as is usual. A name other than localhost is not resolved: QEMU
        itself fails if its port is taken.
        """
        if (self.kind, self.number) != (kind, number):
            return False
        wanted = _NAMES.get(host) or frozenset(_packed(host))
        return any(
            mine in (self.address, bytes(len(self.address))) or self.address in (bytes(16), bytes(len(mine)))
            for mine in wanted
        )


def _packed(host: str) -> Iterator[bytes]:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            yield socket.inet_pton(family, host)


def ports_bound() -> frozenset[BoundPort]:
    """Return all ports at which a process listens in our network namespace; nothing if we may not look."""
    return frozenset(each for kind in ("tcp", "udp") for suffix in ("", "6") for each in _ports(kind, suffix))


_STATES = {"tcp": "0A", "udp": "07"}
"""TCP_LISTEN, and what a UDP socket that is not connected has, TCP_CLOSE."""


def _ports(kind: str, suffix: str) -> Iterator[BoundPort]:
    """Yield the rows of /proc/net/tcp and its like, which has the sockets that listen first."""
    with suppress(OSError), open(f"/proc/net/{kind}{suffix}") as file:
        next(file, None)
        for row in file:
            _, local, _, state, *_ = row.split()
            if state != _STATES[kind]:
                if kind == "tcp":
                    return
                continue
            words, _, number = local.partition(":")
            raw = bytes.fromhex(words)
            address = b"".join(struct.pack("=I", each) for (each,) in struct.iter_unpack(">I", raw))
            yield BoundPort(kind, address.removeprefix(_MAPPED), int(number, 16))
