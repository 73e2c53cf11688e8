"""What a guest would miss in another machine than it was saved in."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from statepipe.qemu.guest import changed_words, changes, hardware
from statepipe.qemu.monitor import Monitor
from tests.qmpserver import QmpServer

SAVED: dict[str, Any] = {
    "cpu": {"type": "max-x86_64-cpu", "features": {"0x1:ECX": 1 << 28}, "missing": {}},
    "cpus": ["core 1", "first"],
    "devices": ["isa-serial at isa.0", "virtio-blk-pci at pci.0 02.0", "virtio-blk-pci at pci.0 03.0"],
    "ram": 128 << 20,
}


@pytest.mark.parametrize(
    ("now", "part", "words"),
    [
        ({"cpu": SAVED["cpu"] | {"type": "qemu64-x86_64-cpu"}}, "cpu", "was max-x86_64-cpu, and is qemu64-x86_64-cpu"),
        ({"cpu": SAVED["cpu"] | {"features": {}}}, "cpu", "lacks avx"),
        ({"cpus": ["first"]}, "smp", "it had 2 processors, and has 1"),
        ({"cpus": ["first", "socket 1"]}, "smp", "it had processors at core 1, and has them at socket 1"),
        ({"ram": 64 << 20}, "ram", "it had 128 MiB of memory, and has 64"),
        ({"devices": SAVED["devices"][:2]}, "devices", "it lacks virtio-blk-pci at pci.0 03.0"),
    ],
)
def test_what_a_guest_would_miss_is_told(now: dict[str, Any], part: str, words: str) -> None:
    [(found, reason)] = changes(SAVED, SAVED | now)
    assert found == part and words in reason


@pytest.mark.parametrize("now", [{}, {"devices": [*SAVED["devices"], "e1000 at pci.0 04.0"]}])
def test_the_same_and_more_is_enough(now: dict[str, Any]) -> None:
    assert list(changes(SAVED, SAVED | now)) == []
    assert list(changes({"ram": None}, SAVED)) == [], "a state that says nothing of it"


@pytest.mark.parametrize(
    ("saved", "now", "parts"),
    [
        (["-cpu", "max"], ["-cpu", "qemu64"], ["cpu"]),
        (["-cpu", "max,-avx"], ["--cpu", "max"], []),
        (["-cpu", "host"], [], ["cpu"]),
        (["-append", "-cpu", "-cpu", "max"], ["-cpu", "max"], []),
        (["-smp", "2"], ["-smp", "cpus=2,cores=2"], []),
        (["-smp", "4"], [], ["smp"]),
        (["-smp", "cores=4"], ["-smp", "4"], []),
    ],
)
def test_command_lines_tell_of_processors(saved: list[str], now: list[str], parts: list[str]) -> None:
    assert [part for part, _ in changed_words(["qemu", *saved], ["qemu", *now])] == parts


@pytest.mark.parametrize(("enabled", "accelerator"), [("kvm", "kvm"), ("tcg", "tcg")])
def test_a_qemu_without_query_kvm_tells_its_accelerator(server: QmpServer, enabled: str, accelerator: str) -> None:
    """QEMU 11.0 deprecates it, so a later one will not have it."""
    server.answers |= {"query-kvm": server.refused, "query-accelerators": {"enabled": enabled, "present": ["tcg"]}}
    with closing(Monitor(server.path)) as monitor:
        assert hardware(monitor)["accelerator"] == accelerator
