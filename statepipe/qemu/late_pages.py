"""Whether a QEMU can run a guest before its memory is there (postcopy), and which setting keeps it from that.

QEMU itself asks the kernel for userfaultfd(2), which most hosts give to root alone. What it refuses in time, it says at
the capability; what QEMU 7.2 finds too late (memory in a file of a disk's file system), is looked for here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from statepipe.errors import QemuError, QemuRefused, StatepipeError
from statepipe.processes import lines_in, read_lines, read_text
from statepipe.qemu.commandline import starts_qemu
from statepipe.qemu.devices import ask
from statepipe.qemu.process import qemu_under
from statepipe.qemu.view import View

if TYPE_CHECKING:  # asyncio takes 60 ms, which a filter need not pay
    from statepipe.qemu.monitor import Monitor

MARK = "statepipe-state-"
"""The beginning of the name of an object that a lazy load leaves in QEMU; 32 hexadecimal digits of the state follow."""

CAP_SYS_PTRACE = 1 << 19
"""capabilities(7): whoever has it may have userfaultfd."""

ALLOWED = "/proc/sys/vm/unprivileged_userfaultfd"
DEVICE = "/dev/userfaultfd"

SETTING = (
    "as root: sysctl vm.unprivileged_userfaultfd=1; or, for QEMU 8.0 and later on Linux 6.1 and later, "
    "setfacl -m u:USER:rw /dev/userfaultfd with QEMU's user; in a container its seccomp profile must allow userfaultfd"
)
"""What to change where the kernel lets a QEMU have no userfaultfd."""

IN_MEMORY = ("tmpfs", "hugetlbfs")
"""File systems whose pages can be put in place one by one."""

WITHOUT = "load it without --lazy"

_VHOST = ("vhost-user-", "vhost-vdpa-")
_NETWORK = re.compile(r",type=(vhost-user|vhost-vdpa),")
_ELSEWHERE = "another process or the hardware serves, which cannot wait for memory"
"""QEMU 7.2 and 11.1 refuse neither, and tell a program of QEMU's own (qemu-storage-daemon) of memory that comes late in
a way that it does not understand: then the guest runs, and its disk is gone."""

_LINE = re.compile(r" *(\S.*?) +(\d+) (B|KiB|MiB|GiB) +0x[0-9a-f]+ +0x([0-9a-f]+) +0x[0-9a-f]+\b.*")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class NoLatePages(StatepipeError):
    """Memory cannot come late here. Nothing was started, or changed, or it is as it was before."""

    exit_code = QemuError.exit_code


def demand_userfaultfd(command: Sequence[str]) -> None:
    """Raises NoLatePages where a QEMU that `command` starts as our own user will have no userfaultfd."""
    if not starts_qemu(command) or _is_allowed() or os.access(DEVICE, os.R_OK | os.W_OK):
        return
    raise NoLatePages("the kernel lets this user have no userfaultfd, which lazy loading needs", hint=SETTING)


def _is_allowed() -> bool:
    """Whether the kernel lets us, as far as that can be read."""
    try:
        if read_text(ALLOWED).strip() != "0":
            return True
        rights = re.search(r"^CapEff:\s*([0-9a-f]+)", read_text("/proc/self/status", "replace"), re.MULTILINE)
    except OSError:
        return True
    return rights is None or bool(int(rights[1], 16) & CAP_SYS_PTRACE)


def demand_late_pages(monitor: Monitor) -> None:
    """Raises NoLatePages for what QEMU refuses too late: memory in files, and devices that know no postcopy."""
    view = View(qemu_under(monitor.pid))
    for row in ask(monitor, "qom-list", path="/objects") or []:
        if row["type"] == "child<memory-backend-file>":
            path = str(ask(monitor, "qom-get", path=f"/objects/{row['name']}", property="mem-path") or "")
            if (kind := _file_system(view, path)) not in IN_MEMORY:
                what = f"the guest's memory {row['name']!r} is a file on {kind or 'an unknown file system'}: {path}"
                raise NoLatePages(
                    what,
                    hint="lazy loading needs memory without a file, in a memfd, or in a file on tmpfs",
                )
    for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
        for row in ask(monitor, "qom-list", path=folder) or []:
            if (kind := row["type"].removeprefix("child<").removesuffix(">")).startswith("vfio-"):
                what = f"the guest has a device of the host ({kind}), which holds all of its memory"
                raise NoLatePages(what, hint=WITHOUT)
            if kind.startswith(_VHOST):
                raise NoLatePages(f"the guest has a device that {_ELSEWHERE} ({kind})", hint=WITHOUT)
    network = monitor.execute("human-monitor-command", command_line="info network")
    if found := _NETWORK.search(network):
        raise NoLatePages(f"the guest has a network that {_ELSEWHERE} ({found[1]})", hint=WITHOUT)


def _file_system(view: View, path: str) -> str | None:
    """Of what kind the one is that a file or a folder lies on; None where that cannot be told."""
    if (full := view.full(path)) is None:
        return None
    with suppress(OSError), view.place(full) as place:
        device = os.stat(place).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        for line in read_lines("/proc/self/mountinfo", "replace"):
            fields, _, kind = line.partition(" - ")
            if fields.split()[2] == number:
                return kind.split()[0]
    return None


def comes_late(monitor: Monitor) -> str | None:
    """Return the first digits of the state whose memory QEMU still lacks; "" if it lacks memory and no lazy load of
    ours began that; None if it does not lack any. Raises QemuError."""
    if not str(monitor.migration()["status"]).startswith("postcopy-"):
        return None
    names = (str(row["name"]) for row in monitor.execute("qom-list", path="/objects"))
    return next((name.removeprefix(MARK) for name in names if name.startswith(MARK)), "")


def page_sizes(monitor: Monitor) -> dict[str, int]:
    """The bytes of a page of each RAM block that a QEMU has: huge pages are placed as a whole. Raises QemuError."""
    text = monitor.execute("human-monitor-command", command_line="info ramblock")
    rows = (_LINE.fullmatch(line.rstrip()) for line in lines_in(text))
    return {row[1]: int(row[2]) * _UNITS[row[3]] for row in rows if row}


def refused(error: QemuRefused) -> NoLatePages:
    """What QEMU's refusal of the capability means."""
    hint = "its own message tells why; " if "serfault" not in str(error) else ""
    return NoLatePages(f"this QEMU takes no memory late: {error}", hint=hint + SETTING)
