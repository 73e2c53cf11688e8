"""A Linux guest: Debian's kernel, and busybox as its first program, which proves that memory and time went on.

At boot it fills FILL MB of a tmpfs with random bytes. Then it prints `TICK <n> SUM <md5>`, as tests/guest.py does, with
the first 8 hex digits of the MD5 of those bytes. A line that arrives on its serial port is answered at once, like a
request to a service, with `HEARD line`. Unlike the guest of our own it has page tables, a scheduler, files and drivers,
so its memory is touched in an order like that of a real one.

Measured with QEMU 7.2 and TCG: 12 s from its start to the first tick, beside other tests.
"""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FIRST_PROGRAM = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t tmpfs -o size=90% tmp /tmp
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
fill=$(sed -n 's/.*fill=\\([0-9]*\\).*/\\1/p' /proc/cmdline)
head -c $((fill << 20)) /dev/urandom >/tmp/fill
n=0
while :; do
    n=$((n + 1))
    set -- $(md5sum </tmp/fill | tr a-f A-F)
    printf 'TICK %08X SUM %.8s\\n' $n $1
    if read -t 1 line; then echo "HEARD $line"; fi
done
"""


INITRAMFS = "initramfs.gz"
"""The name of the guest's first files."""


class Missing(Exception):
    """The reason why there is no Linux to be had."""


@cache
def linux() -> Path:
    """The folder with `vmlinuz` and `busybox`, fetched once by tools/linux. Raises Missing."""
    done = subprocess.run([ROOT / "tools" / "linux"], capture_output=True, text=True)
    if done.returncode:
        raise Missing(done.stderr.strip().splitlines()[-1])
    return Path(done.stdout.strip())


def linux_arguments(folder: Path, fill: int = 8) -> list[str]:
    """QEMU's arguments for the guest. Its initramfs is written to `folder`. Raises Missing."""
    parts = linux()
    initramfs = folder / INITRAMFS
    if not initramfs.exists():
        initramfs.write_bytes(gzip.compress(_initramfs((parts / "busybox").read_bytes()), 1))
    append = f"console=ttyS0 quiet mitigations=off fill={fill}"
    return ["-kernel", str(parts / "vmlinuz"), "-initrd", str(initramfs), "-append", append]


def add_files(folder: Path, files: Iterable[Path]) -> None:
    """Give a guest that has not been started yet copies of more files, in its memory; `folder` has its initramfs."""
    with (folder / INITRAMFS).open("ab") as initramfs:  # archives may follow each other, packed or not
        initramfs.write(b"\0" * (-initramfs.tell() % 4))
        for number, path in enumerate(files):
            initramfs.write(_member(f"file{number}", 0o100644, path.read_bytes()))
        initramfs.write(_member("TRAILER!!!", 0))


def _initramfs(busybox: bytes) -> bytes:
    """A cpio archive in the format "newc" (Linux Documentation/driver-api/early-userspace/buffer-format.rst)."""
    folders = [_member(name, 0o40755) for name in ("bin", "proc", "dev", "tmp")]
    numbers = {"console": (5, 1), "ttyS0": (4, 64), "null": (1, 3), "urandom": (1, 9)}
    devices = [_member(f"dev/{name}", 0o20600, device=number) for name, number in numbers.items()]
    files = [_member("bin/busybox", 0o100755, busybox), _member("init", 0o100755, FIRST_PROGRAM.encode())]
    return b"".join([*folders, *devices, *files, _member("TRAILER!!!", 0)])


def _member(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + "".join(f"{number:08x}" for number in numbers).encode() + path
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
