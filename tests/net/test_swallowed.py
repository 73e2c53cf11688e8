"""A way that lets each handshake and greeting through, and after that swallows all: both ends see it, and give up."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from tests.conformance.running import PATIENCE, STATEPIPE, started
from tests.net.homes import DATA, Receiver, World
from tests.net.relay import Faults, relay

FIRST = 18_000_000
"""Bytes that the first connection lets through."""

HANDSHAKE = 6_000
"""And each later one: a handshake, the greetings, and some frames."""

WORDS = ["--retry", "8", "--timeout"]
"""A session gives up after eight seconds; a link is dead after so many of silence."""


@pytest.mark.parametrize("links", ["1", "3"])
def test_both_ends_give_up(world: World, tmp_path: Path, links: str) -> None:
    out, bytes_each = tmp_path / "out", itertools.chain([FIRST], itertools.repeat(HANDSHAKE))
    command = [*STATEPIPE, "recv", "tls://127.0.0.1:0", *WORDS, "9", "-o", str(out)]
    with started(command, stdin=subprocess.DEVNULL, env=world.here.env) as process:
        receiver = Receiver(process, out)
        with relay(receiver.port, Faults(swallow_after=lambda: next(bytes_each))) as rail:
            command = [*STATEPIPE, "send", *WORDS, "4", "--links", links, f"127.0.0.1:{rail.port}"]
            with started(command, env=world.friend.env) as sender:
                said = sender.communicate(DATA, PATIENCE)[1]
            assert rail.accepted > 2
        status, told = receiver.ended()
    assert (sender.returncode, status) == (5, 5), (said, told)
    assert " for 8 s" in told, told
    assert b" for 8 s" in said or b"this session has ended" in said, said  # as the listener gave up first
    assert not out.exists()
