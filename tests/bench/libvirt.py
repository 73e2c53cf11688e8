"""A guest of 512 MB that is saved to a file and ended: `statepipe save --then quit` beside `virsh save`.

libvirt 9 packs with gzip, bzip2, xz or lzop, or not at all; statepipe's default is zstd. virsh speaks to a libvirtd of
the bench's own (tests/libvirt/harness.py).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.measure import Broken, spread
from tests.bench.pairs import Bench, statepipe
from tests.bench.table import Row
from tests.libvirt.harness import missing, started
from tests.qemu.harness import Guest

MEMORY, FILL = 512, 300
"""MB of the guest, and of them those with random bytes; the others are zero."""

FORMATS = ("raw", "gzip")
"""What libvirt is told to write (save_image_format in its qemu.conf)."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Seconds by the clock until the command had ended, and bytes of its file."""

    seconds: float
    size: int


def virsh_save(bench: Bench) -> list[Row]:
    """Two rows for each format of libvirt's: time and size, theirs to ours."""
    if lacking := missing():
        return [Row("save of a running guest", "-", f"{lacking} is not installed")]
    return [row for form in FORMATS for row in _rows(bench.rounds, form)]


def _rows(rounds: int, form: str) -> list[Row]:
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(_ours())
        theirs.append(_by_libvirt(form))
    what, peer = "save of a running guest", f"virsh save, {form}"
    return [
        Row(
            f"{what}: time",
            _seconds(mine),
            f"{peer}: {_seconds(theirs)}",
            median(each.seconds for each in theirs) / median(each.seconds for each in mine),
            runs={"ours": mine, "peer": theirs},
        ),
        Row(f"{what}: size", _size(mine), f"{peer}: {_size(theirs)}", mine[-1].size / theirs[-1].size),
    ]


def _seconds(runs: list[Saved]) -> str:
    times = [run.seconds for run in runs]
    return f"{median(times):.2f} s ±{spread(times):.0%}"


def _size(runs: list[Saved]) -> str:
    return f"{runs[-1].size / 1e6:.0f} MB"


def _ours() -> Saved:
    qemu = shutil.which("qemu-system-x86_64") or ""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statepipe-bench-")))
        guest = stack.enter_context(Guest(folder, qemu=qemu, memory=MEMORY, fill=FILL, dirty=0))
        guest.wait_ticks(2)
        return _timed([*statepipe("save", "--qmp", guest.socket, "--then", "quit")], folder / "state")


def _timed(command: list[str], file: Path, **more: object) -> Saved:
    start = time.perf_counter()
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, **more)  # type: ignore[call-overload]
    seconds = time.perf_counter() - start
    if done.returncode:
        raise Broken(f"'{' '.join(command)}' ended with {done.returncode}: {done.stderr.strip()}")
    return Saved(seconds, file.stat().st_size)


def _by_libvirt(form: str) -> Saved:
    with started("session", {"save_image_format": form}) as libvirt:
        libvirt.domain("bench", memory=MEMORY, fill=FILL, dirty=0)
        file = libvirt.place("states") / "state"
        return _timed(libvirt.command("virsh", "-q", "save", "bench"), file, env=libvirt.environment)
