"""How often the first link of a session is tried."""

from __future__ import annotations

import socket

import pytest

from statepipe.ends.net import Stopped
from statepipe.errors import PeerError
from statepipe.session.links import ATTEMPTS
from statepipe.session.transport import SocketTransport, Transport
from statepipe.tunnel.tunnel import Insistent


class Dial:
    """Fails so many times; then it makes a link."""

    def __init__(self, failures: int, error: PeerError | None = None) -> None:
        self.failures, self.calls = failures, 0
        self._error = error or PeerError("no way")

    def __call__(self) -> Transport:
        self.calls += 1
        if self.calls <= self.failures:
            raise self._error
        ours, theirs = socket.socketpair()
        theirs.close()
        return SocketTransport(ours, "b", "b")


def test_a_first_link_has_several_attempts() -> None:
    dial = Dial(ATTEMPTS - 1)
    Insistent(dial)().close()
    dial = Dial(ATTEMPTS)
    with pytest.raises(PeerError, match="no way"):
        Insistent(dial)()
    assert dial.calls == ATTEMPTS


def test_it_is_tried_until_its_seconds_are_over() -> None:
    dial = Dial(ATTEMPTS + 2)
    Insistent(dial, 60)().close()
    dial = Dial(1 << 30)
    with pytest.raises(PeerError, match="no way"):
        Insistent(dial, 0.3)()
    assert dial.calls > ATTEMPTS


def test_later_links_are_the_session_s_affair() -> None:
    dial = Dial(0)
    insistent = Insistent(dial, 60)
    insistent().close()
    dial.failures = 1 << 30
    with pytest.raises(PeerError, match="no way"):
        insistent()
    assert dial.calls == 2


def test_an_end_is_not_waited_for() -> None:
    dial = Dial(1 << 30, Stopped())
    with pytest.raises(Stopped):
        Insistent(dial, 60)()
    assert dial.calls == 1
