"""A guest of 512 MB that is saved to a file and ended, and restored: by statepipe, also through libvirt, and by virsh.

libvirt 9 packs with gzip, bzip2, xz or lzop, or not at all, and a newer one with zstd, too; statepipe's default is
zstd. virsh speaks to a libvirtd of the bench's own (tests/libvirt/harness.py). In a memory of random bytes nothing can
be packed; that of the Linux guest holds a host's programs and libraries.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.measure import Broken, spread
from tests.bench.pairs import Bench, statepipe
from tests.bench.table import Row
from tests.libvirt.harness import ROOT, Domain, Libvirt, missing, started
from tests.linux import Missing, add_files, linux
from tests.qemu.harness import Guest

MEMORY, FILL = 512, 300
"""MB of the guest, and of them those with random bytes; the others are zero."""

PROGRAMS = 140 << 20
"""Bytes of files in the Linux guest: its memory holds them twice, as files and as what it booted from."""

FORMATS = ("raw", "gzip")
"""What libvirt 9.0 is told to write (save_image_format in its qemu.conf)."""

NEWER_FORMATS = ("raw", "zstd")
"""The same for a newer libvirt, which a root can start."""


@dataclass(frozen=True, slots=True)
class Done:
    """Seconds by the clock until the command had ended, and bytes of its file."""

    seconds: float
    size: int


def virsh_save(bench: Bench) -> list[Row]:
    """Rows for each format of libvirt's: time of the save, size, and time of the restore, theirs to ours."""
    if lacking := missing():
        return [Row("save of a running guest", "-", f"{lacking} is not installed")]
    rows = []
    for form in FORMATS:
        mine, theirs = [], []
        for _ in range(bench.rounds):
            mine.append(_by_monitor())
            with started("session", {"save_image_format": form}) as libvirt:
                theirs.append(_Side(libvirt, _random(libvirt), "virsh").save())
        rows += _compared("save of a running guest", mine, f"virsh save, {form}", theirs, with_size=True)
    return rows + _domains("domain", FORMATS, bench.rounds, mode="session") + _newer_rows(bench.rounds)


def _newer_rows(rounds: int) -> list[Row]:
    """The same with a newer libvirt, whose image can be packed with zstd."""
    found = subprocess.run([ROOT / "tools" / "libvirt"], capture_output=True, text=True) if os.geteuid() == 0 else None
    if found is None or found.returncode:
        return [Row("save of a domain, libvirt 12", "-", "only root can start it")]
    return _domains("domain, libvirt 12", NEWER_FORMATS, rounds, mode="system", libvirtd=found.stdout.strip())


def _domains(of: str, forms: tuple[str, ...], rounds: int, **libvirtd: str) -> list[Row]:
    """The rows of a domain with random memory for each format, and of a Linux domain for the last one."""
    rows = [row for form in forms for row in _domain(of, _random, form, rounds, libvirtd)]
    try:
        return rows + _domain(f"Linux {of}", _linux, forms[-1], rounds, libvirtd)
    except Missing as missing:
        return [*rows, Row(f"save of a Linux {of}", "-", str(missing))]


def _domain(of: str, make: Callable[[Libvirt], Domain], form: str, rounds: int, libvirtd: dict[str, Any]) -> list[Row]:
    """Three rows for one format. Of the two guests only that which is measured runs."""
    with ExitStack() as opened:
        sides = []
        for tool, settings in (("statepipe", {}), ("virsh", {"save_image_format": form})):
            libvirt = opened.enter_context(started(settings=settings, **libvirtd))
            sides.append(_Side(libvirt, make(libvirt), tool))
            sides[-1].save()
        restored: tuple[list[Done], list[Done]] = [], []
        saved: tuple[list[Done], list[Done]] = [], []
        for _ in range(rounds):
            for side, its_restored, its_saved in zip(sides, restored, saved, strict=True):
                its_restored.append(side.restore())
                its_saved.append(side.save())
    rows = _compared(f"save of a {of}", saved[0], f"virsh save, {form}", saved[1], with_size=True)
    return rows + _compared(f"restore of a {of}", restored[0], f"virsh restore, {form}", restored[1], with_size=False)


class _Side:
    """A domain that one of the two tools saves into a file and restores from it."""

    def __init__(self, libvirt: Libvirt, domain: Domain, tool: str) -> None:
        self._libvirt = libvirt
        self._file = libvirt.place("states") / "state"
        if tool == "statepipe":
            self._words = statepipe("save", "--domain", domain.name), statepipe("load", "--domain")
        else:
            self._words = ("virsh", "-q", "save", domain.name), ("virsh", "-q", "restore")

    def save(self) -> Done:
        """Save it into a new file."""
        self._file.unlink(missing_ok=True)
        return self._run(self._words[0])

    def restore(self) -> Done:
        """Restore it, and keep the file."""
        return self._run(self._words[1])

    def _run(self, words: Sequence[str]) -> Done:
        return _timed(self._libvirt.command(*words, self._file), self._file, env=self._libvirt.environment)


def _random(libvirt: Libvirt) -> Domain:
    """A domain that runs, with memory that nothing can pack."""
    return libvirt.domain("bench", memory=MEMORY, fill=FILL, dirty=0)


def _linux(libvirt: Libvirt) -> Domain:
    """A Linux domain that runs, with programs and libraries in its memory. Raises Missing."""
    domain = Domain(libvirt, "bench", memory=MEMORY, fill=0, linux=True)
    add_files(domain.files, _programs())
    kernel = shutil.copy(linux() / "vmlinuz", domain.files)  # a newer libvirtd sees it only here
    domain.xml_path.write_text(domain.xml_path.read_text().replace(str(linux() / "vmlinuz"), str(kernel)))
    libvirt.virsh("define", domain.xml_path)
    libvirt.virsh("start", domain.name)
    domain.wait_ticks(2)
    return domain


def _programs() -> Iterator[Path]:
    """Programs and libraries of this host, PROGRAMS bytes of them."""
    left = PROGRAMS
    for path in sorted(chain(*(Path(folder).rglob("*") for folder in ("/usr/bin", "/usr/lib")))):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= left and os.access(path, os.R_OK):
            left -= status.st_size
            yield path


def _by_monitor() -> Done:
    """`statepipe save` of a guest that libvirt does not run."""
    qemu = shutil.which("qemu-system-x86_64") or ""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statepipe-bench-")))
        guest = stack.enter_context(Guest(folder, qemu=qemu, memory=MEMORY, fill=FILL, dirty=0))
        guest.wait_ticks(2)
        words = [*statepipe("save", "--qmp", guest.socket, "--then", "quit"), str(folder / "state")]
        return _timed(words, folder / "state")


def _timed(command: Sequence[str], file: Path, **more: Any) -> Done:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **more)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise Broken(f"'{' '.join(command)}' ended with {done.returncode}: {done.stderr.strip()}")
    return Done(seconds, file.stat().st_size)


def _compared(what: str, mine: list[Done], peer: str, theirs: list[Done], *, with_size: bool) -> list[Row]:
    """The row of the times, and that of the sizes if they are asked for."""
    ratio = median(each.seconds for each in theirs) / median(each.seconds for each in mine)
    runs = {"ours": mine, "peer": theirs}
    rows = [Row(f"{what}: time", _seconds(mine), f"{peer}: {_seconds(theirs)}", ratio, runs=runs)]
    if with_size:
        ratio = mine[-1].size / theirs[-1].size
        rows.append(Row(f"{what}: size", _size(mine), f"{peer}: {_size(theirs)}", ratio))
    return rows


def _seconds(runs: list[Done]) -> str:
    times = [run.seconds for run in runs]
    return f"{median(times):.2f} s ±{spread(times):.0%}"


def _size(runs: list[Done]) -> str:
    return f"{runs[-1].size / 1e6:.0f} MB"
