"""Connect to QEMU's monitor at an address in QEMU's own notation, and explain why that failed."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat

from statepipe.errors import QemuError, QemuGone, UsageError
from statepipe.units import number_in

LOOK_AGAIN = 0.05
"""Seconds between two attempts to connect to a socket whose queue is full."""

_HMP = re.compile(rb"QEMU [\w.]+ monitor\b")

ONE_MORE = "start QEMU with one more -qmp unix:PATH,server=on,wait=off"


def parse_monitor(address: str) -> str | tuple[str, int]:
    """Return a unix socket's path, or a host and a port. Raises UsageError.

    The address is a path, or is written as for -qmp: `unix:PATH,server=on,wait=off`, `tcp:HOST:PORT,…`. A path that
    begins with one of these words needs a leading `./`.
    """
    kind, colon, rest = address.partition(":")
    if not colon or kind not in ("unix", "tcp"):
        return address
    place = rest.partition(",")[0]
    if kind == "unix":
        return f"/{place.lstrip('/')}" if place.startswith("//") else place
    host, _, port = place.removeprefix("//").rpartition(":")
    if (number := number_in(port, 0, 0xFFFF)) is None:
        raise UsageError(f"'{address}' has no valid port", hint="write it as QEMU does: tcp:HOST:PORT")
    return host.strip("[]") or "localhost", number


async def reached(address: str) -> socket.socket:
    """Return a socket that is connected to that address. Raises OSError, UsageError.

    TCP: the first of the host's addresses that answers. A unix socket connects at once or not at all; while its queue
    is full, it is tried again.
    """
    place = parse_monitor(address)
    if isinstance(place, str):
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.setblocking(False)
            while True:
                try:
                    peer.connect(place)
                    return peer
                except BlockingIOError:
                    await asyncio.sleep(LOOK_AGAIN)
        except BaseException:
            peer.close()
            raise
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, protocol, _, found in await loop.getaddrinfo(*place, type=socket.SOCK_STREAM):
        peer = socket.socket(family, kind, protocol)
        try:
            peer.setblocking(False)
            await loop.sock_connect(peer, found)
            return peer
        except OSError as error:
            peer.close()
            failure = failure or error
        except BaseException:
            peer.close()
            raise
    raise failure or OSError("it has no address")


def unreachable(
    address: str | socket.socket, error: Exception, misfit: Exception | None, first_line: bytes
) -> QemuError:
    """Return the error that explains why no QMP monitor answered.

    `misfit` is what was wrong with the last message, `first_line` the beginning of the first one.
    """
    if misfit is not None and _HMP.match(first_line):
        what = f"the monitor at {address} is QEMU's human monitor (HMP, -monitor), not a QMP monitor"
        return QemuError(what, hint=f"{ONE_MORE}, and give that PATH")
    if misfit is not None:
        hint = "give the socket of -qmp, or of the -chardev of a QMP monitor"
        place = f"the socket {address}" if isinstance(address, str) else "the monitor of the QEMU that was started here"
        return QemuError(f"{place} is not a QMP monitor: {misfit}", hint=hint)
    if not isinstance(address, str):
        return QemuGone("QEMU ended before its monitor answered")
    reason = no_socket(address) or reason_of(getattr(error, "exc", error))
    return QemuError(
        f"no QMP monitor answers at {address}: {reason}",
        hint="start QEMU with -qmp unix:PATH,server=on,wait=off and give that PATH; a monitor serves one client",
    )


def reason_of(cause: Exception) -> str:
    """Return the cause in words, without the number of the error."""
    if isinstance(cause, EOFError):
        return "it closed the connection"
    if isinstance(cause, socket.gaierror):
        return str(cause.strerror)
    return os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(cause).rstrip(": ")


def no_socket(address: str) -> str | None:
    """Return what the path is instead of a socket; None for a socket, and for an address that is not a path."""
    if not isinstance(path := parse_monitor(address), str):
        return None
    try:
        mode = os.stat(path).st_mode
    except OSError:  # the error of connect() explains it
        return None
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO"}
    return None if stat.S_ISSOCK(mode) else f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a socket"
