"""What others really say: of a bare QEMU 10 and its host, shortened."""

from __future__ import annotations

FACTS = {
    "host": "node1",
    "guest": {
        "name": "guest",
        "uuid": "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "machine": "pc-i440fx-7.2",
        "qemu": "10.0.2 (Debian 1:10.0.2)",
        "ram": 134217728,
    },
    "arch": "x86_64",
    "accelerator": "tcg",
    "cpu": {"type": "qemu64-x86_64-cpu", "features": {"0x1:EDX": 126614525}, "missing": {"0x7:EBX": 1}, "tsc": None},
    "command": ["qemu-system-x86_64", "-m", "128", "-serial", "none", "-drive", "file=/srv/disk.qcow2"],
    "capabilities": ["events", "late-block-activate", "pause-before-switchover", "return-path"],
    "blocked": [],
    "disks": [
        {
            "path": "/srv/disk.qcow2",
            "format": "qcow2",
            "size": 67108864,
            "inode": 131,
            "locked": True,
            "devices": ["pci.0 02.0"],
        },
        {"path": "/srv/other.raw", "unknown": "No such file or directory"},
        {"path": "nbd://node2/e", "driver": "nbd", "size": 9, "unknown": "nbd keeps it", "devices": ["pci.0 03.0"]},
    ],
    "cpus": ["core 1", "first"],
    "devices": ["virtio-blk-pci at pci.0 02.0"],
    "temporary": False,
    "machine": "x86_64",
    "memory_free": 8 << 30,
    "clock": 1700000000.5,
    "clocksource": "tsc",
    "tsc_scales": None,
    "taps": {"tap0": ["192.0.2.0/24"]},
}
"""qemu/facts.py, gather."""
