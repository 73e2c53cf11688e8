"""A guest of 512 MB that is saved to a file and ended: `statepipe save`, alone and through libvirt, and `virsh save`.

libvirt 9 packs with gzip, bzip2, xz or lzop, or not at all, and a newer one with zstd, too; statepipe's default is
zstd. virsh speaks to a libvirtd of the bench's own (tests/libvirt/harness.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.measure import Broken, spread
from tests.bench.pairs import Bench, statepipe
from tests.bench.table import Row
from tests.libvirt.harness import ROOT, Libvirt, missing, started
from tests.qemu.harness import Guest

MEMORY, FILL = 512, 300
"""MB of the guest, and of them those with random bytes; the others are zero."""

FORMATS = ("raw", "gzip")
"""What libvirt 9.0 is told to write (save_image_format in its qemu.conf)."""

NEWER_FORMATS = ("raw", "zstd")
"""The same for a newer libvirt, which a root can start."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Seconds by the clock until the command had ended, and bytes of its file."""

    seconds: float
    size: int


def virsh_save(bench: Bench) -> list[Row]:
    """Two rows for each format of libvirt's: time and size, theirs to ours."""
    if lacking := missing():
        return [Row("save of a running guest", "-", f"{lacking} is not installed")]
    rows = [row for form in FORMATS for row in _rows("running guest", bench.rounds, _ours, partial(_theirs, form))]
    for form in FORMATS:
        rows += _rows("domain", bench.rounds, _ours_by_libvirt, partial(_theirs, form))
    return rows + _newer_rows(bench.rounds)


def _newer_rows(rounds: int) -> list[Row]:
    """The same with a newer libvirt, whose image can be packed with zstd."""
    found = subprocess.run([ROOT / "tools" / "libvirt"], capture_output=True, text=True) if os.geteuid() == 0 else None
    if found is None or found.returncode:
        return [Row("save of a domain, libvirt 12", "-", "only root can start it")]
    newer = {"mode": "system", "libvirtd": found.stdout.strip()}
    ours = partial(_ours_by_libvirt, **newer)
    each = [_rows("domain, libvirt 12", rounds, ours, partial(_theirs, form, **newer)) for form in NEWER_FORMATS]
    return [row for rows in each for row in rows]


def _rows(of: str, rounds: int, ours: Callable[[], Saved], peer: partial[Saved]) -> list[Row]:
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(ours())
        theirs.append(peer())
    what, name = f"save of a {of}", f"virsh save, {peer.args[0]}"
    return [
        Row(
            f"{what}: time",
            _seconds(mine),
            f"{name}: {_seconds(theirs)}",
            median(each.seconds for each in theirs) / median(each.seconds for each in mine),
            runs={"ours": mine, "peer": theirs},
        ),
        Row(f"{what}: size", _size(mine), f"{name}: {_size(theirs)}", mine[-1].size / theirs[-1].size),
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


def _theirs(form: str, mode: str = "session", **more: Any) -> Saved:
    with started(mode, {"save_image_format": form}, **more) as libvirt:
        return _saved(libvirt, "virsh", "-q", "save", "bench")


def _ours_by_libvirt(mode: str = "session", **more: Any) -> Saved:
    with started(mode, **more) as libvirt:
        return _saved(libvirt, *statepipe("save", "--domain", "bench"))


def _saved(libvirt: Libvirt, *command: str) -> Saved:
    libvirt.domain("bench", memory=MEMORY, fill=FILL, dirty=0)
    file = libvirt.place("states") / "state"
    return _timed(libvirt.command(*command), file, env=libvirt.environment)
