"""What a migration depends on, on one host: its QEMU, the guest's CPU and command line, its disks, the host itself.

Both hosts gather the same facts, each of its own QEMU, and send them across as JSON; compare.py sets them side by
side. Nothing is changed by asking.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import struct
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from statepipe.errors import QemuError
from statepipe.qemu.disks import fingerprint
from statepipe.qemu.guest import describe_guest, image_paths
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.process import inspect_process

Facts = dict[str, Any]

FIRST_LOCK, LOCKS = 100, 200
"""The bytes of an image that QEMU locks for what it may do with it (block/file-posix.c, RAW_LOCK_PERM_BASE)."""

KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL = 0xAE03, 60
"""Documentation/virt/kvm/api.rst: whether the processor can give a guest a TSC of another frequency than its own."""


def gather(monitor: Monitor, disks: Iterable[str] | None = None) -> Facts:
    """The facts of the QEMU behind `monitor` and of this host, ready for JSON. Raises QemuError.

    `disks` are the paths to look at, as the source named them; without them, those that this QEMU has open. Of no
    other is anything told: whoever may send a guest here may not have every file opened.
    """
    process = inspect_process(monitor.pid)
    command = list(process.command) if process else None
    its = image_paths(monitor)
    return {
        "host": platform.node(),
        "guest": describe_guest(monitor),
        "arch": monitor.execute("query-target")["arch"],
        "accelerator": "kvm" if monitor.execute("query-kvm")["enabled"] else "tcg",
        "cpu": _cpu(monitor),
        "command": command,
        "capabilities": sorted(row["capability"] for row in monitor.execute("query-migrate-capabilities")),
        "blocked": monitor.migration().get("blocked-reasons", []),
        "disks": _disks_facts(its if disks is None else disks, its),
        "temporary": _has_temporary_disks(command or []),
        **host_facts(command or []),
    }


def host_facts(command: Sequence[str]) -> Facts:
    """What the host itself brings: memory (bytes), clock (seconds), where its taps lead."""
    return {
        "machine": platform.machine(),
        "memory_free": _free_memory(),
        "clock": time.time(),
        "clocksource": _first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "tsc_scales": _scales_tsc(),
        "taps": {name: _subnets(name) for name in _taps(command)},
    }


def _cpu(monitor: Monitor) -> Facts:
    """The first CPU's type and CPUID bits: what the guest has, and what it was to have and this host lacks."""
    first = monitor.execute("query-cpus-fast")[0]["qom-path"]
    return {
        "type": monitor.execute("qom-get", path=first, property="type"),
        "features": _words(monitor, first, "feature-words"),
        "missing": _words(monitor, first, "filtered-features"),
        "tsc": _tsc(monitor, first),
    }


def _tsc(monitor: Monitor, path: str) -> int | None:
    """The guest's time stamp counter in Hz; None where QEMU tells none: TCG makes it of the host's clock."""
    try:
        return monitor.execute("qom-get", path=path, property="tsc-frequency") or None
    except QemuError:  # another processor than x86
        return None


def _words(monitor: Monitor, path: str, name: str) -> dict[str, int]:
    """`{"0x80000001:EDX": bits}`; nothing on other processors than x86."""
    try:
        rows = monitor.execute("qom-get", path=path, property=name)
    except QemuError:
        return {}
    return {
        f"{row['cpuid-input-eax']:#x}{'.' + str(leaf) if (leaf := row.get('cpuid-input-ecx', 0)) else ''}:"
        f"{row['cpuid-register']}": row["features"]
        for row in rows
        if row["features"]
    }


def _disks_facts(names: Iterable[str], its: Sequence[str]) -> list[Facts]:
    """Of each name; `its` are the images that this QEMU has, perhaps by other names (links, a relative path)."""
    real = {_real(path) for path in its}
    return [
        disk_facts(name) if _real(name) in real else {"path": name, "unknown": "this QEMU has no such disk"}
        for name in names
    ]


def _real(path: str) -> str | None:
    """Its name without links; None for what can be none, as with a NUL in it."""
    try:
        return os.path.realpath(path)
    except ValueError:
        return None


def disk_facts(path: str) -> Facts:
    """A disk's fingerprint (disks.py), and whether somebody, here or on another host, holds QEMU's locks on it."""
    return fingerprint(path) | {"locked": _is_locked(path)}


def _is_locked(path: str) -> bool | None:
    """None where it cannot be told."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, FIRST_LOCK, LOCKS, 0)
        kind: int = struct.unpack("hhqqi", fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))[0]
        return kind != fcntl.F_UNLCK
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(fd)


def _has_temporary_disks(command: Sequence[str]) -> bool:
    """Whether writes go to overlays in unlinked files, which no other host can open."""
    return any(word in ("-snapshot", "--snapshot") or re.search(r"\bsnapshot=on\b", word) for word in command)


def _scales_tsc() -> bool | None:
    """Whether KVM gives a guest any frequency; None where it cannot be asked."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return bool(fcntl.ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL))
    except OSError:
        return None
    finally:
        os.close(fd)


def _free_memory() -> int | None:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().partition("\n")[0]
    except OSError:
        return None


def _taps(command: Sequence[str]) -> list[str]:
    return sorted({found[1] for word in command if (found := re.search(r"\btap\b.*\bifname=([^,]+)", word))})


def _subnets(tap: str) -> list[str]:
    """The IPv4 and IPv6 networks of the bridge that a tap is on, or of the tap itself."""
    master = Path(f"/sys/class/net/{tap}/master")
    name = master.resolve().name if master.exists() else tap
    done = subprocess.run(["ip", "-json", "route", "show", "dev", name], capture_output=True, text=True)
    rows = json.loads(done.stdout or "[]") if not done.returncode else []
    return sorted(row["dst"] for row in rows if row["dst"] != "default")
