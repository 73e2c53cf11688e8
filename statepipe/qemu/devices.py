"""The devices of a QEMU's guest, and where on its buses the guest sees each.

A device's id and QEMU's own path to it are words of the command line, and differ between versions; its bus and its
address there are what the guest goes by, and what QEMU's migration stream names it by.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any

from statepipe.errors import QemuRefused

if TYPE_CHECKING:  # asyncio takes 60 ms, which a filter need not pay
    from statepipe.qemu.monitor import Monitor

_ADDRESSES = ("legacy-addr", "unit", "scsi-id", "devno", "port", "nsid")
"""The property that tells a device from others on its bus: PCI, IDE, SCSI, s390's channels, USB, NVMe."""

_WITHOUT_ADDRESS = ("isa.", "i2c", "sysbus", "main-system-bus")


def ask(monitor: Monitor, command: str, **arguments: object) -> Any:
    """What the command returns; None if QEMU refuses it, as one that does not know it. Raises QemuError."""
    try:
        return monitor.execute(command, **arguments)
    except QemuRefused:
        return None


def place(monitor: Monitor, path: str) -> str:
    """Where the guest sees the device at this path of QEMU's, as `pci.0 02.0`; the path itself where no bus tells.

    Raises QemuError.
    """
    bus = ask(monitor, "qom-get", path=path, property="parent_bus")
    if not bus:
        return path
    owner, _, name = str(bus).rpartition("/")
    if name in ("sysbus", "main-system-bus") and "[" not in path:  # of the board, as one of two flashes: by its name
        return path
    if name == "virtio-bus":  # half of a virtio device, whose other half is what is plugged in
        return place(monitor, owner)
    return " ".join([name, *_address(monitor, path, name)])


def _address(monitor: Monitor, path: str, bus: str) -> Iterator[str]:
    if bus.startswith(_WITHOUT_ADDRESS):
        return
    for name in _ADDRESSES:
        value = ask(monitor, "qom-get", path=path, property=name)
        if value not in (None, ""):
            yield str(value)
            if name == "scsi-id":
                yield from (str(ask(monitor, "qom-get", path=path, property=more)) for more in ("channel", "lun"))
            return


_CHOSEN = ("isa-serial", "isa-parallel", "ide-hd", "ide-cd", "floppy")
"""Devices that options as -serial and -drive add, where QEMU keeps those of the board too."""


def plugged(monitor: Monitor) -> list[str]:
    """What is plugged into the guest's machine, as `virtio-rng-pci at pci.0 02.0`, sorted. Raises QemuError.

    Those of the board itself are told by the machine's type, and versions of QEMU sort them in otherwise.
    """
    found, taken = [], set()
    for folder, kinds in (("peripheral", ("",)), ("peripheral-anon", ("",)), ("unattached", _CHOSEN)):
        for row in ask(monitor, "qom-list", path=f"/machine/{folder}") or []:
            kind = row["type"].removeprefix("child<").rstrip(">")
            if row["type"].startswith("child<") and kind.startswith(kinds):
                where = place(monitor, f"/machine/{folder}/{row['name']}")
                taken.add(where.partition(" ")[2] if where.startswith(("pci.0 ", "pcie.0 ")) else "")
                found.append(kind if where.startswith("/") else f"{kind} at {where}")
    return sorted([*found, *_cards(monitor, taken)])


def _cards(monitor: Monitor, known: Container[str]) -> Iterator[str]:
    """What is on the first PCI bus beside those, as a network card that -nic has added."""
    for bus in ask(monitor, "query-pci") or []:
        for card in bus["devices"] if bus["bus"] == 0 else []:
            where = f"{card['slot']:02x}.{card['function']:x}"
            if where not in known:
                yield f"PCI {card['id']['vendor']:04x}:{card['id']['device']:04x} at {where}"
