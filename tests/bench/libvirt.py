"""A guest of 512 MB that is saved to a file and ended: `statepipe save --then quit` beside `virsh save`.

libvirt 9 packs with gzip, bzip2, xz or lzop, or not at all; statepipe's default is zstd. virsh speaks to a libvirtd of
the bench's own in a folder of the bench's own (qemu:///session), which needs no root; root runs it as nobody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.measure import Broken, spread
from tests.bench.pairs import Bench, statepipe
from tests.bench.table import Row
from tests.guest import write_image
from tests.qemu.harness import Guest, wait_for

MEMORY, FILL = 512, 300
"""MB of the guest, and of them those with random bytes; the others are zero."""

FORMATS = ("raw", "gzip")
"""What libvirt is told to write (save_image_format in its qemu.conf)."""

PROGRAMS = ("libvirtd", "virsh", "qemu-system-x86_64")

DOMAIN = """<domain type='qemu'><name>bench</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><emulator>{qemu}</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{image}'/>
<target dev='hda' bus='ide'/></disk>
<serial type='file'><source path='{serial}'/><target port='0'/></serial>
</devices></domain>"""


@dataclass(frozen=True, slots=True)
class Saved:
    """Seconds by the clock until the command had ended, and bytes of its file."""

    seconds: float
    size: int


def virsh_save(bench: Bench) -> list[Row]:
    """Two rows for each format of libvirt's: time and size, theirs to ours."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
        return [Row("save of a running guest", "-", f"{missing[0]} is not installed")]
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
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statepipe-bench-")))
        as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        environment = stack.enter_context(_libvirtd(folder, form, as_user))

        def virsh(*words: str) -> list[str]:
            return ["virsh", "-q", "-c", "qemu:///session", *words]

        more = {"env": environment, **as_user}
        domain, serial = folder / "domain.xml", folder / "serial.txt"
        started = subprocess.run(virsh("create", str(domain)), capture_output=True, text=True, **more)  # type: ignore[call-overload]
        if started.returncode:
            raise Broken(f"virsh create: {started.stderr.strip()}")
        wait_for("second tick", lambda: serial.is_file() and serial.read_text().count("TICK") >= 2)
        return _timed(virsh("save", "bench"), folder / "state", **more)


@contextmanager
def _libvirtd(folder: Path, form: str, as_user: dict[str, object]) -> Iterator[dict[str, str]]:
    """A daemon with its sockets, settings and a domain.xml in `folder`; gives the environment that leads to it."""
    homes = {"HOME": "home", "XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}
    for name in homes.values():
        (folder / name).mkdir()
    settings = folder / "config/libvirt"
    settings.mkdir()
    (settings / "qemu.conf").write_text(f'save_image_format = "{form}"\n')
    image, serial, qemu = folder / "guest.img", folder / "serial.txt", shutil.which("qemu-system-x86_64")
    write_image(image, FILL, 0)
    (folder / "domain.xml").write_text(DOMAIN.format(memory=MEMORY, qemu=qemu, image=image, serial=serial))
    if as_user:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, "nobody", "nogroup")
    environment = {"PATH": _path(), **{name: str(folder / part) for name, part in homes.items()}}
    with (folder / "libvirtd.log").open("w") as log:
        daemon = subprocess.Popen(["libvirtd"], stdout=log, stderr=log, env=environment, **as_user)  # type: ignore[call-overload]
    try:
        wait_for("socket of libvirtd", (folder / "run/libvirt/libvirt-sock").exists)
        yield environment
    finally:
        daemon.terminate()
        daemon.wait()


def _path() -> str:
    """PATH with the folders of daemons, which an ordinary user's lacks."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
