"""The devices of a QEMU's guest, and where on its buses the guest sees each.

A device's id and its path in QEMU come from the command line and differ between versions of QEMU. The guest, and QEMU's
migration stream, identify a device by its bus and its address there.
"""

from __future__ import annotations

from statepipe.errors import QemuRefused
from statepipe.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:  # asyncio takes 60 ms, which a filter need not pay
    from statepipe.qemu.monitor import Monitor

_ADDRESSES = ("addr", "unit", "scsi-id", "devno", "port", "nsid")
"""The property with a device's address on its bus: PCI, IDE, SCSI, s390's channels, USB, NVMe."""

_WITHOUT_ADDRESS = ("isa.", "i2c", "sysbus", "main-system-bus")


def ask(monitor: Monitor, command: str, **arguments: object) -> Any:
    """Return the command's answer, or None if QEMU refuses it, perhaps as unknown. Raises QemuError."""
    try:
        return monitor.execute(command, **arguments)
    except QemuRefused:
        return None


def place(monitor: Monitor, path: str) -> str:
    """Return where the guest sees the device at this path of QEMU's, as `pci.0 02.0`; the path itself for a device
    without an address.

    Raises QemuError.
    """
    bus = ask(monitor, "qom-get", path=path, property="parent_bus")
    if not bus:
        return path
    owner, _, name = str(bus).rpartition("/")
    if name in ("sysbus", "main-system-bus") and "[" not in path:  # on the board, such as one of two flashes: by name
        return path
    if name == "virtio-bus":  # half of a virtio device; the other half is plugged in
        return place(monitor, owner)
    words = [name]
    for key in () if name.startswith(_WITHOUT_ADDRESS) else _ADDRESSES:
        value = ask(monitor, "qom-get", path=path, property=key)
        if value not in (None, ""):
            more = ("channel", "lun") if key == "scsi-id" else ()
            words += [
                _slot(value) if key == "addr" else str(value),
                *(str(ask(monitor, "qom-get", path=path, property=each)) for each in more),
            ]
            break
    return " ".join(words)


def _slot(number: object) -> str:
    """Return the slot and function of a PCI device as `02.0`. QEMU itself wrote it so until 10 (`legacy-addr`)."""
    return f"{number >> 3:02x}.{number & 7:x}" if isinstance(number, int) else str(number)


_CHOSEN = ("isa-serial", "isa-parallel", "ide-hd", "ide-cd", "floppy")
"""Devices that options such as -serial and -drive add, but that QEMU keeps among those of the board."""


def plugged(monitor: Monitor) -> list[str]:
    """Return the devices that are plugged into the guest's machine, as `virtio-rng-pci at pci.0 02.0`, sorted.

    Those of the board follow from the machine type, and each version of QEMU sorts them differently. Cards on the first
    PCI bus that QEMU does not list among its devices, such as a network card from -nic, are added by their PCI id.
    Raises QemuError.
    """
    found, known = [], set()
    for folder, kinds in (("peripheral", ("",)), ("peripheral-anon", ("",)), ("unattached", _CHOSEN)):
        for row in ask(monitor, "qom-list", path=f"/machine/{folder}") or []:
            kind = row["type"].removeprefix("child<").rstrip(">")
            if row["type"].startswith("child<") and kind.startswith(kinds):
                where = place(monitor, f"/machine/{folder}/{row['name']}")
                known.add(where.partition(" ")[2] if where.startswith(("pci.0 ", "pcie.0 ")) else "")
                found.append(kind if where.startswith("/") else f"{kind} at {where}")
    for bus in ask(monitor, "query-pci") or []:
        for card in bus["devices"] if bus["bus"] == 0 else []:
            where = f"{card['slot']:02x}.{card['function']:x}"
            if where not in known:
                found.append(f"PCI {card['id']['vendor']:04x}:{card['id']['device']:04x} at {where}")
    return sorted(found)
