"""The TCP and UDP ports of its host at which a QEMU listens, by its command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from statepipe.qemu.commandline import in_words, parted, split
from statepipe.typed import NamedTuple

_ON = ("on", "yes", "y", "true")

_LINES = ("serial", "parallel", "debugcon", "monitor", "qmp", "qmp-pretty", "gdb")
"""Options with a character device in one word."""

_SERVER = re.compile(r"(^|,)server(=(on|yes|y|true))?(,|$)")

_FORWARD = re.compile(r"hostfwd(\.\d+\.str)?=(?P<kind>tcp|udp|):(?P<address>[^-]*)-")

VNC, VNC_WEB, GDB = 5900, 5700, 1234
"""The port of VNC's display 0, of the same for WebSocket, and of -s."""


class Port(NamedTuple):
    """A port at which QEMU listens, `tcp` or `udp`. The host is empty for all addresses."""

    kind: str
    host: str
    number: int
    option: str


def ports(command: Sequence[str]) -> Iterator[Port]:
    """Yield the ports that a command line names. A range, from which QEMU takes one that is free, is none."""
    for name, words in parted(command):
        value = words[1] if len(words) > 1 else ""
        for kind, address in _listening(name, value):
            host, _, number = address.rpartition(":")
            if number.isascii() and number.isdecimal() and 0 < int(number) < 1 << 16:
                yield Port(kind, host.removeprefix("[").removesuffix("]"), int(number), f"-{name}")


def _listening(name: str | None, value: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the address, `host:port`, of each port of one option."""
    if name == "s":
        yield "tcp", f":{GDB}"
    elif name in _LINES:
        kind, _, rest = value.removeprefix("mon:").partition(":")
        if kind in ("tcp", "telnet", "websocket", "tn3270") and (name == "gdb" or _SERVER.search(rest)):
            yield "tcp", rest.partition(",")[0]
        elif kind == "udp":
            yield "udp", rest.partition("@")[2].partition(",")[0]
    elif name == "vnc" or (name == "display" and value.startswith("vnc=")):
        yield from _vnc(value.removeprefix("vnc="))
    elif name in ("chardev", "netdev", "nic", "net", "spice"):
        try:
            first, *more = split(in_words(f",{value}" if name == "spice" else value))
        except ValueError:  # invalid JSON, which QEMU rejects
            return
        its = {key: text if equals else "on" for key, equals, text in (each.partition("=") for each in (first, *more))}
        kind = next((its[key] for key in ("backend", "type") if key in its), first)
        if "to" not in its and "addr.to" not in its:
            yield from _of_words(name, kind, its)
        if kind == "user":
            found = (_FORWARD.match(word) for word in more)
            yield from ((each["kind"] or "tcp", each["address"]) for each in found if each)


def _vnc(value: str) -> Iterator[tuple[str, str]]:
    address, *rest = split(value)
    its = {key: text if equals else "on" for key, equals, text in (each.partition("=") for each in rest)}
    host, colon, display = address.rpartition(":")
    if not (colon and display.isascii() and display.isdecimal()) or "to" in its or its.get("reverse") in _ON:
        return
    yield "tcp", f"{host}:{VNC + int(display)}"
    if (web := its.get("websocket", "off")) != "off":
        yield "tcp", f"{host}:{VNC_WEB + int(display)}" if web in _ON else web if ":" in web else f"{host}:{web}"


def _of_words(name: str, kind: str, its: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the same for an option in words, which has no ranges."""
    if name == "spice":
        yield from (("tcp", f"{its.get('addr', '')}:{its[key]}") for key in ("port", "tls-port") if key in its)
    elif name == "chardev" and kind == "socket" and its.get("server") in _ON:
        yield "tcp", f"{its.get('host', '')}:{its.get('port', '')}"
    elif name == "chardev" and kind == "udp":
        yield "udp", f"{its.get('localaddr', '')}:{its.get('localport', '')}"
    elif kind == "socket" and "listen" in its:
        yield "tcp", its["listen"]
    elif kind == "socket" and "udp" in its:
        yield "udp", its.get("localaddr", "")
    elif kind == "stream" and its.get("server") in _ON and its.get("addr.type") == "inet":
        yield "tcp", f"{its.get('addr.host', '')}:{its.get('addr.port', '')}"
    elif kind == "dgram" and its.get("local.type") == "inet":
        yield "udp", f"{its.get('local.host', '')}:{its.get('local.port', '')}"
