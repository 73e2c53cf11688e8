"""The files and sockets that a QEMU creates on its host, by its command line: logs, monitors, guest memory.

A QEMU that is started elsewhere with the command line of a running one creates them under the same names. If both hosts
see the same folder, these are the running QEMU's: its log would be truncated, its monitor replaced. So a QEMU that is
started only to be examined creates none, and one that is to take the guest is not started if they are in use.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from statepipe.errors import QemuError
from statepipe.qemu.commandline import TAKE_JSON, in_words, is_monitor, json_of, parted, split
from statepipe.qemu.configfile import configured, options, read
from statepipe.qemu.listening import Listened, listened_at
from statepipe.qemu.view import View
from statepipe.shapes import fields, flag, many, text, whole
from statepipe.typed import Any, NamedTuple

Facts = dict[str, Any]

PLACES = many(
    fields({"path": text(4096), "option": text(64)}, {"inode": whole(), "busy": flag, "held": flag}), most=1024
)
"""`path` is the name on that host; `inode` is set if the file exists, `busy` if a process listens there, `held` if the
place belongs to a QEMU that already runs."""

_LINES = ("serial", "parallel", "debugcon")
"""Options with a character device in one word, which may be replaced by `null`."""

_MONITORS = ("monitor", "qmp", "qmp-pretty", "gdb")

_DROPPED = (*("gdb", "s", "pidfile", "D", "trace", "vnc", "spice", "daemonize", "writeconfig"),)
"""Options that are removed for a QEMU that is only examined."""

_SERVER = re.compile(r"(^|,)server(=(on|yes|y|true))?(,|$)")

_NULL, _NONE = "null", "none"


class Place(NamedTuple):
    """A file or socket, and the option that names it. `is_written`: two QEMUs would destroy what the other writes; they
    would not in a log to which both append, nor in private memory."""

    path: str
    option: str
    is_written: bool = True


_ON = ("on", "yes", "y", "true")

_KINDS = ("qom-type", "backend", "driver", "type")
"""Names of the word that says which kind of thing an option creates."""


def _words_of(value: str) -> tuple[str, dict[str, str]]:
    """Return the kind of an option's value, and its words by name."""
    try:
        first, *rest = split(in_words(value))
    except ValueError:  # invalid JSON, which QEMU rejects
        return "", {}
    pairs = [each.partition("=") for each in (rest if "=" not in first else [first, *rest])]
    words = {key: text for key, _, text in pairs}
    return (next((words[key] for key in _KINDS if key in words), first) if "=" in first else first), words


def places(command: Sequence[str]) -> Iterator[Place]:
    """Yield the files and sockets that a command line creates in the host's file system."""
    for name, words in parted(command):
        value = words[1] if len(words) > 1 else ""
        kind, its = _words_of(f",{value}" if name in ("trace", "spice") else value)
        option, found, is_written = f"-{name}", list[str | None](), name not in ("mem-path", "writeconfig")
        if name in (*_LINES, *_MONITORS):
            kind, _, rest = value.removeprefix("mon:").partition(":")
            if kind in ("file", "pipe") and rest:
                found = [rest]
            elif kind == "unix" and _SERVER.search(rest):
                found = [rest.partition(",")[0]]
        elif name == "chardev":
            if kind in ("file", "pipe") or (kind == "socket" and _SERVER.search(value)):
                found = [its.get("path")]
            found.append(its.get("logfile"))
            is_written = not {its.get("append"), its.get("logappend")} & {*_ON}
        elif name in ("pidfile", "D", "writeconfig", "mem-path"):
            found = [value]
        elif name == "trace":
            found = [its.get("file")]
        elif name == "netdev" and kind == "stream":
            if its.get("server") in _ON and its.get("addr.type") == "unix":
                found = [its.get("addr.path")]
        elif name == "netdev" and kind == "dgram":
            if its.get("local.type") == "unix":
                found = [its.get("local.path")]
        elif name in ("vnc", "display") and (address := value.removeprefix("vnc=")).startswith("unix:"):
            found = [address[5:].partition(",")[0]]
        elif name in ("audiodev", "audio") and kind == "wav":
            found = [its.get("path", "qemu.wav")]
        elif name == "spice" and "unix" in value.split(",") + value.replace("=on", "").split(","):
            found = [its.get("addr") or None]
        elif name == "object" and (key := {"memory-backend-file": "mem-path", "filter-dump": "file"}.get(kind)):
            option, found = f"-object {kind}", [its.get(key)]
            is_written = kind == "filter-dump" or its.get("share") in _ON
        yield from (Place(path, option, is_written) for path in found if path is not None)


def for_a_look(command: Sequence[str], folder: str = "") -> list[str]:
    """Return the command line of a QEMU with the same devices, to be started in `folder`, that creates nothing on the
    host.

    Raises QemuError if that is impossible: for invalid JSON, and for a configuration file that cannot be read or has an
    option that creates something.
    """
    kept = list(command[:1])
    for name, words in parted(command):
        if name == "readconfig":
            path = os.path.join(folder, words[-1])
            why = ""
            if (text := read(path, View(0))) is None:
                why = "the file cannot be read, so statepipe does not know what QEMU would use on this host"
            elif using := [" ".join(each) for each in options(text) if _harmless(each[0][1:], each) != each]:
                why = f"QEMU would use files or sockets of this host: {'; '.join(using)}"
            if why:
                hint = "put these options on the command line, skip the check, or start that QEMU and give its --qmp"
                raise QemuError(f"cannot start a QEMU with -readconfig {path} for a check: {why}", hint=hint)
        if name in TAKE_JSON:
            try:
                in_words(words[-1])
            except ValueError as error:
                raise QemuError(f"{' '.join(words)[:200]} is not valid JSON for QEMU: {error}") from error
        kept += _harmless(name, words)
    return [*kept, "-display", "none", "-monitor", "none"]


_TAKING = (
    *("file", "pipe", "udp", "stdio", "pty", "serial", "parallel", "socket", "telnet", "websocket"),
    *("spicevmc", "spiceport"),
)
"""Character devices that use something of the host, or of an option that is removed."""


def _harmless(name: str | None, words: list[str]) -> list[str]:
    """Return the option for a QEMU that creates nothing on the host: unchanged, with other words, or nothing."""
    value = words[1] if len(words) > 1 else ""
    kind, its = _words_of(value)
    if name in _LINES:
        return words if value.startswith((_NULL, _NONE, "vc", "chardev:")) else [words[0], _NULL]
    if name == "chardev":
        if "logfile" in its or (kind in _TAKING and (kind != "socket" or _SERVER.search(value))):
            value = f"{_NULL},id={its.get('id', '')}" + (",mux=on" if its.get("mux") == "on" else "")
        return [words[0], value]
    if is_monitor(name, words) or name in (*_DROPPED, "nographic"):
        return []
    if name == "display" and not value.startswith("egl-headless"):
        return []
    if name == "mem-path" and not os.path.isdir(value):
        return []
    if name in ("netdev", "nic", "net"):
        return [words[0], _quiet_network(value, kind, its)]
    if name == "object" and kind == "filter-dump":
        return []
    if name == "object" and kind == "memory-backend-file" and not os.path.isdir(its.get("mem-path", "")):
        return [words[0], f"memory-backend-ram,id={its.get('id', '')},size={its.get('size', '')}"]
    if name in ("audiodev", "audio") and value.startswith("{"):
        return [words[0], f"{_NONE},id={its.get('id', '')}"]
    if name in ("audiodev", "audio"):
        return [words[0], _joined([_NONE, *(each for each in split(value)[1:] if each.startswith(("id=", "model=")))])]
    return words


def _quiet_network(value: str, kind: str, its: Mapping[str, str]) -> str:
    """Return a network without listening ports and without the scripts that set up a tap."""
    if kind == "tap" and not {"fd", "fds", "helper"} & set(its):
        if value.startswith("{"):
            return json.dumps(json_of(value) | {"script": "no", "downscript": "no"})
        kept = [word for word in split(value) if not word.startswith(("script=", "downscript="))]
        return _joined([*kept, "script=no", "downscript=no"])
    if kind == "user" and value.startswith("{"):
        return json.dumps({key: each for key, each in json_of(value).items() if key not in ("hostfwd", "guestfwd")})
    if kind == "user":
        return _joined(word for word in split(value) if not word.startswith(("hostfwd=", "guestfwd=")))
    listens = "listen" in its or its.get("server") == "on" or kind in ("dgram", "l2tpv3")
    if kind in ("socket", "stream", "dgram", "l2tpv3") and listens:
        rest = [f"{key}={its[key]}" for key in ("id", "model", "mac", "addr", "netdev") if key in its]
        return ",".join(["hubport" if "id" in its else "user", *rest, *(["hubid=4096"] if "id" in its else [])])
    return value


def _joined(words: Iterable[str]) -> str:
    return ",".join(word.replace(",", ",,") for word in words)


def seen(command: Sequence[str], view: View, folder: str, *, held: bool) -> list[Facts]:
    """Return the state of all places of a QEMU that is started in `folder`. `held`: it already runs."""
    listened = Listened() if held else listened_at()
    found = []
    for place in places([*command, *configured(command, view, folder)]):
        path = os.path.join(folder, place.path)
        row: Facts = {"path": path[:4096], "option": place.option} | ({"held": True} if held else {})
        with suppress(OSError, ValueError), view.place(path) as name:
            status = os.stat(name)
            if not (stat.S_ISCHR(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # /dev/null, /dev/shm
                row["inode"] = status.st_ino
            if stat.S_ISSOCK(status.st_mode) and listened.has(path, status):
                row["busy"] = True
        found.append(row)
    return found


def clashes(source: Sequence[Facts], there: Sequence[Facts]) -> Iterator[tuple[Facts, str]]:
    """Yield the places of a QEMU there that are in use, and why: by the inodes, which are the same on both hosts."""
    ours = {(os.path.basename(row["path"]), row["inode"]) for row in source if "inode" in row}
    for row in there:
        if (os.path.basename(row["path"]), row.get("inode")) in ours:
            yield row, "the guest's QEMU uses it, and both hosts see it"
        elif row.get("busy"):
            yield row, "another process listens there"
