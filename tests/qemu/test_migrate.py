"""migrate and receive, as people run them: a real guest between two real QEMUs over TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest import parse_ticks
from tests.qemu.harness import Guest, assert_unbroken
from tests.qemu.moving import Credentials, mover, receiver


def waiting(folder: Path, qemu: str, source: Guest) -> Guest:
    return Guest(folder, qemu=qemu, image=source.image, incoming="defer", args=["-S"])


def assert_moved(source: Guest, target: Guest) -> None:
    """The guest ticks there alone, and no tick was lost on the way."""
    target.wait_ticks(3)
    silent = source.serial()
    target.wait_ticks(3)
    assert source.serial() == silent
    assert_unbroken(parse_ticks(silent + target.serial()))


@pytest.mark.parametrize("words", [(), ("zstd:1",), ("--offline",), ("--links", "2", "throttle:400M")])
def test_a_guest_moves(tmp_path: Path, qemu: str, credentials: Credentials, words: tuple[str, ...]) -> None:
    with Guest(tmp_path, qemu=qemu, dirty=2) as source, waiting(tmp_path, qemu, source) as target:
        source.wait_ticks(3)
        receiving, port = receiver(credentials, "--qmp", target.socket)
        with receiving, mover(credentials, source, port, *words) as moving:
            assert moving.wait() == 0, moving.said
            assert receiving.wait() == 0, receiving.said
        assert_moved(source, target)
        assert source.run_state() == "postmigrate"
