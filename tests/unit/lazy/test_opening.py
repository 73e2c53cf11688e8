"""What a QEMU gets before any page."""

from __future__ import annotations

from pathlib import Path

from statepipe.formats.qemu.postcopy import Block, command
from statepipe.lazy.opening import opening
from statepipe.state.pagestore import open_pages
from tests import streams
from tests.statefiles import NO_KEYS, cut, noise, state_file

SWITCHOVER_START = command(11)


def test_of_the_commands_of_the_save_only_the_one_that_prepares_devices_is_kept(tmp_path: Path) -> None:
    pages = [streams.ram(noise(0, "pc.ram")), streams.ram(noise(1, "pc.ram"), kind=3)]
    saved = streams.head() + command(1) + streams.ram_start() + pages[0] + SWITCHOVER_START + pages[1]
    path = tmp_path / "state"
    path.write_bytes(state_file(cut(saved + streams.devices() + b"\0", 3), index=True))
    with open_pages(str(path), NO_KEYS) as store:
        first, last = opening(store, [Block(name, length) for name, length in streams.BLOCKS])
    written = first + last
    before, found, package = written.partition(SWITCHOVER_START)
    assert found and streams.ram_start()[:5] in before and streams.devices() in package
    assert written.count(command(1)) == 1, "a return path is opened twice"
    assert first.endswith(DISCARD), "QEMU would give huge pages to what is sent after this"


DISCARD = bytes.fromhex("08 0006 0019 00 06") + b"pc.ram" + bytes(9) + (4096).to_bytes(8, "big")
"""Of the first page of pc.ram."""
