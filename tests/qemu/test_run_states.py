"""A guest that stands still for a reason of its own is moved, saved and loaded as it is: its reason may be the host."""

from __future__ import annotations

from pathlib import Path

from tests.qemu.harness import Guest, run_statepipe
from tests.qemu.moving import Credentials, mover, receiver, waiting

SLEEPER = bytes.fromhex("BA0406 B80024 EF F4 EBFD")
"""mov dx, 0x604; mov ax, 0x2400; out dx, ax; hlt; jmp: PIIX4's PM1a_CNT, where sleep type 1 is QEMU's S3."""

READER = bytes.fromhex("B80102 B90A00 BA8100 BB0080 CD13 EBF0")
"""mov ax, 0x0201; mov cx, 10; mov dx, 0x81; mov bx, 0x8000; int 0x13; jmp: it reads the second disk's tenth sector."""


def boots(folder: Path, code: bytes) -> Path:
    """An image whose boot sector this is."""
    path = folder / "boot.img"
    path.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    return path


def broken_disk(folder: Path) -> list[str]:
    """A second disk whose tenth sector cannot be read, which stops the guest."""
    path = folder / "second.img"
    path.write_bytes(bytes(1 << 20))
    words = {"event": "read_aio", "errno": 5, "sector": 9}
    rule = ",".join(f"file.inject-error.0.{name}={value}" for name, value in words.items())
    below = f"driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={path}"
    return ["-drive", f"if=none,id=d,{below},{rule}", "-device", "virtio-blk-pci,drive=d,rerror=stop"]


def moved_as_it_was(credentials: Credentials, source: Guest, target: Guest, state: str) -> None:
    """migrate says so, and QEMU over there."""
    receiving, port = receiver(credentials, "--qmp", target.socket)
    with receiving, mover(credentials, source, port) as moving:
        assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)
    assert f"{state} as it was: " in moving.said[-2] and f"here it is {state}" in "\n".join(receiving.said)
    assert target.run_state() == state


def test_a_guest_that_was_never_started_moves(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with Guest(tmp_path, qemu=qemu72, args=["-S"]) as source, waiting(tmp_path, qemu72, source) as target:
        moved_as_it_was(credentials, source, target, "prelaunch")
        target.qmp("cont")
        target.wait_ticks(1)


def test_a_guest_that_a_failing_disk_has_stopped_moves(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    args, image = broken_disk(tmp_path), boots(tmp_path, READER)
    with (
        Guest(tmp_path, qemu=qemu72, image=image, args=args) as source,
        waiting(tmp_path, qemu72, source, *args) as target,
    ):
        source.wait_run_state("io-error")
        done = run_statepipe("resolve", "--qmp", source.socket)
        assert "a disk failed or is full" in done.stdout
        moved_as_it_was(credentials, source, target, "io-error")


def test_a_guest_that_sleeps_is_moved_saved_and_loaded_asleep(
    tmp_path: Path, states: Path, newer: str, credentials: Credentials
) -> None:
    """By QEMU 10 and later; 7.2 wakes it for that."""
    image = boots(tmp_path, SLEEPER)
    with Guest(tmp_path, qemu=newer, image=image) as source, waiting(tmp_path, newer, source) as target:
        source.wait_run_state("suspended")
        moved_as_it_was(credentials, source, target, "suspended")
        source.kill()
        done = run_statepipe("save", "--qmp", target.socket, "--then", "cont", states / "s")
        assert done.returncode == 6 and "this QEMU would end" in done.stderr, done.stderr
        assert target.run_state() == "suspended"
        done = run_statepipe("save", "--qmp", target.socket, "--then", "quit", states / "s")
        assert done.returncode == 0, done.stderr
    with Guest(tmp_path, qemu=newer, image=image, args=["-S"], incoming="defer") as other:
        done = run_statepipe("load", "--qmp", other.socket, states / "s")
        assert done.returncode == 0 and "the guest is suspended" in done.stderr, done.stderr
        other.qmp("system_wakeup")
