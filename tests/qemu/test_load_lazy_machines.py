"""load --lazy of guests with several blocks of memory of all kinds and several processors."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_continues, run_statepipe, wait_for
from tests.qemu.loading import MEMORY, Saved, assert_never_ran, loaded, run_load, save_guest

SIZE = f"size={MEMORY}M"
NVDIMM = "nvdimm"
"""Saved by QEMU 7.2 alone. QEMU 10.0.2 and 11.1.3 abort in most migrations of a TCG guest with one, also without
statepipe, in the migration thread (`migrate exec:cat>/dev/null`: "tlb_reset_dirty_range_all: Assertion `block ==
qemu_get_ram_block(end - 1)' failed"). They do load one."""

MACHINES = {
    "q35": ["-M", "q35", "-smp", "4", "-device", "virtio-vga", "-device", "virtio-net-pci"],
    "memfd": [
        "-object",
        f"memory-backend-memfd,id=m,{SIZE}",
        "-M",
        "q35,memory-backend=m",
        "-device",
        "virtio-gpu-pci",
    ],
    "two nodes": [
        *("-object", f"memory-backend-ram,id=a,size={MEMORY // 2}M", "-numa", "node,memdev=a"),
        *("-object", f"memory-backend-memfd,id=b,size={MEMORY // 2}M,share=on", "-numa", "node,memdev=b"),
    ],
    "file in memory": [
        "-object",
        f"memory-backend-file,id=m,{SIZE},mem-path=TMPFS/ram,share=on",
        "-M",
        "pc,memory-backend=m",
    ],
    "memory devices": [
        *("-M", "q35", "-m", f"{MEMORY},slots=2,maxmem=1G"),
        *("-object", "memory-backend-memfd,id=v,size=64M,share=on"),
        *("-device", "virtio-mem-pci,memdev=v,requested-size=16M", "-device", "virtio-balloon-pci"),
    ],
    "one thread for four processors": [
        *("-accel", "tcg,thread=single", "-smp", "4", "-device", "e1000e", "-device", "qemu-xhci"),
        *("-device", "usb-tablet", "-device", "virtio-rng-pci"),
    ],
    NVDIMM: [
        *("-M", "pc-i440fx-7.2,nvdimm=on", "-m", f"{MEMORY},slots=1,maxmem=1G"),
        *("-object", "memory-backend-ram,id=n,size=16M", "-device", "nvdimm,memdev=n"),
    ],
}


@pytest.mark.parametrize("machine", MACHINES)
def test_machines(tmp_path: Path, qemu72: str, qemu: str, machine: str) -> None:
    """Each has several blocks of RAM."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        args = [word.replace("TMPFS", folder) for word in MACHINES[machine]]
        saved = save_guest(tmp_path, qemu72 if machine == NVDIMM else qemu, args=args)
        with loaded(tmp_path, saved, "--lazy", qemu=qemu, args=args) as guest:
            wait_for("all memory", lambda: "all memory is loaded" in guest.stderr())
            guest.wait_ticks(2)
            assert_continues(saved.before, guest.serial())


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """128 MiB of them."""
    count = Path("/proc/sys/vm/nr_hugepages")
    before = count.read_text()
    try:
        count.write_text("64")
    except PermissionError:
        pytest.skip("only root can reserve huge pages")
    try:
        if int(count.read_text()) < MEMORY // 2:
            pytest.skip("this host has no room for huge pages")
        yield
    finally:
        count.write_text(before)


@pytest.mark.usefixtures("huge_pages")
def test_huge_pages_are_refused_before_qemu_has_received_anything(tmp_path: Path, state: Saved) -> None:
    memory = f"memory-backend-memfd,id=pc.ram,{SIZE},hugetlb=on,hugetlbsize=2M,share=on"
    args = ["-object", memory, "-machine", "memory-backend=pc.ram"]
    done = run_load(tmp_path, state, "--lazy", args=args)
    assert done.returncode == 6 and "'pc.ram' is in pages of 2048 KiB" in done.stderr, done.stderr
    assert "without huge pages" in done.stderr and "--lazy=auto" in done.stderr
    assert_never_ran(tmp_path)
    with loaded(tmp_path, state, "--lazy=auto", args=args) as guest:
        guest.wait_ticks(2)
        assert "warning: all memory is loaded first: the guest's memory 'pc.ram'" in guest.stderr()
        assert_continues(state.before, guest.serial())


@pytest.fixture
def disk_of_another(tmp_path: Path) -> Iterator[Sequence[str]]:
    """The options for a disk that qemu-storage-daemon serves (vhost-user), to one QEMU after the other."""
    if (program := shutil.which("qemu-storage-daemon")) is None:
        pytest.skip("qemu-storage-daemon is not installed")
    disk, place = tmp_path / "disk", Path(tempfile.mkdtemp(prefix="vhost-"), "socket")
    disk.write_bytes(bytes(1 << 20))
    export = f"type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path={place}"
    command = [program, "--blockdev", f"driver=file,filename={disk},node-name=f", "--export", export]
    memory = f"memory-backend-memfd,id=pc.ram,{SIZE},share=on"
    try:
        with subprocess.Popen(command) as daemon:
            try:
                wait_for("the disk's socket", place.exists)
                yield [
                    *("-object", memory, "-machine", "memory-backend=pc.ram"),
                    *("-chardev", f"socket,id=v,path={place}", "-device", "vhost-user-blk-pci,chardev=v"),
                ]
            finally:
                daemon.kill()
    finally:
        shutil.rmtree(place.parent)


def test_a_device_of_another_process_is_not_lost(tmp_path: Path, qemu: str, disk_of_another: Sequence[str]) -> None:
    """QEMU does not refuse it: the guest would run, and its disk be gone."""
    with Guest(tmp_path, qemu=qemu, memory=MEMORY, fill=8, dirty=2, args=disk_of_another) as guest:
        guest.wait_ticks(2)
        assert run_statepipe("save", "--qmp", guest.socket, tmp_path / "state").returncode == 0
        saved = Saved(tmp_path / "state", guest.image, guest.serial(), qemu)
    done = run_load(tmp_path, saved, "--lazy", args=disk_of_another)
    assert done.returncode == 6 and "the guest has a device that another process" in done.stderr, done.stderr
    assert "(vhost-user-blk-pci)" in done.stderr and "--lazy=auto" in done.stderr
    assert_never_ran(tmp_path)
    with loaded(tmp_path, saved, "--lazy=auto", args=disk_of_another) as guest:
        guest.wait_ticks(2)
        assert_continues(saved.before, guest.serial())
        assert "warning: all memory is loaded first: the guest has a device" in guest.stderr()
        assert "vhost start failed" not in guest.stderr(), guest.stderr()


def test_a_network_of_another_process_is_refused(
    tmp_path: Path, state72: Saved, disk_of_another: Sequence[str]
) -> None:
    """Whatever that process serves: QEMU does not ask before a device uses it."""
    args = [*disk_of_another[:-2], "-netdev", "vhost-user,id=n,chardev=v"]
    done = run_load(tmp_path, state72, "--lazy", args=args)
    assert done.returncode == 6 and "the guest has a network that another process" in done.stderr, done.stderr
    assert_never_ran(tmp_path)
