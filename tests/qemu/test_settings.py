"""QEMU's migration settings, and their way back."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from statepipe.errors import StatepipeError
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.settings import adjust, put_back
from tests.qemu.harness import Guest


def test_what_qemu_will_not_take_back_is_told_beside_the_cause(guest: Guest) -> None:
    """A migration that still goes on, which nobody reads."""
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(Monitor(guest.socket)) as monitor:
        with (
            pytest.raises(StatepipeError, match="the cause") as caught,
            put_back(monitor, adjust(monitor, {"events": True}, {})),
        ):
            monitor.give(theirs.fileno(), "nowhere")
            monitor.execute("migrate", uri="fd:nowhere")
            raise StatepipeError("the cause", hint="one")
        assert (caught.value.hint or "").startswith("one; QEMU's migration settings are not as before: QEMU refused")
