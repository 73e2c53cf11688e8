"""What the far end of a tunnel for libvirt leads to, and how the near end names it (docs/protocol.md, 6).

The near end names no path. It opens a tunnel for a guest, under a random name; the far end makes a folder for it and
answers with the paths there. Each connection then names the tunnel and one of three targets. Only the peer that has
opened a tunnel may use it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from statepipe.ends.ration import LINE
from statepipe.errors import PeerError, StatepipeError, UsageError
from statepipe.session.messages import Messages
from statepipe.session.protocol.frames import Violation
from statepipe.shapes import Misshapen, Shape, check, fields, text, told
from statepipe.tunnel.libvirthost import (
    IDENT,
    Host,
    Paths,
    check_domain,
    connect_daemon,
    connect_qemu,
    own_folder,
)
from statepipe.typed import Any, NamedTuple

TARGETS = ("libvirtd", "memory", "disks")

_PATH = text(4096)
WISH = fields({"tunnel": text(8)}, optional={"domain": text(256), "to": text(16)})
"""The near end's message: `domain` opens the tunnel, `to` asks for a connection in it."""

OPENED = fields({"daemon": _PATH, "memory": _PATH, "disks": _PATH})
"""The far end's answer to `domain`: the socket of its daemon, and where its QEMU has to listen."""


def hear(messages: Messages, shape: Shape, within: float) -> dict[str, Any]:
    """Return the other side's message of this shape. Raises PeerError if none comes in time, Violation for another."""
    if (message := messages.hear(within)) is None:
        raise Violation("it ended its messages before it sent one")
    try:
        return dict(check(message, shape))
    except Misshapen as error:
        raise Violation(f"a message of another form: {told(error, LINE)}") from error


class _Opened(NamedTuple):
    """A tunnel that a peer has opened: the peer, the open folder, and the paths in it."""

    peer: str
    folder: int
    paths: Paths


class Targets:
    """What this host's libvirt offers to the tunnels that are open. Any thread may use it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._tunnels: dict[str, _Opened] = {}

    @contextmanager
    def opened(self, peer: str, ident: str, domain: str) -> Iterator[dict[str, str]]:
        """Open a tunnel during the context, and give the answer. Raises StatepipeError."""
        if not IDENT.fullmatch(ident):
            raise Violation("a tunnel without a proper name")
        try:
            paths = self._host.paths(ident, check_domain(domain))
        except UsageError as error:
            raise PeerError(str(error), hint=error.hint) from error
        daemon, connection = connect_daemon(self._host)
        connection.close()
        with own_folder(self._host, ident, listens=True) as folder:
            with self._lock:
                self._tunnels[ident] = _Opened(peer, folder, paths)
            try:
                yield {"daemon": daemon, "memory": paths.memory, "disks": paths.disks}
            finally:
                with self._lock:
                    del self._tunnels[ident]

    def connect(self, peer: str, ident: str, to: str) -> socket.socket:
        """Connect to a target of a tunnel that this peer has opened. Raises PeerError."""
        if to not in TARGETS:
            raise Violation(f"no target of a tunnel: {to!r}")
        with self._lock:  # the folder stays open while we have it
            opened = self._tunnels.get(ident)
            if opened is None or opened.peer != peer:
                raise PeerError("this tunnel is not open here", hint="start the tunnel again")
            folder = os.dup(opened.folder)
        try:
            if to == "libvirtd":
                return connect_daemon(self._host)[1]
            return connect_qemu(self._host, folder, opened.paths.memory if to == "memory" else opened.paths.disks)
        finally:
            os.close(folder)


def compared(paths: Paths, answer: dict[str, str], name: str) -> None:
    """Check that the far end's QEMU will listen at the same paths. Raises StatepipeError."""
    if (answer["memory"], answer["disks"]) != (paths.memory, paths.disks):
        here, there = os.path.dirname(os.path.dirname(paths.memory)), os.path.dirname(os.path.dirname(answer["memory"]))
        what = f"the sockets are in {here} here, and in {there} on {name}"
        raise StatepipeError(what, hint="libvirt needs the same path on both hosts: give both ends --folder DIR")
