"""Find the QEMU process of a domain, and believe only what another user cannot forge.

Any user can start a program that is called qemu and has the domain's UUID on its command line. So the process of the
system's libvirt is the one in libvirt's pid file, which is root's. Its folder is root's as well, or, as libvirt 12 has
it, that of the user whose QEMU the process is: who has a QEMU in hand already can have it look as any other. Of a
user's libvirt, it is a process of that same user: whoever can start one may do all that we may. virsh does not tell the
process, and the monitor's socket leads to libvirt, which listened for QEMU. That the UUID is the domain's must hold as
well: a number in an old file can belong to another process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from xml.sax.saxutils import escape

from statepipe.processes import read_text
from statepipe.qemu.process import Running, inspect_process, is_qemu, owner

FOLDER = "/run/libvirt/qemu"
"""Where the system's libvirt keeps pid files (stateDir in libvirt's qemu_conf.c)."""

_QUOTES = {"'": "&apos;", '"': "&quot;"}


def qemu_of(uri: str, name: str, uuid: str) -> Running | None:
    """Return the QEMU process of a domain at the connection `uri`; None if it is not seen from here."""
    where = uri.partition("?")[0].partition(":")[2]
    found = {"///system": _of_system(name), "///session": _of_user(uuid)}.get(where, iter(()))
    for pid in found:
        if is_qemu(pid) and (running := inspect_process(pid)) is not None and running.option("-uuid") == uuid:
            return running
    return None


def _of_system(name: str) -> Iterator[int]:
    """Yield the process in libvirt's pid file, whose name is escaped as in XML (seen with 9.0)."""
    for file in dict.fromkeys((escape(name, _QUOTES), name)):
        with suppress(OSError, ValueError):  # there is none, or none that can be read
            path = os.path.join(FOLDER, f"{file}.pid")
            if _only_writer(path) == 0:
                pid = int(read_text(path))
                if _only_writer(FOLDER) in (0, owner(pid)):
                    yield pid


def _only_writer(path: str) -> int | None:
    """Return the owner of a file or a folder that no other user can write; None if others can. Raises OSError."""
    status = os.lstat(path)
    return None if status.st_mode & 0o022 or stat.S_ISLNK(status.st_mode) else status.st_uid


def _of_user(uuid: str) -> Iterator[int]:
    """Yield our user's processes that name this UUID."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended, or is not to be seen
            is_ours = is_qemu(int(name)) and owner(int(name)) == os.geteuid()
            if is_ours and uuid in read_text(f"/proc/{name}/cmdline", "replace"):
                yield int(name)
