"""migrate over a way that lets handshakes and greetings through and swallows the rest: no guest waits for ever."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.net.relay import Faults, relay
from tests.qemu.harness import Guest
from tests.qemu.moving import Credentials, mover, receiver, waiting

RETRY = ("--retry", "6")


@pytest.mark.parametrize("words", [(), ("--offline",)])
def test_the_guest_runs_on_here_once_nothing_gets_through_any_more(
    tmp_path: Path, qemu72: str, credentials: Credentials, words: tuple[str, ...]
) -> None:
    """With --offline it stands still from the first byte on, so it must not be for ever."""
    bytes_each = itertools.chain([1 << 20], itertools.repeat(6_000))
    with Guest(tmp_path, qemu=qemu72, dirty=8) as source, waiting(tmp_path, qemu72, source) as target:
        source.wait_ticks(3)
        receiving, port = receiver(credentials, "--qmp", target.socket, *RETRY)
        with receiving, relay(port, Faults(swallow_after=lambda: next(bytes_each))) as rail:
            with mover(credentials, source, rail.port, *words, *RETRY) as moving:
                assert moving.wait() == 5, moving.said
            assert receiving.wait() in (5, 6), receiving.said
        source.wait_ticks(3)
        assert not target.serial()
