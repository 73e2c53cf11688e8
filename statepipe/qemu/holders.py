"""Find the process that has a disk open which a QEMU could not lock, to name it beside QEMU's own message."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress

from statepipe.processes import read_text
from statepipe.qemu.commandline import OWN_MONITOR

_LOCK = re.compile(r'Failed to get (?:shared )?"[^"]+" lock')
_IMAGE = re.compile(r"using the image \[(.+?)\]\?")
"""block/file-posix.c; the second only on its standard error."""

_OWN = re.compile(rf"socket,id={OWN_MONITOR},path=([^,]+),.*")

SHOWN = 3
"""Processes that are named at most."""


def lock_hint(words: str, files: Sequence[str] = (), but: int = 0) -> str | None:
    """Return what to do if QEMU's message says that it could not lock a disk; None for any other message.

    QEMU's monitor does not say which disk; then `files` are checked, the disks that this QEMU, process `but`, writes.
    """
    if not _LOCK.search(words):
        return None
    image = _IMAGE.search(words)
    for path in [image[1]] if image else files:
        if held := _held(path, but):
            return held
    if image is None:
        return "another process has a disk of this guest open: end the QEMU that runs it; lslocks lists processes"
    return _unseen(image[1])


def holder_hint(path: str) -> str:
    """Return what to do about a disk that another process has locked."""
    return _held(path, 0) or _unseen(path)


def _held(path: str, but: int) -> str | None:
    found = dict(_holders(path, but))
    for pid, who in found.items():
        if monitor := _lazy_monitor(pid):
            look = f"statepipe resolve --qmp {shlex.quote(monitor)}"
            what = "which may have the guest of an interrupted lazy load; do not end it"
            return f"{path} is open in {who}, {what}: {look}"
    those = "that" if len(found) == 1 else "those"
    names = ", ".join(list(found.values())[:SHOWN])
    return f"{path} is open in {names}: end {those} first, if the guest runs there" if found else None


def _lazy_monitor(pid: int) -> str | None:
    """Return the monitor that a lazy load gave the QEMU `pid`, if it is there. It is removed once all is loaded."""
    try:
        words = read_text(f"/proc/{pid}/cmdline", "surrogateescape").split("\0")
    except OSError:  # it has ended
        return None
    for found in filter(None, map(_OWN.fullmatch, words)):
        if os.path.lexists(found[1]):
            return str(found[1])
    return None


def _unseen(path: str) -> str:
    find = f"check the other hosts, and as root: fuser -v {shlex.quote(path)}"
    return f"statepipe cannot see which process has {path} open: {find}"


def _parent(pid: int) -> int:
    """Return the parent of a process. Raises OSError."""
    return int(read_text(f"/proc/{pid}/stat", "replace").rpartition(")")[2].split()[1])


def _holders(path: str, but: int) -> Iterator[tuple[int, str]]:
    """Yield the processes other than `but` and our children that have the file open, each also as `qemu-system-x86_64
    (process 123)`, as far as we may look."""
    try:
        wanted = os.stat(path)
    except (OSError, ValueError):
        return
    for pid in sorted({int(name) for name in os.listdir("/proc") if name.isdecimal()} - {but}):
        with suppress(OSError):  # it has ended, or we may not look
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), wanted):
                        if _parent(pid) == os.getpid():  # a QEMU that was started for this load
                            break
                        name = read_text(f"/proc/{pid}/comm", "replace").strip()
                        yield pid, f"{name} (process {pid})"
                        break
