"""What a QEMU that is to be started would share with a process that runs: sockets, ports, files, interfaces.

A second QEMU with the command line of a running one replaces its sockets and empties its logs. The kernel is asked,
and nothing is bound or opened for it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

from statepipe.processes import read_lines
from statepipe.qemu.commandline import in_words, parted, split
from statepipe.qemu.configfile import configured
from statepipe.qemu.listening import ports_bound
from statepipe.qemu.places import clashes, places, seen
from statepipe.qemu.ports import ports
from statepipe.qemu.process import is_qemu
from statepipe.qemu.view import View

_TUN = "/dev/net/tun"
"""The device behind every tap; fdinfo tells which of them a descriptor is (`iff:`, Linux drivers/net/tun.c)."""

File = tuple[int, int]
"""Device and inode."""


def taken(command: Sequence[str], folder: str) -> list[str]:
    """Return what a QEMU that is started in `folder` would take from others, as sentences that name the options."""
    whole = [*command, *configured(command, View(0), folder)]
    listened = [
        f"{row['path']} ({row['option']})" for row, _ in clashes([], seen(command, View(0), folder, held=False))
    ]
    wanted = list(ports(whole))
    bound = ports_bound() if wanted else frozenset()
    numbers = [
        f"{port.kind.upper()} {port.host or '*'}:{port.number} ({port.option})"
        for port in wanted
        if any(each.is_at(port.kind, port.host, port.number) for each in bound)
    ]
    files = {file: f"{path} ({option})" for path, option, file in _written(whole, folder)}
    taps = {tap: f"{tap} (-{option})" for tap, option in _taps(whole)}
    held: dict[File | str, int] = dict(_held({*files, *taps})) if files or taps else {}
    return [
        f"{what}: {', '.join(found)}"
        for what, found in (
            ("it would replace sockets at which another process listens", listened),
            ("other processes listen at its ports", numbers),
            ("other QEMUs write its files", [f"{files[key]}: process {held[key]}" for key in files if key in held]),
            ("other QEMUs have its interfaces", [f"{taps[key]}: process {held[key]}" for key in taps if key in held]),
        )
        if found
    ]


def _written(command: Sequence[str], folder: str) -> Iterator[tuple[str, str, File]]:
    """Yield path, option and identity of the files that QEMU would write and that exist."""
    for place in places(command):
        if place.is_written:
            path = os.path.join(folder, place.path)
            with suppress(OSError, ValueError):
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):
                    yield path, place.option, (status.st_dev, status.st_ino)


def _taps(command: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each tap that a command line names, and its option."""
    for name, words in parted(command):
        if name in ("netdev", "nic", "net") and len(words) > 1:
            with suppress(ValueError):  # invalid JSON, which QEMU rejects
                its = split(in_words(words[1]))
                if {"tap", "type=tap"} & {*its}:
                    yield from ((word[7:], name) for word in its if word.startswith("ifname="))


def _held(wanted: Collection[File | str]) -> Iterator[tuple[File | str, int]]:
    """Yield which of these files and taps a running QEMU has open, and its process, as far as we may look."""
    for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        if is_qemu(pid):
            with suppress(OSError):  # it has ended, or we may not look
                for entry in os.scandir(f"/proc/{pid}/fd"):
                    with suppress(FileNotFoundError):  # closed meanwhile
                        key = _open_at(pid, entry)
                        if key in wanted:
                            yield key, pid


def _open_at(pid: int, entry: os.DirEntry[str]) -> File | str:
    """Return the identity of an open file, or the name of the tap. Raises OSError."""
    if os.readlink(entry.path) == _TUN:
        rows = read_lines(f"/proc/{pid}/fdinfo/{entry.name}", "surrogateescape")
        return next((row.partition("\t")[2] for row in rows if row.startswith("iff:")), "")
    status = os.stat(entry.path)
    return status.st_dev, status.st_ino
