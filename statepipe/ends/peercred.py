"""Ask the kernel which process and user are at the other end of a unix socket (SO_PEERCRED, unix(7))."""

from __future__ import annotations

import _socket
import os
import pwd
import struct

from statepipe.errors import PeerError, UsageError


def user_name(uid: int) -> str:
    """Return a user's name, or a text with the number if the user database does not have it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def uid_of(name: str) -> int:
    """Return the number of a user given by number or name. Raises UsageError."""
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        hint = "with unix:// the peer is a user of this host, by name or number"
        raise UsageError(f"the user '{name}' does not exist here", hint=hint) from None


def peer_of(connection: _socket.socket) -> tuple[int, int]:
    """Return the process id (0 in another pid namespace) and the user of the process that connected or listens."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
    return pid, uid


def is_ours(connection: _socket.socket) -> bool:
    """Return whether the other end belongs to our user or root."""
    try:
        return peer_of(connection)[1] in (os.geteuid(), 0)
    except OSError:
        return False


def demand_user(connection: _socket.socket, meant: str | None, known: int | None = None) -> str:
    """Return the name of the user who connected or listens: root, our own user, the user `meant`, or `known`.

    Raises PeerError for any other user.
    """
    _, uid = peer_of(connection)
    if uid not in (0, os.geteuid(), known) and (meant is None or uid != uid_of(meant)):
        expected = "root" if os.geteuid() == 0 else f"root or {user_name(os.geteuid())}"
        hint = f"if this is the peer that you want, add --peer {uid}; else check who made the socket"
        raise PeerError(f"the other side is {user_name(uid)}, not {expected}", hint=hint)
    return user_name(uid)
