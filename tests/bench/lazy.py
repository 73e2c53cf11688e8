"""`load --lazy` beside QEMU alone, which starts with no state at all, and beside an ordinary `load`.

The guest's memory is full: a file of the bench's input is its RAM while it is saved. Every QEMU connects a monitor to
us at its start, and the moments are those of its own events: RESUME, when the guest runs, and `completed`, when all
memory is there. An ordinary load resumes the guest once all memory is there.

"Cold" means that the state file is not in the page cache. All programs are.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

from tests.agefiles import KEY_FILE, RECIPIENT
from tests.bench.data import ROOT
from tests.bench.measure import Broken, spread
from tests.bench.pairs import Bench, statepipe
from tests.bench.table import Row
from tests.qemu.harness import PATIENCE, Guest, run_statepipe

SMALL, LARGE, HUGE = 512, 2048, 4096
"""MiB of memory."""

FILL = 32
"""MiB that the guest reads again and again."""

LOADS = 3
"""Runs of whole loads at most: one of 2 GiB takes ten seconds and more."""

ROOM = 120.0
"""Milliseconds that a lazy start may take besides twice the start of QEMU alone."""

_COPIED = 16 << 20


@dataclass(frozen=True, slots=True)
class Way:
    """One way to start: the file's encryption, and whether the file is in the page cache."""

    sealed: str
    cache: str


WAYS = [Way(sealed, cache) for sealed in ("plain", "age") for cache in ("warm", "cold")]


@dataclass(frozen=True, slots=True)
class Whole:
    """A lazy load until all memory was there: seconds, the last words of its status, its largest resident bytes."""

    seconds: float
    status: dict[str, Any]
    rss: int


@dataclass(frozen=True, slots=True)
class Taken:
    """All runs of one size: milliseconds to the running guest, seconds to all memory."""

    alone: list[float] = field(default_factory=list)
    lazy: dict[Way, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    ordinary: list[float] = field(default_factory=list)
    whole: list[Whole] = field(default_factory=list)


def lazy(bench: Bench) -> list[Row]:
    """512 MiB and 2 GiB."""
    return _rows(bench, LARGE)


def lazy_huge(bench: Bench) -> list[Row]:
    """512 MiB and 4 GiB."""
    return _rows(bench, HUGE)


def _rows(bench: Bench, large: int) -> list[Row]:
    if shutil.which("qemu-system-x86_64") is None:
        return [Row("load --lazy", "-", "qemu-system-x86_64 is not installed")]
    taken = {SMALL: Taken(), large: Taken()}
    with tempfile.TemporaryDirectory(prefix="statepipe-bench-") as folder:
        states = {size: States(Path(folder) / str(size), size, bench.inputs.plain) for size in taken}
        for turn in range(bench.rounds):
            for size, runs in taken.items():
                _turn(states[size], runs, whole=turn < LOADS)
    rows = [row for size, runs in taken.items() for row in _of_size(size, runs)]
    return rows + [_growth(way, taken[SMALL].lazy[way], taken[large].lazy[way], large) for way in WAYS]


def _turn(states: States, runs: Taken, *, whole: bool) -> None:
    runs.alone.append(states.alone())
    for way in WAYS:
        runs.lazy[way].append(states.start(way))
    if whole:
        runs.ordinary.append(states.ordinary())
        runs.whole.append(states.whole())


def _of_size(size: int, runs: Taken) -> Iterator[Row]:
    allowed = 2 * median(runs.alone) + ROOM
    beside = f"QEMU alone {shown(runs.alone)}, twice that + {ROOM:.0f} ms: {allowed:.0f} ms"
    for way, times in runs.lazy.items():
        ratio = median(times) / allowed
        what = f"lazy start, {size} MiB, {way.sealed}, {way.cache}"
        yield Row(what, shown(times), beside, ratio, "<= 1", ratio <= 1, {"ours": times, "alone": runs.alone})
    ours, peer = [run.seconds for run in runs.whole], runs.ordinary
    ratio = median(ours) / median(peer)
    texts = [f"{median(each):.2f} s ±{spread(each):.0%}" for each in (ours, peer)]
    every = {"ours": [asdict(run) for run in runs.whole], "peer": peer}
    what = f"lazy load, {size} MiB"
    yield Row(f"{what}: all memory", texts[0], f"ordinary load: {texts[1]}", ratio, "<= 1.3", ratio <= 1.3, every)
    told = [run.status["lazy"] for run in runs.whole]
    middle, worst = median(each["wait_median_ms"] for each in told), max(each["wait_worst_ms"] for each in told)
    waits = f"median {middle:.1f} ms, longest {worst:.0f} ms"
    yield Row(f"{what}: wait of a request", waits, f"{told[-1]['asked']} requests", None, "< 3 ms", middle < 3)
    rss = max(run.rss for run in runs.whole)
    yield Row(f"{what}: resident memory", f"{rss / 1e6:.0f} MB", "", None, "< 200 MB", rss < 200e6)
    sent = f"{told[-1]['pages']} of {told[-1]['pages_total']} stored, {told[-1]['zeros']} zero"
    once = all(each["pages"] == each["pages_total"] for each in told)
    yield Row(f"{what}: pages sent", sent, "", None, "each once", once)


def _growth(way: Way, small: list[float], large: list[float], size: int) -> Row:
    ratio = median(large) / median(small)
    what = f"lazy start, {way.sealed}, {way.cache}: {size} MiB to {SMALL} MiB"
    return Row(what, shown(large), f"ours: {shown(small)}", ratio, "<= 1.2", ratio <= 1.2)


def shown(times: list[float]) -> str:
    """Milliseconds in words."""
    return f"{median(times):.0f} ms ±{spread(times):.0%}"


class States:
    """A guest of `size` MiB, saved once plain and once encrypted in `folder`, which is on a disk."""

    def __init__(self, folder: Path, size: int, data: Path) -> None:
        folder.mkdir()
        self._folder, self._size = folder, size
        self._qemu = shutil.which("qemu-system-x86_64") or ""
        with _filled(data, size) as memory:
            backend = ["-object", f"memory-backend-file,id=pc.ram,size={size}M,mem-path={memory},share=on"]
            backend += ["-machine", "pc,memory-backend=pc.ram"]
            with Guest(folder, qemu=self._qemu, memory=size, fill=FILL, dirty=0, args=backend) as guest:
                self._image = guest.image
                guest.wait_ticks(2)
                for sealed, words in (("plain", ["--plain"]), ("age", ["--recipient", RECIPIENT])):
                    done = run_statepipe("save", "--qmp", guest.socket, *words, folder / sealed, timeout=600)
                    if done.returncode:
                        raise Broken(f"save: {done.stderr.strip()}")
                    guest.qmp("cont")

    def alone(self) -> float:
        """Milliseconds until a QEMU without a state says that it runs."""
        with started(self._command(), self._folder) as qemu:
            while (state := qemu.ask("query-status")["status"]) != "running":
                if state != "prelaunch":
                    raise Broken(f"QEMU alone is {state}")
            return (time.time() - qemu.began) * 1000

    def start(self, way: Way) -> float:
        """Milliseconds from the start of `load --lazy` to RESUME."""
        with self.file(way.sealed).open("rb") as file:
            if way.cache == "cold":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(_COPIED):
                    pass
        return self.start_from(str(self.file(way.sealed)), way.sealed)

    def start_from(self, state: str, sealed: str) -> float:
        """Do as `start` from a copy of the state elsewhere."""
        with started(self._load("--lazy", sealed=sealed, state=state), self._folder) as load:
            return load.event("RESUME") * 1000

    def file(self, sealed: str) -> Path:
        """The state file with this encryption."""
        return self._folder / sealed

    def ordinary(self) -> float:
        """Seconds until the guest runs, with all its memory."""
        with started(self._load(), self._folder) as load:
            return load.event("RESUME")

    def whole(self) -> Whole:
        """A lazy load until all memory is there."""
        status = self._folder / "status"
        with status.open("w") as lines:
            command = self._load("--lazy", "--detach", "--status-fd", str(lines.fileno()))
            with started(command, self._folder, [lines.fileno()]) as load:
                seconds = load.event("MIGRATION", status="completed")
                rss = load.ended()
        return Whole(seconds, json.loads(status.read_text().splitlines()[-1]), rss)

    def _load(self, *words: str, sealed: str = "plain", state: str | None = None) -> list[str]:
        key = ["--identity", str(KEY_FILE)] if sealed == "age" else []
        return [*statepipe("load", *words, *key, state or str(self.file(sealed))), "--", *self._command()]

    def _command(self) -> list[str]:
        fixed = f"-accel tcg -m {self._size} -display none -nodefaults -serial file:{self._folder}/serial"
        drive = ["-drive", f"file={self._image},format=raw,if=ide"]
        return [self._qemu, *fixed.split(), *drive, *_monitor(self._folder)]


@contextmanager
def _filled(data: Path, size: int) -> Iterator[Path]:
    """A file in memory of `size` MiB, full of `data`, again and again."""
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.NamedTemporaryFile(dir=place, prefix="statepipe-bench-") as file, data.open("rb") as source:
        while (left := (size << 20) - file.tell()) > 0:
            part = source.read(min(left, _COPIED))
            file.write(part)
            if not part:
                source.seek(0)
        file.flush()
        yield Path(file.name)


def _monitor(folder: Path) -> list[str]:
    """Words with which a QEMU connects a monitor to `started`."""
    return ["-chardev", f"socket,id=bench,path={folder}/qmp", "-qmp", "chardev:bench"]


@dataclass(frozen=True, slots=True)
class Started:
    """A command that is a QEMU, or has started one, and the monitor of that QEMU. `began` is its time of start."""

    process: subprocess.Popen[bytes]
    began: float
    link: socket.socket
    lines: IO[bytes]
    said: Path

    def ask(self, command: str) -> Any:
        """What QEMU answers."""
        self.link.sendall(json.dumps({"execute": command}).encode())
        while "return" not in (message := self._next()):
            pass
        return message["return"]

    def event(self, name: str, **data: str) -> float:
        """Seconds from the start to the event that has this `data`, by QEMU's clock."""
        while (message := self._next()).get("event") != name or not data.items() <= message.get("data", {}).items():
            pass
        stamp = message["timestamp"]
        return float(stamp["seconds"] + stamp["microseconds"] / 1e6 - self.began)

    def ended(self) -> int:
        """Wait for the end of the command, which is statepipe; its largest resident bytes."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise self._broken()
        return usage.ru_maxrss * 1024

    def _next(self) -> dict[str, Any]:
        line = self.lines.readline()
        if not line:
            raise self._broken()
        message: dict[str, Any] = json.loads(line)
        return message

    def _broken(self) -> Broken:
        return Broken(f"load: {self.said.read_text().strip()}")


@contextmanager
def started(command: Sequence[str], folder: Path, pass_fds: Sequence[int] = ()) -> Iterator[Started]:
    """Start a command with `_monitor` in its words; it and its QEMU are killed at the end."""
    said, address, environment = folder / "stderr", folder / "qmp", os.environ | {"XDG_RUNTIME_DIR": str(folder)}
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, said.open("w") as stderr:
        listener.settimeout(PATIENCE)
        listener.bind(str(address))
        listener.listen()
        began = time.time()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=stderr, env=environment, cwd=ROOT, pass_fds=pass_fds
        ) as process:
            try:
                try:
                    link, _ = listener.accept()
                except TimeoutError as error:
                    raise Broken(f"no QEMU: {said.read_text().strip()}") from error
                with link, link.makefile("rb") as lines:
                    link.settimeout(PATIENCE)
                    qemu, *_ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                    try:
                        found = Started(process, began, link, lines, said)
                        found.ask("qmp_capabilities")
                        yield found
                    finally:
                        with suppress(ProcessLookupError):
                            os.kill(qemu, signal.SIGKILL)
            finally:
                process.kill()
