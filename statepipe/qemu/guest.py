"""What a running QEMU says of its guest: who it is, what it is made of, where its disks are."""

from __future__ import annotations

import os
from typing import Any

from statepipe.errors import QemuError
from statepipe.qemu.answers import file_name
from statepipe.qemu.monitor import Monitor
from statepipe.shapes import Misshapen


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


def image_paths(monitor: Monitor) -> list[str]:
    """The files and devices behind every block node, backing files included. Raises QemuError."""
    nodes = monitor.execute("query-named-block-nodes")
    files = {node["file"] for node in nodes if node["drv"] in ("file", "host_device")}
    try:
        return sorted(os.path.join(_folder(monitor.pid), file_name(file)) for file in files)
    except Misshapen as error:
        raise QemuError(f"what QEMU at {monitor.place} says of its disks is not understood: {error}") from error


def _folder(pid: int) -> str:
    """What QEMU's relative paths are relative to; ours, if we may not look at it."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return os.getcwd()
