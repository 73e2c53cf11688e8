"""What a running QEMU says of its guest: who it is, what it is made of."""

from __future__ import annotations

from typing import Any

from statepipe.errors import QemuError
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.runstates import SUSPENDED


def describe_guest(monitor: Monitor) -> dict[str, Any]:
    """Name, UUID, machine type, QEMU version and RAM (bytes), as JSON. Raises QemuError."""
    version = monitor.execute("query-version")
    memory = monitor.execute("query-memory-size-summary")
    return {
        "name": monitor.execute("query-name").get("name"),
        "uuid": _given(monitor.execute("query-uuid")["UUID"]),
        "machine": str(monitor.execute("qom-get", path="/machine", property="type")).removesuffix("-machine"),
        "qemu": "{major}.{minor}.{micro} ".format(**version["qemu"]) + f"({version['package']})",
        "ram": memory["base-memory"] + memory.get("plugged-memory", 0),
    }


def demand_cont(monitor: Monitor, was: str) -> None:
    """Raises QemuError where `cont` after a migration would end QEMU, as from 9.0 on of a guest that `was` suspended:
    "invalid runstate transition: 'postmigrate' -> 'suspended'", and it aborts."""
    if was == SUSPENDED and monitor.execute("query-version")["qemu"]["major"] >= 9:
        what = "this QEMU would end if it were to let a guest go on that was suspended before it was saved or sent"
        raise QemuError(what, hint="wake it first (system_wakeup at QEMU's monitor), or load it elsewhere")


def _given(uuid: str) -> str | None:
    """A guest started without -uuid has all zeros."""
    return uuid if uuid.strip("0-") else None
