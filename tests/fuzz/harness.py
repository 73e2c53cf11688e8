"""How a door is attacked: in a process of its own, with input after input, until its time is over or something gives.

A door is a function that takes bytes from outside. Whatever they are, it returns, or raises what it says it raises
(a StatepipeError, most often); it takes no more than so much memory, and no longer than so long. Each input comes of a
seed and a number, so that a process that hangs or dies can be asked afterwards what it was at. What fails is cut down,
written to a file, and can be tried again:

    python -m tests.fuzz DOOR FILE
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import mmap
import os
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

from statepipe.errors import StatepipeError

SECONDS = float(os.environ.get("STATEPIPE_FUZZ_SECONDS", "20"))
"""All doors together, on two cores; `make faults` takes LONGER times as long."""

LONGER = 30

SEED = os.environ.get("STATEPIPE_FUZZ_SEED", "statepipe")
"""The same each time in the suite, which must not fail by chance; `make faults` takes a new one, and prints it."""

GROWTH = 200 << 20
"""Bytes that one input may cost."""

KEPT = 50 << 20
"""Bytes that may stay with the process from one input to the next: what was imported meanwhile, and the like."""

CEILING = 1500 << 20
"""Bytes of memory that the process gets: no input shall take the machine down."""

CPU_SECONDS = 10.0
"""Of all threads together, for one input. Most take less than a millisecond."""

PATIENCE = 180.0
"""Seconds without an end of one input until it is said to hang. By the clock: so many that a busy machine has no part
in it."""

CUTTING = 3.0
"""Seconds for making a failing input smaller."""

SHOWN = 1500
"""Characters of an input that are shown."""

DOORS = {
    **dict.fromkeys(("greetings", "frames", "links", "messages", "answers", "offers", "wishes"), "session"),
    **dict.fromkeys(("streams", "indexes", "states", "sealed-states", "requests-for-pages"), "guests"),
    **dict.fromkeys(("working-sets", "domains"), "guests"),
    **dict.fromkeys(("zstd", "gzip", "bzip2", "xz", "lz4", "splitters"), "codecs"),
    **dict.fromkeys(("age-files", "armor", "keys", "plugins", "openpgp", "gpg"), "secrets"),
    **dict.fromkeys(("requests", "jobs", "journals", "certificates", "pins", "pairing", "ssh"), "host"),
    "monitors": "monitors",
    **dict.fromkeys(("words", "lines", "figures", "settings"), "words"),
}
"""Every door, and the module here that has it in its own table, `DOORS`."""


@dataclass(frozen=True, slots=True)
class Door:
    """`enter` takes the bytes, `make` makes them.

    `known` makes inputs that once failed, each under a name that says how; `raises` is what is foreseen.
    """

    enter: Callable[[bytes], object]
    make: Callable[[Random], bytes]
    known: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    raises: tuple[type[BaseException], ...] = (StatepipeError,)

    def made(self, seed: str, number: int) -> bytes:
        """The input of that number."""
        return self.make(Random(f"{seed}/{number}"))


def find(name: str) -> Door:
    """The door of that name."""
    door = import_module(f"tests.fuzz.{DOORS[name]}").DOORS[name]
    assert isinstance(door, Door)
    return door


# --- in the process of its own


class Failed(Exception):
    """What an input did, in words."""


class Measured:
    """The memory and the time that one input takes."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._armed = 0.0
        self._astray: list[str] = []
        threading.excepthook = lambda arguments: self._stray("a thread", arguments.exc_value)
        sys.unraisablehook = lambda arguments: self._stray("nobody's", arguments.exc_value)
        self._base = _resident("VmRSS")

    def _stray(self, whose: str, error: BaseException | None) -> None:
        self._astray.append(f"{whose}: {''.join(traceback.format_exception(error)) if error else '?'}")

    def enter(self, data: bytes) -> None:
        """Raises Failed."""
        self._arm()
        self._settle()
        spent = time.process_time()
        try:
            self._door.enter(data)
        except self._door.raises:
            pass
        except BaseException as error:
            raise Failed("".join(traceback.format_exception(error))[-6000:]) from error
        if (grown := _resident("VmHWM") - self._base) > GROWTH:
            raise Failed(f"it took {grown >> 20} MiB of memory")
        if (seconds := time.process_time() - spent) > CPU_SECONDS:
            raise Failed(f"it took {seconds:.1f} s of processor time")
        if self._astray:
            raise Failed(f"an exception went astray: {self._astray.pop()}")

    def _settle(self) -> None:
        """What was freed goes back to the system: the next input would else take it unseen."""
        if _resident("VmRSS") - self._base > KEPT:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(b"5")

    def _arm(self) -> None:
        """The watchdog, from now on. To start it costs as much as many inputs do."""
        if time.monotonic() - self._armed > 1:
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            self._armed = time.monotonic()


def _resident(which: str) -> int:
    """Bytes that are resident now (VmRSS), or were at the most since that was forgotten (VmHWM)."""
    with open("/proc/self/status", "rb", buffering=0) as file:
        return int(file.read(4096).partition(which.encode() + b":")[2].split()[0]) << 10


def work(name: str, seed: str, seconds: float, folder: str) -> int:
    """Known inputs first, then new ones for so many seconds; 1 if one failed, which `failed.json` then tells of."""
    faulthandler.enable()
    door, place = find(name), Path(folder)
    resource.setrlimit(resource.RLIMIT_DATA, (CEILING, CEILING))
    measured = Measured(door)
    for known, make in door.known.items():
        (place / "known").write_text(known)
        data = make()
        try:
            measured.enter(data)
        except Failed as failed:
            return _tell(place, data, f"the known input '{known}': {failed}")
    (place / "known").unlink(missing_ok=True)
    with _counted(place / "number") as count:
        return _work(door, measured, seed, seconds, place, count)


def _work(door: Door, measured: Measured, seed: str, seconds: float, place: Path, count: Callable[[int], None]) -> int:
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end or not number:
        count(number)
        data = door.made(seed, number)
        try:
            measured.enter(data)
        except Failed as failed:
            return _tell(place, _smaller(door, data, failed), f"input {number} of seed {seed!r}: {failed}")
        number += 1
    print(number)
    return 0


@contextlib.contextmanager
def _counted(path: Path) -> Iterator[Callable[[int], None]]:
    """Where the number of the input at hand stands, for whoever looks when we are gone."""
    path.write_bytes(bytes(8))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:

        def count(number: int) -> None:
            shared[:] = number.to_bytes(8, "little")

        yield count


def _tell(place: Path, data: bytes, what: str) -> int:
    (place / "input").write_bytes(data)
    (place / "failed.json").write_text(json.dumps({"what": what}))
    return 1


def _smaller(door: Door, data: bytes, failed: Failed) -> bytes:
    """The same failure from fewer bytes, if it was an exception."""
    wanted, end = _kind(failed.__cause__), time.monotonic() + CUTTING
    size = len(data) // 2
    while size and wanted:
        at = 0
        while at < len(data) and time.monotonic() < end:
            shorter = data[:at] + data[at + size :]
            try:
                door.enter(shorter)
                found = None
            except BaseException as error:
                found = _kind(error)
            if found == wanted:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def _kind(error: BaseException | None) -> tuple[object, ...] | None:
    """What was raised and where: two of the same are one fault."""
    if error is None:
        return None
    place: TracebackType | None = error.__traceback__
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(place)]
    return type(error), *lines[-1:]


# --- in the test


def attack(name: str, seed: str, seconds: float, folder: Path) -> int:
    """Have a process attack a door; the number of inputs it took. Raises AssertionError that tells all."""
    words = [sys.executable, "-m", "tests.fuzz", name, "--seed", seed, "--seconds", f"{seconds:g}", str(folder)]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "MALLOC_ARENA_MAX": "2"}
    process = subprocess.Popen(words, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, errors = process.communicate(timeout=seconds + 3 * PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
    if process.returncode == 0:
        return int(out.split()[-1])
    raise AssertionError(_report(name, seed, folder, process.returncode, errors.decode(errors="replace")))


def _report(name: str, seed: str, folder: Path, status: int, errors: str) -> str:
    told, known, number = folder / "failed.json", folder / "known", folder / "number"
    if told.exists():
        what: Any = json.loads(told.read_text())["what"]
    elif known.exists():
        what = f"the process ended with {status} at the known input '{known.read_text()}'\n{errors[-6000:]}"
        (folder / "input").write_bytes(find(name).known[known.read_text()]())
    elif number.exists():
        which = int.from_bytes(number.read_bytes(), "little")
        (folder / "input").write_bytes(find(name).made(seed, which))
        what = f"the process ended with {status} at input {which} of seed {seed!r}\n{errors[-6000:]}"
    else:
        return f"{name}: no input was tried\n{errors}"
    data = (folder / "input").read_bytes()
    return (
        f"{name}: {what}\n{len(data)} bytes: {data!r:.{SHOWN}}\nagain: python -m tests.fuzz {name} {folder / 'input'}"
    )
