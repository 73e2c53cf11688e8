"""What of a host a QEMU makes for itself: the files that it empties, the sockets that it takes from whoever listens
there, and the files that hold its memory.

A QEMU that is started elsewhere with the command line of one that runs does so under the same names, and where both
hosts see the same folder these are the other's: its log is emptied, its monitor is gone. So a QEMU that is started only
to be looked at gets none of them, and one that is to take the guest is not started where they are in use.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from statepipe.errors import QemuError
from statepipe.qemu.commandline import parted
from statepipe.qemu.listening import Listened, listened_at
from statepipe.qemu.view import View
from statepipe.shapes import fields, flag, many, text, whole

Facts = dict[str, Any]

PLACES = many(
    fields({"path": text(4096), "option": text(64)}, {"inode": whole(), "busy": flag, "held": flag}), most=1024
)
"""Each by its path on that host; `inode` where there is such a file, `busy` where somebody listens there, `held` where
the QEMU that has it runs already."""

_LINES = ("serial", "parallel", "debugcon")
"""Options with a character device in one word, which may be `null` instead."""

_MONITORS = ("monitor", "qmp", "qmp-pretty", "gdb")

_DROPPED = ("qmp", "qmp-pretty", "mon", "gdb", "s", "pidfile", "D", "trace", "vnc", "daemonize", "writeconfig")
"""Options that a QEMU to be looked at does without."""

_SERVER = re.compile(r"(^|,)server(=(on|yes|y|true))?(,|$)")

_NULL, _NONE = "null", "none"


@dataclass(frozen=True, slots=True)
class Place:
    """A file or socket, and the option that names it."""

    path: str
    option: str


def places(command: Sequence[str]) -> Iterator[Place]:
    """Those of the host's file system that a command line names."""
    for name, words in parted(command):
        value = words[1] if len(words) > 1 else ""
        if name in (*_LINES, *_MONITORS):
            yield from (Place(path, f"-{name}") for path in _paths_of_line(value))
        elif name == "chardev":
            yield from (Place(path, "-chardev") for path in _paths_of_chardev(value))
        elif name in ("pidfile", "D", "writeconfig"):
            yield Place(value, f"-{name}")
        elif name in ("vnc", "display") and (address := value.removeprefix("vnc=")).startswith("unix:"):
            yield Place(address[5:].partition(",")[0], f"-{name}")
        elif name in ("audiodev", "audio") and _words_of(value)[0].removeprefix("driver=") == "wav":
            yield Place(_words_of(value)[1].get("path", "qemu.wav"), f"-{name}")
        elif name == "spice" and "unix" in value.split(",") + value.replace("=on", "").split(","):
            yield from (Place(path, "-spice") for path in (_words_of(f",{value}")[1].get("addr"),) if path)
        elif name == "object":
            kind, words_of_it = _words_of(value)
            if path := {"memory-backend-file": "mem-path", "filter-dump": "file"}.get(kind):
                yield from (Place(words_of_it[key], f"-object {kind}") for key in (path,) if key in words_of_it)


def for_a_look(command: Sequence[str]) -> list[str]:
    """The command line of a QEMU with the same guest's devices, that makes nothing for itself on the host.

    Raises QemuError for one of which that cannot be made.
    """
    kept = list(command[:1])
    for name, words in parted(command):
        kept += _harmless(name, words)
    return [*kept, "-display", "none", "-monitor", "none"]


def _harmless(name: str | None, words: list[str]) -> list[str]:
    value = words[1] if len(words) > 1 else ""
    if name in _LINES:
        return words if value.startswith((_NULL, _NONE, "vc", "chardev:")) else [words[0], _NULL]
    if name == "chardev":
        return [words[0], _quiet_chardev(value)]
    if name in (*_DROPPED, "monitor", "nographic") or (name == "display" and not value.startswith("egl-headless")):
        return []
    if name == "mem-path" and not os.path.isdir(value):
        return []
    if name in ("netdev", "nic", "net"):
        return [words[0], _quiet_network(value)]
    if name == "object":
        return _quiet_object(words)
    if name in ("audiodev", "audio"):
        return [words[0], _quiet_audio(value)]
    if name in ("readconfig", "spice"):
        what = f"a QEMU with -{name} is not started for a look: nobody knows what of this host it would take"
        raise QemuError(what, hint="leave the check out, or start that QEMU yourself and give receive its --qmp")
    return words


def _paths_of_line(value: str) -> Iterator[str]:
    kind, _, rest = value.removeprefix("mon:").partition(":")
    if kind in ("file", "pipe") and rest:
        yield rest
    elif kind == "unix" and _SERVER.search(rest):
        yield rest.partition(",")[0]


def _paths_of_chardev(value: str) -> Iterator[str]:
    kind, words = _words_of(value)
    if kind in ("file", "pipe") or (kind == "socket" and _SERVER.search(value)):
        yield from (words[key] for key in ("path",) if key in words)
    yield from (words[key] for key in ("logfile",) if key in words)


def _words_of(value: str) -> tuple[str, dict[str, str]]:
    """What kind of thing an option's value is, and its words by name; of JSON those that are text."""
    if value.startswith("{"):
        try:
            found = json.loads(value)
        except ValueError:
            return "", {}
        words = {key: each for key, each in found.items() if isinstance(each, str)} if isinstance(found, dict) else {}
        return words.get("qom-type", words.get("backend", "")), words
    kind, *rest = re.split(r"(?<!,),(?!,)", value)
    pairs = (each.partition("=") for each in rest)
    return kind.removeprefix("qom-type=").removeprefix("backend="), {
        key: text.replace(",,", ",") for key, _, text in pairs
    }


def _quiet_chardev(value: str) -> str:
    """The same name for a device that leads nowhere, unless it only reaches for who listens."""
    kind, words = _words_of(value)
    if kind not in ("file", "pipe", "udp", "stdio", "pty", "serial", "parallel", "socket", "telnet", "websocket"):
        return value
    if kind == "socket" and not _SERVER.search(value) and "logfile" not in words:
        return value
    return f"{_NULL},id={words.get('id', '')}" + (",mux=on" if words.get("mux") == "on" else "")


def _quiet_network(value: str) -> str:
    """Without the ports that QEMU itself would listen at."""
    kind, words = _words_of(value)
    if kind == "user":
        return ",".join(word for word in value.split(",") if not word.startswith(("hostfwd=", "guestfwd=")))
    listens = "listen" in words or words.get("server") == "on" or kind in ("dgram", "l2tpv3")
    if kind in ("socket", "stream", "dgram", "l2tpv3") and listens:
        rest = [f"{key}={words[key]}" for key in ("id", "model", "mac", "addr", "netdev") if key in words]
        return ",".join(["hubport" if "id" in words else "user", *rest, *(["hubid=4096"] if "id" in words else [])])
    return value


def _quiet_audio(value: str) -> str:
    """The same device, which nobody hears."""
    _, *rest = re.split(r"(?<!,),(?!,)", value)
    return ",".join([_NONE, *(word for word in rest if word.startswith(("id=", "model=")))])


def _quiet_object(words: list[str]) -> list[str]:
    kind, its = _words_of(words[1] if len(words) > 1 else "")
    if kind == "filter-dump":
        return []
    if kind == "memory-backend-file" and not os.path.isdir(its.get("mem-path", "")):
        size = its.get("size") or _size_of(words[1])
        return [words[0], f"memory-backend-ram,id={its.get('id', '')},size={size}"]
    return words


def _size_of(value: str) -> int:
    """Of an object in JSON, where it is a number."""
    try:
        return int(json.loads(value)["size"])
    except (ValueError, KeyError, TypeError):
        return 0


def seen(command: Sequence[str], view: View, folder: str, *, held: bool) -> list[Facts]:
    """What there is of the places of a QEMU that was, or is to be, started in `folder`. `held`: it runs."""
    listened = Listened() if held else listened_at()
    found = []
    for place in places(command):
        path = os.path.join(folder, place.path)
        row: Facts = {"path": path[:4096], "option": place.option} | ({"held": True} if held else {})
        with suppress(OSError, ValueError), view.place(path) as name:
            status = os.stat(name)
            if not (stat.S_ISCHR(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # /dev/null, /dev/shm: everybody's
                row["inode"] = status.st_ino
            if stat.S_ISSOCK(status.st_mode) and listened.has(path, status):
                row["busy"] = True
        found.append(row)
    return found


def clashes(source: Sequence[Facts], there: Sequence[Facts]) -> Iterator[tuple[Facts, str]]:
    """Which places of a QEMU over there are another's, and whose: by the numbers that files have on both hosts."""
    ours = {(os.path.basename(row["path"]), row["inode"]) for row in source if "inode" in row}
    for row in there:
        if (os.path.basename(row["path"]), row.get("inode")) in ours:
            yield row, "the guest's QEMU has it, and both hosts see it"
        elif row.get("busy"):
            yield row, "somebody listens there"
