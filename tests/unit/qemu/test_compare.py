"""Both hosts' facts side by side: each row fails for its one reason, and what was not seen is not ok."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from statepipe.qemu.compare import FAIL, LATE_DISKS, NEEDED, OK, WARN, compare, visible, worst
from statepipe.qemu.guest import bits
from statepipe.qemu.places import for_a_look

Facts = dict[str, Any]

DISK = {"path": "/d/a.img", "format": "raw", "size": 9, "inode": 7, "locked": True, "devices": ["pci.0 03.0"]}
BASE = {"path": "/d/base", "format": "qcow2", "size": 9, "locked": True, "devices": [], "samples_blake3": "aa"}
NBD = {"path": "nbd://a/e", "driver": "nbd", "unknown": "nbd keeps it", "size": 9, "devices": ["pci.0 04.0"]}
TSC = 2_600_000_000
HOST: Facts = {
    "host": "a",
    "guest": {"qemu": "7.2.22 (Debian)", "machine": "pc-i440fx-7.2", "ram": 1 << 30},
    "arch": "x86_64",
    "accelerator": "kvm",
    "cpu": {"type": "qemu64-x86_64-cpu", "features": {"0x80000001:EDX": 1 << 20 | 1 << 29}, "missing": {}, "tsc": TSC},
    "command": ["qemu-system-x86_64", "-m", "1024", "-qmp", "unix:/a", "-drive", "file=/d/a.img"],
    "capabilities": [*NEEDED, LATE_DISKS, "xbzrle"],
    "blocked": [],
    "cpus": ["core 1", "first"],
    "devices": ["e1000 at pci.0 02.0"],
    "disks": [DISK],
    "temporary": False,
    "machine": "x86_64",
    "memory_free": 8 << 30,
    "clock": 1000.0,
    "clocksource": "tsc",
    "tsc_scales": False,
    "taps": {"tap0": ["192.0.2.0/24"]},
}


def changed(**changes: Any) -> Facts:
    """HOST with other facts; a name such as cpu__type reaches one level in."""
    facts = copy.deepcopy(HOST)
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        (facts[outer] if inner else facts)[inner or outer] = value
    return facts


def rows(source: Facts, destination: Facts) -> dict[str, tuple[str, str]]:
    return {finding.what: (finding.level, finding.reason) for finding in compare(source, destination)}


def test_two_hosts_alike_are_ok() -> None:
    found = compare(HOST, changed(host="b"))
    assert {finding.level for finding in found} == {OK}
    assert worst(found) == OK


LOG = {"path": "/l", "option": "-serial", "inode": 5}
LOGS = changed(places=[LOG | {"held": True}])
"""QEMU has a file of the host's."""

SERIAL = changed(command=[*HOST["command"], "-serial", "file:/a"])
"""The guest has a serial line."""

CASES: list[tuple[str, Facts, Facts, str, str]] = [
    ("QEMU", HOST, changed(guest__qemu="10.0.2 (x)"), OK, "newer"),
    ("QEMU", changed(guest__qemu="10.0.2 (x)"), HOST, WARN, "only the way to a newer"),
    ("machine type", HOST, changed(guest__machine="pc-q35-7.2"), FAIL, "-machine pc-i440fx-7.2"),
    ("architecture", HOST, changed(arch="i386"), FAIL, "i386"),
    ("architecture", HOST, changed(machine="i686"), WARN, "64-bit guest"),
    ("accelerator", HOST, changed(accelerator="tcg"), WARN, "tcg"),
    ("CPU", HOST, changed(cpu__type="EPYC-x86_64-cpu"), FAIL, "same -cpu"),
    ("CPU", HOST, changed(cpu__features={"0x80000001:EDX": 1 << 29}), FAIL, "lacks nx"),
    ("CPU", HOST, changed(cpu__features={}), FAIL, "nx, lm"),
    ("command line", HOST, changed(command=None), WARN, "may not read"),
    ("command line", HOST, changed(command=[*HOST["command"], "-device", "e1000"]), WARN, "only there: -device e1000"),
    ("command line", changed(command=[*HOST["command"], "-usb"]), HOST, WARN, "only here: -usb"),
    ("command line", HOST, changed(command=[*HOST["command"], "-nodefaults"]), WARN, "only there: -nodefaults"),
    ("command line", HOST, changed(command=[*HOST["command"], "-uuid", "1-2"]), WARN, "only there: -uuid 1-2"),
    ("command line", SERIAL, changed(command=[*SERIAL["command"], "-serial", "null"]), WARN, "only there: -serial"),
    ("command line", SERIAL, HOST, WARN, "only here: -serial"),
    ("command line", SERIAL, changed(command=[*HOST["command"], "-serial", "none"]), WARN, "only there: -serial none"),
    ("command line", SERIAL, changed(command=[*HOST["command"], "--serial", "file:/b"]), OK, "the same"),
    ("capabilities", HOST, changed(capabilities=["events"]), FAIL, "the destination's QEMU has no return-path"),
    ("capabilities", HOST, changed(capabilities=NEEDED), FAIL, "the destination's QEMU has no late-block-activate"),
    ("capabilities", HOST, changed(capabilities=NEEDED, guest__qemu="10.0.2 (Debian)"), OK, "both have"),
    ("devices", changed(blocked=["VFIO device"]), HOST, FAIL, "VFIO device"),
    ("disks", changed(temporary=True), HOST, FAIL, "-snapshot"),
    ("disks", changed(disks=[]), HOST, OK, "none"),
    ("disk /d/a.img", HOST, changed(disks=[]), FAIL, "no such disk"),
    ("disk /d/a.img", HOST, changed(disks=[{"path": "/d/a.img", "unknown": "No such file"}]), FAIL, "No such file"),
    ("disk /d/a.img", HOST, changed(disks=[DISK | {"size": 8}]), FAIL, "another disk: its size differs there"),
    ("disk /d/a.img", HOST, changed(disks=[DISK | {"format": "qcow2"}]), FAIL, "raw here, qcow2 there"),
    ("disk /d/a.img", HOST, changed(disks=[DISK | {"devices": ["pci.0 05.0"]}]), FAIL, "at pci.0 05.0 there"),
    ("disk /d/a.img", HOST, changed(disks=[DISK | {"devices": []}]), FAIL, "at below another image there"),
    ("disk /d/a.img", HOST, changed(disks=[DISK | {"locked": False}]), FAIL, "a copy, not shared"),
    ("disk /d/a.img", HOST, changed(disks=[DISK | {"locked": None}]), WARN, "the content was not compared"),
    ("disk /d/a.img", HOST, changed(disks=[DISK | {"inode": 8}]), WARN, "it may be two files, each in use"),
    ("disk /d/a.img", changed(disks=[DISK | {"locked": None}]), HOST, WARN, "no lock"),
    ("disk /d/a.img", changed(disks=[{"path": "/d/a.img", "unknown": "denied"}]), HOST, WARN, "denied"),
    ("disk /d/base", changed(disks=[BASE]), changed(disks=[BASE | {"locked": False}]), OK, "the same content"),
    ("disk /d/base", changed(disks=[BASE]), changed(disks=[BASE | {"samples_blake3": "b"}]), FAIL, "content differs"),
    ("disk nbd://a/e", changed(disks=[NBD]), changed(disks=[NBD]), WARN, "cannot tell whether both hosts"),
    ("disk nbd://a/e", changed(disks=[NBD]), changed(disks=[NBD | {"path": "nbd://b/e"}]), WARN, "is nbd://b/e there"),
    ("disk nbd://a/e", changed(disks=[NBD]), changed(disks=[NBD | {"size": 8}]), FAIL, "its size differs there"),
    ("disk nbd://a/e", changed(disks=[NBD]), HOST, FAIL, "no such disk"),
    ("processors", HOST, changed(cpus=["first"]), FAIL, "the source has 2 processors, the destination has 1"),
    ("processors", HOST, changed(cpus=["first", "socket 1"]), FAIL, "at core 1, the destination has them at"),
    ("devices", changed(devices=["a at b", *HOST["devices"]]), HOST, FAIL, "it lacks a at b"),
    ("devices", HOST, changed(devices=["a at b", *HOST["devices"]]), WARN, "only there: a at b"),
    ("devices", HOST, changed(devices=None), WARN, "cannot be compared"),
    ("memory", HOST, changed(guest__ram=2 << 30), FAIL, "1.0 GiB of RAM, QEMU there 2.0 GiB"),
    ("memory", HOST, changed(memory_free=1 << 29), FAIL, "512 MiB free"),
    ("memory", HOST, changed(memory_free=None), WARN, "is unknown"),
    ("-serial /l", LOGS, LOGS | {"places": [LOG]}, FAIL, "both hosts see it; QEMU there would empty or replace it"),
    ("-serial /l", LOGS, LOGS, WARN, "QEMU there has it too"),
    ("-serial /l", HOST, LOGS | {"places": [LOG | {"busy": True}]}, FAIL, "another process listens there"),
    ("clock", HOST, changed(clock=990.0), WARN, "10.0 s behind"),
    ("clock source", HOST, changed(clocksource="hpet"), WARN, "hpet"),
    ("TSC", HOST, changed(cpu__tsc=TSC + 500_000), OK, "2600.0 MHz on both"),
    ("TSC", HOST, changed(cpu__tsc=3_000_000_000), WARN, "cannot scale it"),
    ("TSC", HOST, changed(cpu__tsc=3_000_000_000, tsc_scales=True), OK, "the destination's processor scales it"),
    ("TSC", HOST, changed(cpu__tsc=3_000_000_000, tsc_scales=None), WARN, "not known"),
    ("TSC", HOST, changed(cpu__tsc=None), WARN, "unknown there"),
    ("network tap0", HOST, changed(taps={}), WARN, "no tap of this name"),
    ("network tap0", HOST, changed(taps={"tap0": ["198.51.100.0/24"]}), WARN, "may not be reached"),
]


@pytest.mark.parametrize(("what", "source", "destination", "level", "words"), CASES)
def test_a_difference_is_told(what: str, source: Facts, destination: Facts, level: str, words: str) -> None:
    found, reason = rows(source, destination)[what]
    assert (found, words in reason) == (level, True), reason


def test_features_that_a_host_cannot_give_are_told() -> None:
    found = [f for f in compare(HOST, changed(cpu__missing={"0x7:EBX": 1 << 5})) if f.what == "CPU"]
    assert [finding.level for finding in found] == [WARN, OK] and "avx2" in found[0].reason


def test_a_tsc_that_is_made_of_the_host_s_clock_is_no_matter() -> None:
    assert "TSC" not in rows(changed(cpu__tsc=None), changed(cpu__tsc=None))


def test_the_worst_row_counts() -> None:
    assert worst(compare(HOST, changed(memory_free=1))) == FAIL
    assert worst(compare(HOST, changed(memory_free=None))) == WARN


def test_a_bit_without_a_name_is_told_by_its_number() -> None:
    assert list(bits({"0xd.1:EAX": 0b101}, {"0xd.1:EAX": 1})) == ["CPUID 0xd.1:EAX bit 2"]


@pytest.mark.parametrize(
    "monitor",
    [
        ["-qmp-pretty", "stdio"],
        ["-object", "monitor-qmp,id=q,chardev=c"],
        ["-object", "id=q,qom-type=monitor-hmp,chardev=c"],
        ["-object", '{"qom-type": "monitor-qmp", "id": "q", "chardev": "c"}'],
        ["-object", "{'chardev':'c','id':'q','qom-type':'monitor-qmp'}"],
    ],
)
def test_a_monitor_is_no_part_of_the_guest(monitor: list[str]) -> None:
    """QEMU 11.1 makes monitors with -object too."""
    assert visible(["qemu", "-m", "64", *monitor]) == [("-m", "64")]
    assert for_a_look(["qemu", *monitor, "-m", "64"])[:3] == ["qemu", "-m", "64"]


def test_an_object_that_only_sounds_like_a_monitor_is_one_of_the_guest() -> None:
    for value in ("memory-backend-ram,id=monitor-qmp,size=1M", "secret,id=q,data=qom-type monitor-qmp"):
        assert visible(["qemu", "-object", value]) == [("-object", value)]


def test_the_order_of_options_and_the_hosts_own_ones_do_not_count() -> None:
    one = ["qemu", "-m", "64", "--usb", "-qmp", "unix:/a", "-S"]
    other = ["/opt/qemu", "-usb", "-incoming", "defer", "-m", "64"]
    assert visible(one) == visible(other) == [("-m", "64"), ("-usb",)]
