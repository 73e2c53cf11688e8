"""load and the machine that QEMU really is: its disks, by its own word and where the guest sees them; its hardware."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from statepipe.qemu.images import images
from statepipe.qemu.monitor import Monitor
from tests.qemu.harness import Guest, assert_continues, run_statepipe, wait_for
from tests.qemu.loading import MEMORY, Saved, assert_never_ran, loaded, run_load

MACHINE = ["-machine", "pc-i440fx-7.2"]


@dataclass(frozen=True)
class Rig:
    """A state, and the disks of its guest: `first` has an overlay since QEMU was started, `second` is its twin, and
    `socket` is a server's of a third one."""

    saved: Saved
    first: Path
    overlay: Path
    second: Path
    medium: Path
    socket: Path

    def args(self, *disks: Path) -> list[str]:
        """A QEMU's with these disks in the places of the first two."""
        words = [f"file={disk},format=qcow2,if=virtio" for disk in disks]
        words += [f"file=nbd+unix:///e?socket={self.socket},format=raw,if=virtio"]
        words += [f"file={self.medium},format=raw,media=cdrom,readonly=on,if=ide"]
        return [*MACHINE, *(word for drive in words for word in ("-drive", drive))]


@contextmanager
def served(image: Path, socket: Path) -> Iterator[None]:
    """By qemu-nbd, at a socket that is there once it listens."""
    if shutil.which("qemu-nbd") is None:
        pytest.skip("qemu-nbd is not installed")
    command = ["qemu-nbd", "--format=raw", "--persistent", "--export-name=e", "--shared=8", f"--socket={socket}"]
    with subprocess.Popen([*command, str(image)]) as server:
        try:
            wait_for("socket", socket.exists)
            yield
        finally:
            server.kill()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, qemu72: str) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    images = [folder / name for name in ("first", "overlay", "second", "medium", "remote")]
    first, overlay, second, medium, remote = images
    for disk in (first, second):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    for plain in (medium, remote):
        plain.write_bytes(plain.name.encode().ljust(1 << 20, b"\0"))
    socket = folder / "nbd"
    with served(remote, socket):
        rig = Rig(Saved(folder / "state", folder / "guest-0.img", "", qemu72), first, overlay, second, medium, socket)
        with Guest(folder, qemu=qemu72, memory=MEMORY, fill=8, dirty=2, args=rig.args(first, second)) as guest:
            guest.wait_ticks(2)
            guest.qmp("device_add", driver="virtio-rng-pci", addr="0x9")
            guest.qmp("blockdev-snapshot-sync", device="virtio0", snapshot_file=str(overlay), format="qcow2")
            done = run_statepipe("save", "--qmp", guest.socket, rig.saved.file)
            assert done.returncode == 0, done.stderr
            assert f"nbd+unix:///e?socket={socket}" in done.stderr, "nobody can vouch for that one"
            before = guest.serial()
        yield Rig(Saved(rig.saved.file, guest.image, before, qemu72), first, overlay, second, medium, socket)


RNG = ["-device", "virtio-rng-pci,addr=0x9"]
"""What was plugged in while the guest ran."""


def assert_refused(folder: Path, rig: Rig, args: Sequence[str], *said: str) -> None:
    done = run_load(folder, rig.saved, args=args)
    assert done.returncode == 1, done.stderr
    for words in said:
        assert words in done.stderr
    assert_never_ran(folder)


def test_a_stranger_in_a_disk_s_place_is_named_with_it(tmp_path: Path, rig: Rig) -> None:
    other = shutil.copy(rig.second, tmp_path / "other")
    args = rig.args(rig.overlay, Path(other))
    assert_refused(tmp_path, rig, args, f"lacks disks that the guest had: {rig.second} (in its place, at ", str(other))


def test_the_command_line_of_before_the_overlay_is_refused(tmp_path: Path, rig: Rig) -> None:
    """The guest would be without all that it wrote since."""
    assert_refused(tmp_path, rig, rig.args(rig.first, rig.second), f"lacks disks that the guest had: {rig.overlay} (in")


def test_two_disks_that_were_swapped_are_refused(tmp_path: Path, rig: Rig) -> None:
    assert_refused(tmp_path, rig, rig.args(rig.second, rig.overlay), f"{rig.second} is at pci.0 ", "but was at pci.0 ")


def test_another_server_s_disk_is_refused(tmp_path: Path, rig: Rig) -> None:
    remote = tmp_path / "remote"
    remote.write_bytes(bytes(1 << 20))
    with served(remote, tmp_path / "other.nbd"):
        args = Rig(rig.saved, rig.first, rig.overlay, rig.second, rig.medium, tmp_path / "other.nbd")
        assert_refused(tmp_path, rig, args.args(rig.overlay, rig.second), f"e?socket={rig.socket} (in its place")


def test_the_guest_s_own_disks_are_known_in_a_newer_qemu_too(tmp_path: Path, rig: Rig, newer: str) -> None:
    """One has another name now and another date; all of them are only looked at, by -snapshot."""
    moved = Path(shutil.copyfile(rig.second, tmp_path / "moved"))
    args = [*rig.args(rig.overlay, moved), *RNG, "-snapshot"]
    with loaded(tmp_path, rig.saved, "--disk", f"{rig.second}={moved}", qemu=newer, args=args) as guest:
        guest.wait_ticks(3)
        assert_continues(rig.saved.before, guest.serial())
        said = guest.stderr()
    assert f"could not be compared, so load cannot tell whether they changed: nbd+unix:///e?socket={rig.socket}" in said
    assert str(rig.second) not in said


@pytest.mark.parametrize(
    ("args", "said", "part"),
    [
        ([], "it lacks virtio-rng-pci at pci.0 09.0", "devices"),
        ([*RNG, "-cpu", "max"], "its processor was qemu64-x86_64-cpu, and is max-x86_64-cpu", "cpu"),
        ([*RNG, "-cpu", "qemu64,-nx"], "its processor lacks nx", "cpu"),
        ([*RNG, "-smp", "2"], "it had 1 processors, and has 2", "smp"),
        ([*RNG, "-m", str(MEMORY * 2)], f"it had {MEMORY} MiB of memory, and has {MEMORY * 2}", "ram"),
    ],
)
def test_another_machine_than_the_guest_s_is_refused_before_a_byte(
    tmp_path: Path, rig: Rig, args: list[str], said: str, part: str
) -> None:
    assert_refused(tmp_path, rig, [*rig.args(rig.overlay, rig.second), *args], said, f"--force {part}")


@pytest.mark.parametrize("machine", ["pc-q35-7.2", "pc-i440fx-7.1"])
def test_another_machine_type_is_told_before_what_is_elsewhere_on_it(tmp_path: Path, rig: Rig, machine: str) -> None:
    args = [*rig.args(rig.overlay, rig.second), *RNG, "-machine", machine]
    said = f"this QEMU's machine is {machine}, and the guest's was {MACHINE[1]}\n"
    assert_refused(tmp_path, rig, args, said, f"hint: start QEMU with -machine {MACHINE[1]}")


def test_a_disk_that_another_process_serves_is_known_by_its_socket(tmp_path: Path, qemu: str) -> None:
    """No block node of QEMU's tells of it."""
    if shutil.which("qemu-storage-daemon") is None:
        pytest.skip("qemu-storage-daemon is not installed")
    disk, place = tmp_path / "disk", tmp_path / "disk.sock"
    disk.write_bytes(bytes(1 << 20))
    export = f"type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={place},writable=on"
    memory = ["-object", "memory-backend-memfd,id=m,size=128M,share=on", "-machine", "memory-backend=m"]
    device = ["-chardev", f"socket,id=c,path={place}", "-device", "vhost-user-blk-pci,chardev=c"]
    command = ["qemu-storage-daemon", "--blockdev", f"driver=file,filename={disk},node-name=f", "--export", export]
    with subprocess.Popen(command) as server:
        try:
            wait_for("socket", place.exists)
            with (
                Guest(tmp_path, qemu=qemu, args=[*memory, *device]) as guest,
                closing(Monitor(guest.socket)) as monitor,
            ):
                [image] = [row for row in images(monitor).rows if not row.is_file]
        finally:
            server.kill()
    assert (image.path, image.driver, len(image.devices or ())) == (f"unix:{place}", "vhost-user", 1)


def boxed(folder: Path, qemu: str) -> Path:
    """A program that is QEMU where the folder `out` is `in`."""
    program = folder / "boxed-qemu"
    mount = f'mount --bind "{folder}/in" "{folder}/out" && exec "$@"'
    program.write_text(f"#!/bin/sh\nexec unshare -Urm sh -c '{mount}' sh {qemu} \"$@\"\n")
    program.chmod(0o755)
    if subprocess.run([program, "--version"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    return program


def test_a_disk_in_a_container_is_looked_at_in_there(tmp_path: Path, qemu72: str) -> None:
    """A file of the same name out here is not the guest's."""
    disk, decoy, state = tmp_path / "in" / "disk", tmp_path / "out" / "disk", tmp_path / "state"
    for path in (disk, decoy):
        path.parent.mkdir()
        path.write_bytes(os.urandom(4 << 20))
    box, args = str(boxed(tmp_path, qemu72)), ["-drive", f"file={decoy},format=raw,if=virtio"]
    with Guest(tmp_path, qemu=box, memory=MEMORY, fill=8, dirty=2, args=args) as guest:
        guest.wait_ticks(2)
        done = run_statepipe("save", "--qmp", guest.socket, state)
        assert done.returncode == 0, done.stderr
        saved = Saved(state, guest.image, guest.serial(), box)
    decoy.write_bytes(b"nobody's")
    with loaded(tmp_path, saved, args=args) as guest:
        guest.wait_ticks(2)
        assert_continues(saved.before, guest.serial())
    disk.write_bytes(disk.read_bytes()[:-1] + b"!")
    done = run_load(tmp_path, saved, args=args)
    assert done.returncode == 1, done.stderr
    assert f"disks changed since the state was saved: {decoy}: its content changed" in done.stderr
    assert_never_ran(tmp_path)


def test_two_flashes_that_were_swapped_are_refused_and_not_written(tmp_path: Path, qemu72: str) -> None:
    """QEMU writes what the guest has in its flash to whatever file is in that place."""
    flashes = [tmp_path / "code", tmp_path / "vars"]
    for number, flash in enumerate(flashes):
        flash.write_bytes(bytes([number]) * (256 << 10))

    def args(*files: Path) -> list[str]:
        return [word for file in files for word in ("-drive", f"if=pflash,format=raw,file={file}")]

    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, args=["-S", *args(*flashes)]) as guest:
        done = run_statepipe("save", "--qmp", guest.socket, tmp_path / "s")
        assert done.returncode == 0, done.stderr
        image = guest.image
    before = [flash.read_bytes() for flash in flashes]
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, image=image, args=args(*flashes[::-1]), incoming="defer") as other:
        done = run_statepipe("load", "--qmp", other.socket, tmp_path / "s")
    assert done.returncode == 1 and "system.flash0" in done.stderr, done.stderr
    assert [flash.read_bytes() for flash in flashes] == before
