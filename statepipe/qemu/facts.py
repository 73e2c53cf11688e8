"""What a migration depends on, on one host: its QEMU, the guest's CPU and command line, its disks, the host itself.

Both hosts gather the same facts, each of its own QEMU, and send them across as JSON; compare.py sets them side by
side. Nothing is changed by asking.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from statepipe.errors import QemuError
from statepipe.formats.hardware import CPU, CPUS, DEVICES
from statepipe.processes import Unavailable, output_of
from statepipe.qemu.guest import describe_guest
from statepipe.qemu.hardware import hardware
from statepipe.qemu.images import images
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.places import PLACES, seen
from statepipe.qemu.process import inspect_process, qemu_under
from statepipe.qemu.shared import DISK, disk_facts
from statepipe.qemu.view import View
from statepipe.shapes import (
    Misshapen,
    check,
    fields,
    flag,
    like,
    many,
    maybe,
    number,
    parse,
    table,
    text,
    told,
    whole,
)

Facts = dict[str, Any]

Own = tuple[Sequence[str], list[Facts]]
"""The command line of a QEMU that we start, and what there was of its places before (places.py)."""

DISKS = 256
"""The most of one guest: QEMU's PCI bus has 32 slots, and bridges are rare."""

_NAME, _LINE, _PATH = text(64), text(1000), text(4096)

GUEST = fields(
    {
        "qemu": like(r"[0-9]{1,5}(\.[0-9]{1,5}){0,4}( .{0,256})?", "a version of QEMU's"),
        "machine": text(256),
        "ram": whole(),
    },
    optional={"name": maybe(text(1000)), "uuid": maybe(_NAME)},
)

FACTS = fields(
    {
        "host": text(256),
        "guest": GUEST,
        "arch": _NAME,
        "accelerator": _NAME,
        "cpu": CPU,
        "command": maybe(many(text(64 << 10), most=4096)),
        "capabilities": many(_NAME, most=256),
        "blocked": many(_LINE, most=256),
        "disks": many(DISK, most=DISKS),
        "temporary": flag,
        "machine": _NAME,
        "memory_free": maybe(whole()),
        "clock": number,
        "clocksource": maybe(_NAME),
        "taps": table(many(_NAME, most=256), most=256, names=_NAME),
    },
    optional={"tsc_scales": maybe(flag), "cpus": CPUS, "devices": DEVICES, "places": PLACES},
)
"""What both hosts hold the facts against, their own and those that come from the other: compare.py reads no others."""

KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL = 0xAE03, 60
"""Documentation/virt/kvm/api.rst: whether the processor can give a guest a TSC of another frequency than its own."""


def gather(monitor: Monitor, disks: Iterable[str] | None = None, own: Own | None = None) -> Facts:
    """The facts of the QEMU behind `monitor` and of this host, ready for JSON. Raises QemuError.

    `own` is what is known of one that was started here by us.

    `disks` are the paths to look at, as the source named them; without them, those that this QEMU has open. Of no
    other is anything told: whoever may send a guest here may neither have every file opened, nor get an answer that
    grows with what was asked.
    """
    command, its = own or _of_process(qemu_under(monitor.pid))
    facts = {
        "host": platform.node(),
        "guest": describe_guest(monitor),
        "arch": monitor.execute("query-target")["arch"],
        **hardware(monitor),
        "command": command,
        "capabilities": sorted(row["capability"] for row in monitor.execute("query-migrate-capabilities")),
        "blocked": monitor.migration().get("blocked-reasons", []),
        "disks": disk_facts(images(monitor), disks),
        "places": its,
        "temporary": _has_temporary_disks(command or []),
        **host_facts(command or []),
    }
    try:
        return check(facts, FACTS)  # type: ignore[no-any-return]
    except Misshapen as error:
        raise QemuError(f"what QEMU tells of its guest is not understood: {told(error)}") from error


def _of_process(pid: int) -> tuple[list[str] | None, list[Facts]]:
    """The command line of a QEMU that runs, and its places."""
    process = inspect_process(pid)
    if process is None:
        return None, []
    return list(process.command), seen(process.command, View(pid), process.folder, held=True)


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
    """The interfaces' names; what no interface can be called is left out, as it would lead to other files."""
    found = (re.search(r"\btap\b.*\bifname=([^,/\s]{1,15})(,|$)", word) for word in command)
    return sorted({match[1] for match in found if match and match[1] not in (".", "..")})


_ROUTES = many(fields({"dst": _NAME}), most=10_000)
"""ip-route(8), with -json."""

ROUTES_TIME = 10.0
"""Seconds for ip to answer: it asks the kernel, which takes a millisecond."""


def _subnets(tap: str) -> list[str]:
    """The IPv4 and IPv6 networks of the bridge that a tap is on, or of the tap itself."""
    master = Path(f"/sys/class/net/{tap}/master")
    name = master.resolve().name if master.exists() else tap
    try:
        status, written = output_of(["ip", "-json", "route", "show", "dev", name], ROUTES_TIME)
        rows = parse(written or b"[]", _ROUTES) if not status else []
    except (Unavailable, Misshapen):  # there is no ip, or another than iproute2's: what it knows is not known here
        rows = []
    return sorted(row["dst"] for row in rows if row["dst"] != "default")[:256]
