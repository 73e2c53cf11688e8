"""The devices of a QEMU's guest, and where on its buses the guest sees each.

A device's id and QEMU's own path to it are words of the command line, and differ between versions; its bus and its
address there are what the guest goes by, and what QEMU's migration stream names it by.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from statepipe.errors import QemuError, QemuGone, QemuSilent

if TYPE_CHECKING:  # asyncio takes 60 ms, which a filter need not pay
    from statepipe.qemu.monitor import Monitor

_ADDRESSES = ("legacy-addr", "unit", "scsi-id", "devno", "port", "nsid")
"""The property that tells a device from others on its bus: PCI, IDE, SCSI, s390's channels, USB, NVMe."""

_WITHOUT_ADDRESS = ("isa.", "i2c", "sysbus", "main-system-bus")


def ask(monitor: Monitor, command: str, **arguments: object) -> Any:
    """What the command returns; None if QEMU refuses it, as one that does not know it. Raises QemuGone, QemuSilent."""
    try:
        return monitor.execute(command, **arguments)
    except (QemuGone, QemuSilent):
        raise
    except QemuError:
        return None


def place(monitor: Monitor, path: str) -> str:
    """Where the guest sees the device at this path of QEMU's, as `pci.0 02.0`; the path itself where no bus tells.

    Raises QemuGone, QemuSilent.
    """
    bus = ask(monitor, "qom-get", path=path, property="parent_bus")
    if not bus:
        return path
    owner, _, name = str(bus).rpartition("/")
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
