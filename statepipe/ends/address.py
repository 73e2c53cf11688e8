"""Addresses of another host or another process.

tcp://HOST:PORT  tcp://[2001:db8::7]:PORT  tcp://:PORT  unix:///PATH  ssh://USER@HOST:PORT/PATH
and in QEMU's notation: tcp:HOST:PORT  unix:/PATH
"""

from __future__ import annotations

import re

from statepipe.errors import UsageError
from statepipe.typed import NamedTuple

TCP, TLS, UNIX, SSH = "tcp", "tls", "unix", "ssh"

PORT = 20490
"""The default port. It is below the ports that Linux assigns by itself (32768 and up)."""

PATH_LIMIT = 107
"""Bytes of a unix socket's path at most: sockaddr_un has 108 with the NUL."""

_HINT = "write tls://HOST:PORT, tls://[::1]:PORT, tls://:PORT, the same with tcp://, unix:///PATH, or ssh://HOST/PATH"
_SSH_HINT = "write ssh://HOST/PATH or ssh://USER@HOST:PORT/PATH; PATH is the absolute path of a file"
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([^\[\]:/@?#\s]*))(?::([0-9]{1,5}))?")
_OF_QEMU = re.compile(r"^(unix):(?=/(?!/))|^(tcp):(?=[^:/]*:[^:]+$)")
"""QEMU's notation `unix:/PATH` and `tcp:HOST:PORT`. A host called tcp has only one colon."""

_USER = re.compile(r"[^-\s:/@][^\s:/@]*")


class Address(NamedTuple):
    """An address. `host` is empty for all of this host's addresses; `path` is that of a unix socket or a file.

    `user` is for ssh; port 0 then leaves the port to ssh's configuration.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    user: str = ""

    @property
    def name(self) -> str:
        """The host's name in a certificate and for a pin: without the zone of an IPv6 address, which is the name of an
        interface here, and without the dot that can end a name."""
        return self.host.partition("%")[0].removesuffix(".").lower()

    def __str__(self) -> str:
        if self.scheme == UNIX:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.scheme == SSH:
            user, port = self.user and f"{self.user}@", f":{self.port}" if self.port else ""
            return f"ssh://{user}{host}{port}{self.path}"
        return f"{self.scheme}://{host}:{self.port}"


def parse_address(text: str, port_given_none: int = PORT) -> Address:
    """Parse an address; tls:// needs no port. Raises UsageError."""
    scheme, separator, rest = _OF_QEMU.sub(lambda found: f"{found[1] or found[2]}://", text).partition("://")
    if separator and scheme == UNIX:
        return _unix(text, rest)
    if separator and scheme == SSH:
        return _ssh(text, rest)
    if not separator:
        scheme, rest = TLS, text
    if scheme not in (TCP, TLS):
        raise UsageError(f"'{text}' is not an address of a known kind", hint=_HINT)
    found = _HOST_PORT.fullmatch(rest)
    port = found and (found[3] or (port_given_none if scheme == TLS and rest else None))
    if found is None or port is None or int(port) > 65535:
        if text.startswith("unix:"):
            return _unix(text, text.removeprefix("unix:"))
        raise UsageError(f"'{text}' is not a host and a port", hint=_HINT)
    return Address(scheme, found[1] or found[2], int(port))


def _unix(text: str, path: str) -> Address:
    if not path.startswith("/") or "\0" in path or len(path.encode(errors="surrogateescape")) > PATH_LIMIT:
        raise UsageError(f"'{text}' is not an absolute path of at most {PATH_LIMIT} bytes", hint=_HINT)
    return Address(UNIX, path=path)


def _ssh(text: str, rest: str) -> Address:
    """Parse an address of ssh. A host must not begin with a dash, which ssh would take for an option."""
    where, slash, path = rest.partition("/")
    user, at, place = where.rpartition("@")
    found = _HOST_PORT.fullmatch(place)
    if found is None or int(found[3] or 0) > 65535 or (at and not _USER.fullmatch(user)):
        raise UsageError(f"'{text}' is not a valid host for ssh", hint=_SSH_HINT)
    host = found[1] or found[2]
    if not host or host.startswith("-"):
        raise UsageError(f"'{text}' names no host", hint=_SSH_HINT)
    if not path.isprintable():
        raise UsageError(f"'{text}' names no file", hint=_SSH_HINT)
    return Address(SSH, host, int(found[3] or 0), slash + path if path else "", user)
