"""What is measured on: a folder with room, a long migration stream in it, and that stream compressed by both sides."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Broken
from tests.bench.stream import follow, lengthened, made_stream

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_SIZE = 1_900_000_000
PART = 64 << 20
"""What gzip gets: at 30 MB/s the whole would take a minute a run."""
_PIECE = 1 << 20

NEED = 3
"""Bytes of room for each byte of input: the input, two compressed copies, one output."""

STATEPIPE = (sys.executable, "-P", "-m", "statepipe")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files go, what that is, and how large an input it takes."""

    folder: str
    kind: str
    size: int


def choose_folder(size: int) -> Place:
    """In memory if there is room for an input of `size` bytes, else on disk; there a smaller input if need be."""
    if os.path.isdir("/dev/shm") and min(shutil.disk_usage("/dev/shm").free, _free_memory()) > NEED * size:
        return Place("/dev/shm", "memory: no disk is measured", size)
    folder = tempfile.gettempdir()
    return Place(folder, "on disk: save waits for it", min(size, shutil.disk_usage(folder).free // NEED))


def _free_memory() -> int:
    """Half of what is free: the other half is for the programs."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 512
    return 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """The plain stream with its size, where it came from, a real stream if there is one, and a part for gzip."""

    folder: Path
    plain: Path
    size: int
    origin: str
    sample: Path | None
    part: Path

    def compressed(self, name: str, command: Sequence[str]) -> Path:
        """The plain stream through `command`, made once."""
        path = self.folder / name
        if not path.exists():
            _fill(command, self.plain, path)
        return path

    def noise(self) -> Path:
        """As many bytes that are no migration stream and do not compress, made once."""
        path = self.folder / "noise"
        if not path.exists():
            _write(path, (os.urandom(_PIECE) for _ in range(self.size // _PIECE)))
        return path


def make_inputs(folder: Path, size: int) -> Inputs:
    """Write the input into `folder`. Raises Broken if what came out is no valid stream."""
    plain = folder / "plain"
    samples = _unpack_samples(folder)
    if samples:
        origin = "one stream made of the rounds of two real ones (linux256, linux256-b), alternating"
        _write(plain, lengthened(*samples, size))
        samples[1].unlink()
    else:
        origin = "a made stream (zero, text-like and random pages), as the real samples are not at hand"
        _write(plain, made_stream(size))
    if follow(plain).proof != "vmdesc":
        raise Broken("the input is no whole migration stream")
    return Inputs(folder, plain, plain.stat().st_size, origin, samples[0] if samples else None, _cut_part(plain))


def _unpack_samples(folder: Path) -> tuple[Path, Path] | None:
    """The two real streams, if they are there and zstd is."""
    where = Path(os.environ.get("STATEPIPE_SAMPLES") or ROOT.parent / "shared" / "samples")
    packed, patch = where / "linux256.qevm.zst", where / "linux256-b.patch.zst"
    if not (packed.exists() and patch.exists() and shutil.which("zstd")):
        return None
    first, second = folder / "first", folder / "second"
    _fill(["zstd", "-dcq", "--long=31"], packed, first)
    _fill(["zstd", "-dcq", "--long=31", f"--patch-from={first}"], patch, second)
    return first, second


def _fill(command: Sequence[str], source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("wb") as out:
        done = subprocess.run(command, stdin=file, stdout=out, stderr=subprocess.PIPE, cwd=ROOT)
    if done.returncode:
        raise Broken(f"'{' '.join(command)}': {done.stderr.decode(errors='replace').strip()}")


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)


def _cut_part(plain: Path) -> Path:
    """PART bytes of the stream in pieces spread evenly over it, so that they compress as the whole does."""
    size, path = plain.stat().st_size, plain.parent / "part"
    count = max(1, min(PART, size // 2) // _PIECE)
    with plain.open("rb") as file, path.open("wb") as out:
        for index in range(count):
            file.seek((size - _PIECE) * index // max(count - 1, 1))
            out.write(file.read(_PIECE))
    return path
