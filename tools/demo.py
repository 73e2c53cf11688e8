"""make demo: a running guest is saved while it counts, its QEMU is killed, and the file brings it back, twice.

The guest is the one the tests use: a boot sector that counts on the serial port, keeps dirtying 16 MB, and sums
24 MB of memory at each tick, so that SUM tells of a single changed bit. No KVM is needed.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.guest import parse_ticks, write_image  # noqa: E402

STATEPIPE = str(ROOT / "bin" / "statepipe")
PATIENCE = 60
"""Seconds to wait for any one thing: TCG on a busy machine is slow."""


def main() -> None:
    """Run the story in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="statepipe-demo-") as folder:
        story(Path(folder))


def story(folder: Path) -> None:
    """Save, kill, damage, load, load lazily, inspect."""
    write_image(folder / "guest.img")
    first, second, third = (folder / f"{name}.txt" for name in ("first", "second", "third"))
    state = folder / "guest.state"
    say("A guest starts, and counts on its serial port.")
    with running([*qemu(folder, first), "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]) as source:
        wait("20 ticks", lambda: len(ticks(first)) >= 20)
        say("It is saved while it counts.")
        statepipe("save", "--qmp", str(folder / "qmp"), str(state))
        source.kill()
    show(first)
    say("Its QEMU is killed. One bit of a copy of the file is flipped: nothing will load that.")
    damage(state, folder / "damaged.state")
    statepipe("verify-state", str(folder / "damaged.state"), expect=3)
    say("The file itself is loaded into a new QEMU, and the count goes on.")
    began = time.monotonic()
    with running([STATEPIPE, "load", str(state), "--", *qemu(folder, second)]):
        wait("the first tick", lambda: bool(ticks(second)))
        ordinary = time.monotonic() - began
        wait("20 more ticks", lambda: len(ticks(second)) >= 20)
    show(second)
    judge(parse_ticks(first.read_text() + second.read_text()))
    say("It is loaded once more, lazily: the guest runs at once, and its memory is loaded meanwhile.")
    began = time.monotonic()
    with running([STATEPIPE, "load", "--lazy=auto", str(state), "--", *qemu(folder, third)]):
        wait("the first tick", lambda: bool(ticks(third)))
        lazy = time.monotonic() - began
        wait("20 more ticks", lambda: len(ticks(third)) >= 20)
    show(third)
    judge(parse_ticks(first.read_text() + third.read_text()))
    say(f"From the command to the first tick: {ordinary:.2f} s after an ordinary load, {lazy:.2f} s after a lazy one.")
    say("What the file says of itself:")
    statepipe("inspect", str(state))


def qemu(folder: Path, serial: Path) -> list[str]:
    """A QEMU command line for the guest."""
    words = "qemu-system-x86_64 -accel tcg -m 128 -name demo -nodefaults -display none"
    disk = f"file={folder}/guest.img,format=raw,if=ide"
    return [*words.split(), "-drive", disk, "-serial", f"file:{serial}"]


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone afterwards, whatever happens. SIGTERM, so that statepipe ends its QEMU as well."""
    print("  $", shlex.join(command).replace(STATEPIPE, "statepipe"), flush=True)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def statepipe(*arguments: str, expect: int = 0) -> None:
    """Run statepipe and show what it says. Exits the demo if its status is not the expected one."""
    print("  $ statepipe", shlex.join(arguments), flush=True)
    done = subprocess.run([STATEPIPE, *arguments], capture_output=True, text=True)
    for line in (done.stdout + done.stderr).splitlines():
        print("   ", line)
    print(f"    (exit status {done.returncode})", flush=True)
    if done.returncode != expect:
        sys.exit(f"demo: expected exit status {expect}")


def damage(state: Path, copy: Path) -> None:
    """Flip the lowest bit of the byte in the middle."""
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)


def wait(what: str, ready: Callable[[], bool]) -> None:
    """Look until it is so. The guest has no other way to tell us than its serial port."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            sys.exit(f"demo: no {what} within {PATIENCE} s")
        time.sleep(0.05)


def ticks(serial: Path) -> list[tuple[int, int]]:
    """(tick, sum) for each line so far."""
    return parse_ticks(serial.read_text()) if serial.exists() else []


def show(serial: Path) -> None:
    """The first and the last lines of the serial port."""
    lines = serial.read_text().splitlines()
    for line in (lines[0], "…", *lines[-2:]):
        print("    serial:", line)


def judge(counted: list[tuple[int, int]]) -> None:
    """The two halves must make one count and one sum."""
    numbers = [number for number, _ in counted]
    if numbers != list(range(1, len(numbers) + 1)) or len({total for _, total in counted}) != 1:
        sys.exit("demo: the count or the sum did not go on")
    say(f"{len(numbers)} ticks, none lost, none repeated, and one memory sum throughout.")


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
