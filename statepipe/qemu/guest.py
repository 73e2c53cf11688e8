"""What a running QEMU says of its guest: who it is, what it is made of."""

from __future__ import annotations

from typing import Any

from statepipe.qemu.monitor import Monitor


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


def _given(uuid: str) -> str | None:
    """A guest started without -uuid has all zeros."""
    return uuid if uuid.strip("0-") else None
