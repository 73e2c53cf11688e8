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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from statepipe.errors import QemuError
from statepipe.qemu.commandline import TAKE_JSON, in_words, json_of, parted, split
from statepipe.qemu.configfile import configured, options, read
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

_DROPPED = (
    *("qmp", "qmp-pretty", "mon", "gdb", "s", "pidfile", "D", "trace", "vnc", "spice", "daemonize", "writeconfig"),
)
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
        elif name in ("pidfile", "D", "writeconfig", "mem-path"):
            yield Place(value, f"-{name}")
        elif name in ("netdev", "trace"):
            yield from (Place(path, f"-{name}") for path in _paths_of_words(name, value))
        elif name in ("vnc", "display") and (address := value.removeprefix("vnc=")).startswith("unix:"):
            yield Place(address[5:].partition(",")[0], f"-{name}")
        elif name in ("audiodev", "audio") and _words_of(value)[0] == "wav":
            yield Place(_words_of(value)[1].get("path", "qemu.wav"), f"-{name}")
        elif name == "spice" and "unix" in value.split(",") + value.replace("=on", "").split(","):
            yield from (Place(path, "-spice") for path in (_words_of(f",{value}")[1].get("addr"),) if path)
        elif name == "object":
            kind, words_of_it = _words_of(value)
            if path := {"memory-backend-file": "mem-path", "filter-dump": "file"}.get(kind):
                yield from (Place(words_of_it[key], f"-object {kind}") for key in (path,) if key in words_of_it)


def for_a_look(command: Sequence[str], folder: str = "") -> list[str]:
    """The command line of a QEMU with the same guest's devices, to be started in `folder`, that makes nothing for
    itself on the host.

    Raises QemuError for one of which that cannot be made.
    """
    kept = list(command[:1])
    for name, words in parted(command):
        if name == "readconfig":
            _demand_harmless(os.path.join(folder, words[-1]))
        if name in TAKE_JSON:
            _demand_understood(words)
        kept += _harmless(name, words)
    return [*kept, "-display", "none", "-monitor", "none"]


def _demand_understood(words: list[str]) -> None:
    """Raises QemuError for JSON of which nobody knows what it would take."""
    try:
        in_words(words[-1])
    except ValueError as error:
        raise QemuError(f"{' '.join(words)[:200]} is no JSON of QEMU's: {error}") from error


def _demand_harmless(path: str) -> None:
    """Raises QemuError for a configuration file with an option that makes something, or that cannot be read."""
    text = read(path, View(0))
    if text is None:
        why = "the file cannot be read, so what QEMU would take of this host is not known"
    elif taking := [" ".join(each) for each in options(text) if _harmless(each[0][1:], each) != each]:
        why = f"QEMU would take of this host what these options name: {'; '.join(taking)}"
    else:
        return
    hint = "put such options on the command line, leave the check out, or start that QEMU yourself and give its --qmp"
    raise QemuError(f"a QEMU with -readconfig {path} is not started for a check: {why}", hint=hint)


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


def _paths_of_words(name: str, value: str) -> Iterator[str]:
    """Of -netdev the socket that it listens at, of -trace the file that it writes."""
    kind, words = _words_of(value if name == "netdev" else f",{value}")
    key = None
    if name == "trace":
        key = "file"
    elif kind == "stream" and words.get("server") in _ON and words.get("addr.type") == "unix":
        key = "addr.path"
    elif kind == "dgram" and words.get("local.type") == "unix":
        key = "local.path"
    if key in words:
        yield words[key]


_ON = ("on", "yes", "y", "true")

_KINDS = ("qom-type", "backend", "driver", "type")
"""What says which kind of thing an option's value is, where that has a name."""


def _words_of(value: str) -> tuple[str, dict[str, str]]:
    """What kind of thing an option's value is, and its words by name."""
    try:
        first, *rest = split(in_words(value))
    except ValueError:  # JSON that is none: QEMU does not take it
        return "", {}
    pairs = [each.partition("=") for each in (rest if "=" not in first else [first, *rest])]
    words = {key: text for key, _, text in pairs}
    return (next((words[key] for key in _KINDS if key in words), first) if "=" in first else first), words


_TAKING = (
    *("file", "pipe", "udp", "stdio", "pty", "serial", "parallel", "socket", "telnet", "websocket"),
    *("spicevmc", "spiceport"),
)
"""Character devices that take something of the host, or of what is left out for a look."""


def _quiet_chardev(value: str) -> str:
    """The same name for a device that leads nowhere, unless it only reaches for who listens."""
    kind, words = _words_of(value)
    if "logfile" not in words and (kind not in _TAKING or (kind == "socket" and not _SERVER.search(value))):
        return value
    return f"{_NULL},id={words.get('id', '')}" + (",mux=on" if words.get("mux") == "on" else "")


def _quiet_network(value: str) -> str:
    """Without the ports that QEMU itself would listen at, and the scripts that it would have set up a tap."""
    kind, words = _words_of(value)
    if kind == "tap" and not {"fd", "fds", "helper"} & set(words):
        return _without_scripts(value)
    if kind == "user" and value.startswith("{"):
        return json.dumps({key: each for key, each in json_of(value).items() if key not in ("hostfwd", "guestfwd")})
    if kind == "user":
        return _joined(word for word in split(value) if not word.startswith(("hostfwd=", "guestfwd=")))
    listens = "listen" in words or words.get("server") == "on" or kind in ("dgram", "l2tpv3")
    if kind in ("socket", "stream", "dgram", "l2tpv3") and listens:
        rest = [f"{key}={words[key]}" for key in ("id", "model", "mac", "addr", "netdev") if key in words]
        return ",".join(["hubport" if "id" in words else "user", *rest, *(["hubid=4096"] if "id" in words else [])])
    return value


def _without_scripts(value: str) -> str:
    if value.startswith("{"):
        return json.dumps(json_of(value) | {"script": "no", "downscript": "no"})
    kept = [word for word in split(value) if not word.startswith(("script=", "downscript="))]
    return _joined([*kept, "script=no", "downscript=no"])


def _joined(words: Iterable[str]) -> str:
    """An option's value of these words."""
    return ",".join(word.replace(",", ",,") for word in words)


def _quiet_audio(value: str) -> str:
    """The same device, which nobody hears."""
    if value.startswith("{"):
        return f"{_NONE},id={_words_of(value)[1].get('id', '')}"
    return _joined([_NONE, *(word for word in split(value)[1:] if word.startswith(("id=", "model=")))])


def _quiet_object(words: list[str]) -> list[str]:
    kind, its = _words_of(words[1] if len(words) > 1 else "")
    if kind == "filter-dump":
        return []
    if kind == "memory-backend-file" and not os.path.isdir(its.get("mem-path", "")):
        return [words[0], f"memory-backend-ram,id={its.get('id', '')},size={its.get('size', '')}"]
    return words


def seen(command: Sequence[str], view: View, folder: str, *, held: bool) -> list[Facts]:
    """What there is of the places of a QEMU that was, or is to be, started in `folder`. `held`: it runs."""
    listened = Listened() if held else listened_at()
    found = []
    for place in places([*command, *configured(command, view, folder)]):
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
