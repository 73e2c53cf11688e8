"""What others can make us say: so much a minute, nothing for good, and nobody hides another."""

from __future__ import annotations

from statepipe.ends.ration import LINE, MINUTE, REASONS, Ration, Refusals
from statepipe.errors import PeerError
from statepipe.session.protocol.channels import MIN_WINDOW
from statepipe.tunnel.connections import BUDGET, CONNECTIONS, MOST_WINDOW, share


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[str] = []

    def __call__(self) -> float:
        return self.now

    def new(self) -> list[str]:
        said, self.said = self.said, []
        return said


def test_a_reason_is_told_once_a_minute_whatever_address_it_has() -> None:
    clock = Clock()
    refusals = Refusals(clock.said.append, clock)
    for minute in range(1, 4):
        for host in range(200):
            where = f"192.0.2.{host}"
            refusals(where, PeerError(f"no trust between us and {where}: self-signed certificate"))
        assert clock.said == ["turned away 192.0.2.0: no trust between us and 192.0.2.0: self-signed certificate"]
        refusals("192.0.2.1", PeerError("certificate has expired"))
        assert clock.said[1:] == ["turned away 192.0.2.1: certificate has expired"]
        clock.now = minute * MINUTE
        del clock.said[:]
        refusals.look()
        assert clock.said == ["and 199 more were turned away"]
        del clock.said[:]


def test_many_reasons_are_not_told_for_ever_nor_do_they_hide_others_for_ever() -> None:
    clock = Clock()
    refusals = Refusals(clock.said.append, clock)
    for number in range(1000):
        refusals("::1", PeerError(f"reason {number}"))
    assert len(clock.said) == REASONS
    clock.now = MINUTE
    refusals("::1", PeerError("certificate revoked"))
    assert clock.said[REASONS:] == [
        f"and {1000 - REASONS} more were turned away",
        "turned away ::1: certificate revoked",
    ]


def test_a_minute_without_anybody_is_told_of_by_nobody() -> None:
    clock = Clock()
    refusals = Refusals(clock.said.append, clock)
    for _ in range(5):
        clock.now += 2 * MINUTE
        refusals.look()
    refusals.end()
    assert clock.said == []


def test_what_was_held_back_is_told_at_the_end() -> None:
    clock = Clock()
    ration = Ration(clock.said.append, 2, "{} more", clock)
    for number in range(5):
        ration.tell(number, "x" * (LINE + number))
    ration.end()
    assert clock.said == ["x" * LINE, "x" * LINE + "...", "3 more"]


# --- the windows of a tunnel


def test_all_connections_of_a_tunnel_share_one_budget() -> None:
    windows: list[int] = []
    while len(windows) < CONNECTIONS:
        windows.append(share(windows))
    assert sum(windows) <= BUDGET
    assert windows == sorted(windows, reverse=True) and windows[-1] >= MIN_WINDOW
    assert windows[0] >= 10_000_000 and windows[16] >= 4_000_000  # 1 Gbit/s over 80 ms; multifd's last


def test_a_window_is_bounded_also_where_nothing_else_is_open() -> None:
    assert MIN_WINDOW < share([]) <= MOST_WINDOW
    assert share([BUDGET]) == MIN_WINDOW
