"""The destination's half with a QEMU that answers as it is told to: what it hears, and what it says of the guest."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from statepipe.errors import QemuError
from statepipe.migration.destination import Arrival
from statepipe.qemu.monitor import Monitor
from statepipe.recovery import handover
from statepipe.recovery.handover import Destination, Event
from statepipe.recovery.journal import Journal
from tests.qemu.peers import QUICK, two_ends
from tests.qmpserver import SILENT, QmpServer


@pytest.fixture
def server(server: QmpServer) -> QmpServer:
    """Of a QEMU that takes a guest, and never has all of it."""

    def load(stream: socket.socket) -> None:
        while stream.recv(1 << 16):
            continue

    server.migrates(load, "migrate-incoming")
    server.answers |= {"query-status": {"status": "inmigrate"}, "query-migrate": {"status": "active"}}
    return server


def arrived(server: QmpServer, *says: Event) -> Arrival:
    """The half that hears so much of a source which leaves then, at its end."""

    def end() -> None:
        """As QEMU when it ends: else whoever follows its migration would wait as long as it may."""
        server.answers["query-migrate"] = {"status": "failed"}
        server.event("failed")

    with two_ends(QUICK) as (source, destination, _), closing(Monitor(server.path)) as monitor:
        for event in says:
            source.tell({"event": event.name})
        source.fall_silent()
        source.session.say_close()
        side = handover.destination()
        for event in (Event.OFFER, Event.BEGIN):
            side.hear(event)
        half = Arrival(monitor, destination, [], Journal(None, {}, ()), end, side=side, runs=True)
        ended = half.run()
        assert ended is (Destination.UNSURE if half.ran else Destination.ENDED)
        return half


def test_a_source_that_says_more_than_there_are_steps_is_left(server: QmpServer) -> None:
    half = arrived(server, *[Event.ASK] * (len(Event) + 1))
    assert str(half.cause) == "the other host sent more messages than a migration has steps"


@pytest.mark.parametrize("state", ["running", "paused"])
def test_qemu_is_asked_before_its_guest_is_said_never_to_have_run(
    server: QmpServer, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statepipe.qemu.connection.HURRY", 10.0)  # a busy host is no QEMU that is silent
    server.answers["query-status"] = {"status": state}
    half = arrived(server, Event.ABORT)
    assert half.ran == (state == "running")
    assert ("the guest ran here before the source allowed it" in str(half.cause)) == half.ran


@pytest.mark.parametrize(
    ("came_as", "runs", "now", "ran"),
    [
        ("paused", True, "io-error", True),  # it has written to its disks
        ("paused", True, "guest-panicked", True),
        ("io-error", False, "io-error", False),  # so it was over there
        ("suspended", True, "suspended", False),
        ("paused", True, "paused", False),
        ("inmigrate", True, "inmigrate", False),
    ],
)
def test_a_guest_that_was_stopped_by_what_it_did_has_run(
    server: QmpServer, came_as: str, runs: bool, now: str, ran: bool
) -> None:
    server.answers |= {"query-status": {"status": came_as}, "query-migrate": {"status": "completed"}}
    with two_ends(QUICK) as (_, destination, _), closing(Monitor(server.path)) as monitor:
        side = handover.destination()
        half = Arrival(monitor, destination, [], Journal(None, {}, ()), lambda: None, side=side, runs=runs)
        with half._ours, half._theirs:
            half._follow()
            server.answers["query-status"] = {"status": now}
            half._see_ended()
        half._join(None)
        assert half.ran == ran
        assert half.told_of_guest == ("until it is ended, its guest runs here" if ran else "its guest never ran")


def told(server: QmpServer, *events: tuple[str, str], follows: bool = True) -> tuple[Arrival, list[Event]]:
    """The half whose stream is verified, and what it makes of these events of QEMU's, alone or with what it asks."""
    with two_ends(QUICK) as (_, destination, _), closing(Monitor(server.path)) as monitor:
        side = handover.destination()
        half = Arrival(monitor, destination, [], Journal(None, {}, ()), lambda: None, side=side, runs=True)
        with half._ours, half._theirs:
            monitor.on_events(half._hear)
            monitor.expect_incoming()
            half._has("stream")
            for status, name in events:
                server.event(status, name)
            monitor.run_state()  # its answer comes after the events
            server.commands()
            if not follows:
                pass
            elif any(name == "RESUME" for _, name in events[:1]):
                with pytest.raises(QemuError, match="ran here before the source allowed it"):
                    half._follow()
            else:
                half._follow()
        half._join(None)
        return half, [half._events.get(timeout=60)[0] for _ in range(half._events.qsize())]


@pytest.mark.parametrize("follows", [False, True])
def test_a_guest_that_is_here_is_so_by_an_event(server: QmpServer, follows: bool) -> None:
    """It stands still, and an answer of a QEMU that has just loaded a guest takes milliseconds: QEMU is asked later."""
    half, events = told(server, ("completed", "MIGRATION"), follows=follows)
    assert events == [Event.COMPLETED] and not half.ran
    assert ("query-status" in server.commands()) == follows


def test_a_guest_that_qemu_ran_as_soon_as_it_was_there_is_seen_by_an_event(server: QmpServer) -> None:
    half, events = told(server, ("", "RESUME"), ("completed", "MIGRATION"))
    assert events == [] and half.ran
    assert server.commands()[-1] == "query-status", "its answer comes after QEMU's last word to the source"


def test_a_guest_that_is_run_once_it_is_here_is_no_failure_yet(server: QmpServer) -> None:
    """The word to run it may be ours. Before it is said never to have run, QEMU is asked."""
    half, events = told(server, ("completed", "MIGRATION"), ("", "RESUME"))
    assert events == [Event.COMPLETED] and not half.ran


RESUMED, COMPLETED, STOPPED = ("", "RESUME"), ("completed", "MIGRATION"), ("", "STOP")


@pytest.mark.parametrize(
    ("events", "now", "ran"),
    [
        ([RESUMED, COMPLETED, STOPPED], "paused", True),
        ([RESUMED, COMPLETED], None, True),  # a QEMU that answers no more
        ([COMPLETED, RESUMED, STOPPED], "paused", True),
        ([COMPLETED], "paused", False),
        ([COMPLETED], None, False),
    ],
)
def test_what_was_heard_of_a_guest_holds_to_the_end(
    server: QmpServer, monkeypatch: pytest.MonkeyPatch, events: list[tuple[str, str]], now: str | None, ran: bool
) -> None:
    """A guest that another client let run has run, whatever state it is in when the source gives up."""
    monkeypatch.setattr("statepipe.qemu.connection.HURRY", 10.0 if now else 0.5)
    with two_ends(QUICK) as (_, destination, _), closing(Monitor(server.path)) as monitor:
        side = handover.destination()
        half = Arrival(monitor, destination, [], Journal(None, {}, ()), lambda: None, side=side, runs=True)
        with half._ours, half._theirs:
            monitor.on_events(half._hear)
            monitor.expect_incoming()
            half._has("stream")
            for status, name in events:
                server.event(status, name)
            monitor.run_state()
            server.answers["query-status"] = {"status": now} if now else SILENT
            half._see_ended()
        half._join(None)
        assert half.ran == ran
        assert [half._events.get(timeout=60)[0] for _ in range(half._events.qsize())][-1] is Event.ENDED


@pytest.mark.parametrize(("now", "ran"), [("io-error", False), ("running", True), ("guest-panicked", True)])
def test_a_guest_that_came_with_an_error_has_not_run_for_that(server: QmpServer, now: str, ran: bool) -> None:
    server.answers |= {"query-status": {"status": "io-error"}, "query-migrate": {"status": "completed"}}
    with two_ends(QUICK) as (_, destination, _), closing(Monitor(server.path)) as monitor:
        side = handover.destination()
        half = Arrival(monitor, destination, [], Journal(None, {}, ()), lambda: None, side=side, runs=True)
        with half._ours, half._theirs:
            half._hear("completed")
            half._follow()
            server.answers["query-status"] = {"status": now}
            half._see_ended()
        half._join(None)
        assert half.ran == ran
