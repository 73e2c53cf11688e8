"""What two real QEMUs have in common, as the facts of both show it before anything moves."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from statepipe.qemu.compare import FAIL, OK, WARN, compare
from statepipe.qemu.facts import gather
from statepipe.qemu.monitor import Monitor
from tests.qemu.harness import Guest

Facts = dict[str, Any]

COMPARED = {
    *("QEMU", "machine type", "architecture", "CPU", "command line", "capabilities", "memory"),
    *("devices", "processors", "clock"),
}
"""What is judged of two QEMUs on one host, beside their disks."""


@contextmanager
def facts_of(guest: Guest, disks: list[str] | None = None) -> Iterator[Facts]:
    with guest, closing(Monitor(guest.socket)) as monitor:
        yield gather(monitor, disks)


def levels(source: Facts, destination: Facts) -> dict[str, str]:
    return {finding.what: finding.level for finding in compare(source, destination)}


def test_a_destination_that_fits(tmp_path: Path, qemu: str) -> None:
    with facts_of(Guest(tmp_path, qemu=qemu)) as source:
        disks = [disk["path"] for disk in source["disks"]]
        assert len(disks) == 1 and source["disks"][0]["locked"] is True
        arrived = time.time()  # as migration/negotiation.py does: until its QEMU answers, seconds may pass
        with facts_of(Guest(tmp_path, qemu=qemu, image=Path(disks[0]), incoming="defer"), disks) as destination:
            destination["clock"] = arrived
            found = levels(source, destination)
    assert set(found) == COMPARED | {f"disk {disks[0]}"}
    assert set(found.values()) == {OK}, compare(source, destination)
    assert source["cpu"]["features"] and source["guest"]["ram"] == 128 << 20


def test_a_disk_that_is_only_a_copy(tmp_path: Path, qemu72: str) -> None:
    """Same content, same size, and nobody's lock on it: two guests would write two disks."""
    with facts_of(Guest(tmp_path, qemu=qemu72)) as source:
        path = source["disks"][0]["path"]
        copy = tmp_path / "copy.img"
        shutil.copy(path, copy)
        with facts_of(Guest(tmp_path, qemu=qemu72, image=copy, incoming="defer"), [str(copy)]) as destination:
            destination["disks"][0]["path"] = path
            assert levels(source, destination)[f"disk {path}"] == FAIL
            assert levels(source, destination)["command line"] == WARN


def test_only_its_own_disks_are_looked_at(tmp_path: Path, qemu72: str) -> None:
    """Under whatever name. Of any other file no peer is told anything."""
    link, other, nul = tmp_path / "link.img", tmp_path / "other.img", "/a\0b"
    guest = Guest(tmp_path, qemu=qemu72, incoming="defer")
    link.symlink_to(guest.image)
    shutil.copy(guest.image, other)
    names = [str(link), os.path.relpath(guest.image), str(other), "/etc/passwd", "/none", nul, "/\udc00\ud800"]
    with facts_of(guest, names) as facts:
        own, others = facts["disks"][:2], facts["disks"][2:]
    assert [disk["size"] for disk in own] == [guest.image.stat().st_size] * 2
    assert others == []


def test_differences_that_harm(tmp_path: Path, qemu72: str) -> None:
    arguments = ["-cpu", "qemu64,-nx", "-machine", "pc-q35-7.2", "-smp", "2", "-m", "64"]
    with (
        facts_of(Guest(tmp_path, qemu=qemu72, args=["-snapshot"])) as source,
        facts_of(Guest(tmp_path, qemu=qemu72, args=arguments, incoming="defer")) as destination,
    ):
        reasons = {finding.what: finding.reason for finding in compare(source, destination) if finding.level == FAIL}
    assert "nx" in reasons["CPU"]
    assert "-machine pc-i440fx-7.2" in reasons["machine type"]
    assert "-snapshot" in reasons["disks"]
    assert "same -smp" in reasons["processors"] and "same -m" in reasons["memory"]


def test_a_disk_that_its_guest_writes_to_meanwhile_is_the_same(tmp_path: Path, qemu72: str) -> None:
    """What it holds, and how much of the host's disk it takes, is another at every look."""
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    args = ["-drive", f"file={image},if=virtio"]
    with Guest(tmp_path, qemu=qemu72, args=args) as guest, closing(Monitor(guest.socket)) as monitor:
        source = gather(monitor)
        write = 'qemu-io virtio0 "write -P 7 0 4M"'
        guest.qmp("human-monitor-command", command_line=write)
        names = [disk["path"] for disk in source["disks"]]
        with facts_of(Guest(tmp_path, qemu=qemu72, image=guest.image, incoming="defer", args=args), names) as there:
            assert levels(source, there)[f"disk {image}"] == OK, compare(source, there)


def test_what_was_plugged_in_while_the_guest_ran_is_lacking_there(tmp_path: Path, qemu72: str) -> None:
    """As are two disks that were swapped there: both have the same devices, and each other's disks."""
    disks = [tmp_path / "one", tmp_path / "two"]
    for disk in disks:
        disk.write_bytes(bytes(1 << 20))
    drives = [["-drive", f"file={disk},format=raw,if=virtio"] for disk in disks]
    with Guest(tmp_path, qemu=qemu72, args=[*drives[0], *drives[1]]) as guest:
        guest.qmp("device_add", driver="virtio-rng-pci", id="r")
        with closing(Monitor(guest.socket)) as monitor:
            source = gather(monitor)
        names, swapped = [disk["path"] for disk in source["disks"]], [*drives[1], *drives[0]]
        with facts_of(Guest(tmp_path, qemu=qemu72, image=guest.image, incoming="defer", args=swapped), names) as there:
            reasons = {finding.what: finding.reason for finding in compare(source, there) if finding.level == FAIL}
    assert set(reasons) == {"devices", *(f"disk {disk}" for disk in disks)}
    assert "lacks virtio-rng-pci at pci.0 0" in reasons["devices"]


def test_a_guest_of_tcg_s_has_no_counter_of_its_own(tmp_path: Path, qemu72: str) -> None:
    with facts_of(Guest(tmp_path, qemu=qemu72)) as facts:
        assert facts["cpu"]["tsc"] is None
