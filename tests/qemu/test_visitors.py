"""What a paired peer may do to a `receive`, and to the source of a guest: say odd things, or nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from statepipe.ends.address import TLS, Address
from statepipe.ends.net import Patience
from statepipe.errors import PeerError
from statepipe.migration.contact import called
from statepipe.migration.peer import Message, Peer
from statepipe.qemu.facts import DISKS
from statepipe.recovery.handover import Destination, Source
from statepipe.session.options import ConnectionPlan
from tests.hurried import hurried
from tests.qemu.harness import Guest, run_statepipe, wait_for
from tests.qemu.moving import Credentials, mover, receiver, waiting
from tests.qemu.test_handover import Pair, assert_one_runs, paired
from tests.unit.migration.test_negotiation import THING

PATIENCE = 60


@contextmanager
def visiting(credentials: Credentials, port: int) -> Iterator[Peer]:
    """A session with a `receive`, of somebody who is known there."""
    creds = str(credentials.folder / "source")
    with called(ConnectionPlan(Address(TLS, "127.0.0.1", port), (), Patience(), creds=creds)) as peer:
        yield peer


def looks(guest: Guest, credentials: Credentials, port: int) -> None:
    """Somebody with a sound offer is answered."""
    done = run_statepipe("check", "--qmp", guest.socket, *credentials.of("source"), f"tls://127.0.0.1:{port}")
    assert done.returncode in (0, 1) and "machine type" in done.stdout, done


def offers_many_disks(peer: Peer) -> None:
    disks = [{"path": f"/{n}", "unknown": ""} for n in range(1200)]
    peer.tell(THING | {"facts": THING["facts"] | {"disks": disks}})


def offers_bare_disks(peer: Peer) -> None:
    """As many as fit into a message; the answer that named each would not."""
    peer.tell(THING | {"facts": THING["facts"] | {"disks": [{"path": f"/{n}"} for n in range(3800)]}})


def offers_odd_facts(peer: Peer) -> None:
    peer.tell(THING | {"facts": THING["facts"] | {"guest": [1]}})


def offers_what_is_no_text(peer: Peer) -> None:
    peer.tell({"offer": ["migrate"], "facts": 7, "\udcff\x1b[2J": "\ud800"})


def begins_with_another_offer(peer: Peer) -> None:
    peer.tell(THING)
    assert peer.hear() is not None
    peer.tell(THING)


def comes_when_it_was_to_ask(peer: Peer) -> None:
    peer.tell(THING | {"offer": "check"})
    assert peer.hear() is not None
    peer.tell({"begin": True})


VISITS: dict[Callable[[Peer], None], str] = {
    offers_many_disks: f"facts.disks is a list, where a list of at most {DISKS} is expected",
    offers_bare_disks: f"facts.disks is a list, where a list of at most {DISKS} is expected",
    offers_odd_facts: "is not an offer of a guest: facts.guest is a list",
    offers_what_is_no_text: "is not an offer of a guest",
    begins_with_another_offer: "is not the message to begin",
    comes_when_it_was_to_ask: "announced a check but started a migration",
}


def test_no_visitor_ends_a_service(tmp_path: Path, guest: Guest, qemu72: str, credentials: Credentials) -> None:
    command = [qemu72, "-accel", "tcg", "-m", "128", "-display", "none", "-nodefaults"]
    receiving, port = receiver(credentials, "--serve", "1", "--", *command)
    with receiving:
        for visit, words in VISITS.items():
            with pytest.raises(PeerError, match=words.replace("[", r"\[")), visiting(credentials, port) as peer:
                visit(peer)
                while peer.hear(PATIENCE) is not None:
                    continue
            assert not receiving.ended(), receiving.said
        looks(guest, credentials, port)
    told = [line for line in receiving.said if "no guest was taken: " in line]
    assert len(told) == len(VISITS) and all(line.isprintable() for line in told), receiving.said


def test_who_makes_no_offer_keeps_nobody_out(
    tmp_path: Path, guest: Guest, qemu72: str, credentials: Credentials
) -> None:
    """The place is free again when its time is over, and no QEMU was started meanwhile."""
    started = tmp_path / "started"
    command = ["sh", "-c", 'echo >>"$0"; exec "$@"', started, qemu72, "-accel", "tcg", "-m", "128", "-nodefaults"]
    soon = hurried("migration.negotiation.OFFER_TIME=5")
    receiving, port = receiver(credentials, "--", *command, "-display", "none", program=soon)
    with receiving:
        with (
            pytest.raises(PeerError, match="did not send the expected message in time"),
            visiting(credentials, port) as peer,
        ):
            assert peer.hear(PATIENCE) is None
        assert not started.exists()
        looks(guest, credentials, port)
        assert started.read_text() == "\n" and not receiving.ended()


@pytest.mark.parametrize("serves", [[], ["--serve", "1"]], ids=["one", "service"])
def test_a_visitor_who_says_nothing_takes_no_signal_away(
    qemu72: str, credentials: Credentials, serves: list[str]
) -> None:
    receiving, port = receiver(credentials, *serves, "--", qemu72)
    with receiving, suppress(PeerError), visiting(credentials, port) as peer:
        peer.session.meet()
        receiving.send(signal.SIGTERM)
        assert receiving.wait_process(PATIENCE) == 143, receiving.said


def test_a_signal_while_the_other_host_prepares_is_no_failure_there(
    tmp_path: Path, guest: Guest, credentials: Credentials
) -> None:
    started = tmp_path / "started"
    receiving, port = receiver(credentials, "--", "sh", "-c", 'echo >"$0"; exec sleep 600', started)
    with receiving, mover(credentials, guest, port) as moving:
        wait_for("the other QEMU", started.exists)
        moving.send(signal.SIGTERM)
        assert moving.wait() == 143, moving.said
        assert "statepipe: hint: nothing was moved" in moving.said
        assert guest.run_state() == "running"


def test_a_receive_that_takes_one_guest_outlives_odd_offers(
    tmp_path: Path, guest: Guest, qemu72: str, credentials: Credentials
) -> None:
    with waiting(tmp_path, qemu72, guest) as target:
        receiving, port = receiver(credentials, "--qmp", target.socket)
        with receiving:
            with pytest.raises(PeerError), visiting(credentials, port) as peer:
                offers_what_is_no_text(peer)
                peer.hear(PATIENCE)
            with mover(credentials, guest, port) as moving:
                assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)


# --- odd steps while a guest moves

ODD_STEPS: list[Message] = [
    {"event": ["RUNNING"]},
    {"event": {}},
    {"event": "RUNNING", "reason": [1]},
    {"event": "GO"},
    {"no": "event"},
]


@pytest.mark.parametrize("message", ODD_STEPS)
@pytest.mark.parametrize("step", ["PRECOPY", "COMMITTED"])
def test_an_odd_step_from_the_destination_is_as_good_as_its_loss(
    tmp_path: Path, qemu72: str, step: str, message: dict[str, Any]
) -> None:
    """Before GO the guest stays; after it nobody here knows, and that is said rather than waited for."""
    with paired(tmp_path, qemu72, "-S") as both:
        both.faults[step] = lambda pair: pair.arrival.peer.tell(message)
        here, there = outcome(both)
        if step == "PRECOPY":
            assert (here, there) == (Source.KEPT, Destination.ENDED)
            assert_one_runs(both, both.source, both.target)
        else:  # or RUNNING was there first
            assert here in (Source.UNDECIDED, Source.MOVED) and there is Destination.RUNS
            assert_one_runs(both, both.target, both.source)
        if here is not Source.MOVED:
            assert "which is no step" in str(both.departure.cause) or "is not a step" in str(both.departure.cause)


def test_a_source_cannot_say_that_the_guest_runs_over_there(tmp_path: Path, qemu72: str) -> None:
    with paired(tmp_path, qemu72, "-S") as both:
        both.faults["HANDING"] = lambda pair: pair.departure.peer.tell({"event": "RUNNING"})
        assert outcome(both) == (Source.KEPT, Destination.ENDED)
        assert_one_runs(both, both.source, both.target)


def outcome(both: Pair) -> tuple[Source, Destination]:
    """Of both halves, each in a thread that may hang."""
    ends: list[tuple[Source, Destination]] = []
    thread = threading.Thread(target=lambda: ends.append(both.run()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert ends, f"the source waits in {both.departure.side.state}"
    return ends[0]
