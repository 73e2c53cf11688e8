"""The facts about one host that a migration depends on: QEMU, the guest's CPU, command line and disks, the host itself.

Each host collects the facts of its own QEMU, which changes nothing, and they exchange them as JSON; compare.py compares
them.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from statepipe.errors import QemuError
from statepipe.formats.hardware import CPU, CPUS, DEVICES
from statepipe.processes import Unavailable, output_of
from statepipe.qemu.commandline import starts_qemu
from statepipe.qemu.guest import describe_guest, hardware
from statepipe.qemu.images import images
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.places import PLACES, seen
from statepipe.qemu.process import inspect_process, qemu_under
from statepipe.qemu.shared import DISK, disk_facts
from statepipe.qemu.view import View
from statepipe.shapes import Misshapen, check, fields, flag, like, many, maybe, number, parse, table, text, told, whole
from statepipe.typed import Any

Facts = dict[str, Any]

Own = tuple[Sequence[str], list[Facts]]
"""The command line of a QEMU that statepipe starts, and the state of its places before that (places.py)."""

DISKS = 256
"""Disks of one guest at most: QEMU's PCI bus has 32 slots, and bridges are rare."""

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
"""The shape of the facts, our own and the peer's: compare.py reads no other fields."""

KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL = 0xAE03, 60
"""Documentation/virt/kvm/api.rst: whether the processor can give a guest a TSC of another frequency than its own."""


def gather(monitor: Monitor, disks: Iterable[str] | None = None, own: Own | None = None) -> Facts:
    """Return the facts of the QEMU behind `monitor` and of this host, as JSON. Raises QemuError.

    `own` is given for a QEMU that statepipe started. `disks` are the paths that the source named; without them, all
    that this QEMU has open. Nothing is reported about other files: a peer must not make us open files of its choice, or
    get an answer that grows with its question.
    """
    command: list[str] | None = None
    its: list[Facts] = [] if own is None else own[1]
    if own is not None and starts_qemu(own[0]):
        command = list(own[0])
    elif (process := inspect_process(pid := qemu_under(monitor.pid))) is not None:  # perhaps below a wrapper
        command = list(process.command)
        if own is None:
            its = seen(command, View(pid), process.folder, held=True)
    unlinked = (word in ("-snapshot", "--snapshot") or re.search(r"\bsnapshot=on\b", word) for word in command or [])
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
        "temporary": any(unlinked),  # no other host can open the overlays
        **host_facts(command or []),
    }
    try:
        return check(facts, FACTS)  # type: ignore[no-any-return]
    except Misshapen as error:
        raise QemuError(f"unexpected facts about the guest from QEMU: {told(error)}") from error


def host_facts(command: Sequence[str]) -> Facts:
    """Return the facts of the host itself: memory (bytes), clock (seconds), the networks of its taps.

    `command` is QEMU's. A name in it that no interface can have is ignored, because it would lead to other files.
    """
    free = next(
        (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")), None
    )
    source = None
    with suppress(OSError):
        path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        source = path.read_text().partition("\n")[0]
    found = (re.search(r"\btap\b.*\bifname=([^,/\s]{1,15})(,|$)", word) for word in command)
    taps = sorted({match[1] for match in found if match and match[1] not in (".", "..")})
    return {
        "machine": platform.machine(),
        "memory_free": None if free is None else int(free.split()[1]) << 10,
        "clocksource": source,
        "tsc_scales": _scales_tsc(),
        "taps": {name: _subnets(name) for name in taps},
        "clock": time.time(),  # last: it is compared with the other host's when these facts arrive there
    }


def _scales_tsc() -> bool | None:
    """Return whether KVM can give a guest any TSC frequency; None if it cannot be asked."""
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


_ROUTES = many(fields({"dst": _NAME}), most=10_000)
"""ip-route(8), with -json."""

ROUTES_TIME = 10.0
"""Seconds to wait for ip: it asks the kernel, which takes a millisecond."""


def _subnets(tap: str) -> list[str]:
    """Return the IPv4 and IPv6 networks of the bridge that a tap is on, or of the tap itself."""
    master = Path(f"/sys/class/net/{tap}/master")
    name = master.resolve().name if master.exists() else tap
    try:
        status, written = output_of(["ip", "-json", "route", "show", "dev", name], ROUTES_TIME)
        rows = parse(written or b"[]", _ROUTES) if not status else []
    except (Unavailable, Misshapen):  # there is no ip, or one that is not iproute2's
        rows = []
    return sorted(row["dst"] for row in rows if row["dst"] != "default")[:256]
