"""Who has a disk open that a QEMU could not lock: what to say beside QEMU's own words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

_LOCK = re.compile(r'Failed to get (?:shared )?"[^"]+" lock')
_IMAGE = re.compile(r"using the image \[(.+?)\]\?")
"""block/file-posix.c; the second only on its standard error."""

SHOWN = 3
"""Processes that are named at the most."""


def lock_hint(words: str, files: Sequence[str] = (), but: int = 0) -> str | None:
    """Return what to do if QEMU's words say that it could not lock a disk; None for any other words.

    QEMU's monitor does not say which disk: then `files` are looked at, the disks that this QEMU, process `but`, writes.
    """
    if not _LOCK.search(words):
        return None
    image = _IMAGE.search(words)
    for path in [image[1]] if image else files:
        if who := list(_holders(path, but)):
            return f"{path} is open in {', '.join(who[:SHOWN])}: end that first, if it runs the guest"
    if image is None:
        return "another process has a disk of this guest's open: end the QEMU that runs it; lslocks names processes"
    path = image[1]
    return f"who has {path} open is not to be seen from here: look on the other hosts, and as root: fuser -v {path}"


def _holders(path: str, but: int) -> Iterator[str]:
    """The other processes than `but` that have a file open, and may be looked at, as `qemu-system-x86_64 (process
    123)`."""
    try:
        wanted = os.stat(path)
    except (OSError, ValueError):
        return
    for pid in sorted({int(name) for name in os.listdir("/proc") if name.isdecimal()} - {but}):
        with suppress(OSError):  # it has ended, or is not ours to look at
            if any(_is_same(f"/proc/{pid}/fd/{fd}", wanted) for fd in os.listdir(f"/proc/{pid}/fd")):
                name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
                yield f"{name} (process {pid})"


def _is_same(path: str, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), wanted)
    except OSError:
        return False
