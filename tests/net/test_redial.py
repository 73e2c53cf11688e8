"""A connection that does not get through is tried again beside itself, and takes the place of a link that is stuck."""

from __future__ import annotations

import errno
import socket
import threading
import time
from dataclasses import replace
from typing import cast

import pytest

from statepipe.ends.address import Address
from statepipe.ends.dial import CONNECT_TIMEOUT, SHORT, connect_again, connect_first
from statepipe.ends.names import LookupCache, Place, find_places
from statepipe.ends.net import Patience, Stopped, is_fruitless, is_stuck
from statepipe.ends.race import Race
from statepipe.errors import PeerError
from statepipe.pipeline.pipeline import Pipeline
from statepipe.session.links import dialled
from statepipe.session.protocol.frames import MAX_LINKS, Role
from statepipe.session.streams import Outlet
from statepipe.session.transport import SocketTransport
from statepipe.wakeups import Bell
from tests.net.test_session import FIRST, MIB, PATIENCE, QUICK, Bytes, Kept, Receiver, whole


def again(where: socket.socket, seconds: float, host: str = "127.0.0.1") -> socket.socket:
    return reach(Address("tls", host, where.getsockname()[1]), seconds)


def reach(address: Address, seconds: float, *, short: bool = False) -> socket.socket:
    return connect_again(find_places([address]), seconds, None, short=short)


def test_one_that_listens_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, again(listener, PATIENCE) as connection:
        assert connection.getpeername() == listener.getsockname()
        assert connection.gettimeout() is None


def test_short_packets_are_asked_for_on_both_sides() -> None:
    address = Address("tls", "127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = address._replace(port=listener.getsockname()[1])
        with reach(there, PATIENCE, short=True) as near, listener.accept()[0] as far:
            for each in (near, far):
                assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= SHORT


def test_one_of_several_addresses_is_enough() -> None:
    """localhost is ::1 first, where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener, again(listener, PATIENCE, "localhost") as connection:
        assert connection.getpeername() == listener.getsockname()


def test_a_family_that_this_host_lacks_does_not_hold_up_the_next() -> None:
    """As IPv6 where the kernel has none: no socket of it can be made."""
    missing = (cast(socket.AddressFamily, 12345), ("::1", 1))
    with socket.create_server(("127.0.0.1", 0)) as server:
        race = Race(None)
        winner = race.run([missing, (socket.AF_INET, server.getsockname())], 60, None, again=False)
        assert winner is not None
        winner.close()
        race.close()
    assert race.failed[missing].errno == errno.EAFNOSUPPORT


def test_a_dial_that_was_stopped_before_it_began_is_stopped() -> None:
    stop = Bell()
    stop.close()
    with pytest.raises(Stopped):
        Race(None).run([(socket.AF_INET, ("127.0.0.1", 1))], 60, stop, again=False)


def test_a_refusal_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.close()
    with pytest.raises(PeerError, match="Connection refused"):
        reach(Address("tls", "localhost", 1), PATIENCE)


def test_silence_is_given_up(full: socket.socket) -> None:
    with pytest.raises(PeerError, match="did not answer in time"):
        again(full, 0.5)


def test_an_address_in_silence_does_not_hold_up_the_next(full: socket.socket) -> None:
    """Nor does one that refuses. The whole takes a part of the time that one of them has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ports = [full.getsockname()[1], 1, listener.getsockname()[1]]
        places = find_places([Address("tls", "127.0.0.1", port) for port in ports])
        began = time.monotonic()
        with connect_first(lambda: places, Patience(), None, insecure=False) as connection:
            assert connection.getpeername() == listener.getsockname()
        assert time.monotonic() - began < CONNECT_TIMEOUT / 4


def test_each_address_s_own_reason_is_told(full: socket.socket) -> None:
    places = find_places([Address("tls", "127.0.0.1", port) for port in (full.getsockname()[1], 1)])
    with pytest.raises(PeerError, match=r"did not answer in time, nor to tls://127.0.0.1:1: Connection refused"):
        connect_first(lambda: places, Patience(silence=0.1), None, insecure=False)


def test_a_dial_ends_when_it_is_stopped(full: socket.socket) -> None:
    stop = Bell()
    stop.ring()
    with pytest.raises(Stopped):
        connect_again(find_places([Address("tls", "127.0.0.1", full.getsockname()[1])]), PATIENCE, None, stop=stop)


def test_what_was_dropped_is_asked_again(full: socket.socket) -> None:
    reached = threading.Event()

    def dial() -> None:
        with again(full, PATIENCE):
            reached.set()

    thread = threading.Thread(target=dial)
    thread.start()
    assert not reached.wait(0.1)
    with full.accept()[0]:
        assert reached.wait(PATIENCE)
        thread.join()


def test_a_connection_without_trouble_is_not_stuck() -> None:
    near, far = socket.socketpair()
    with near, far, socket.create_server(("127.0.0.1", 0)) as listener, again(listener, PATIENCE) as connection:
        connection.sendall(b"x")
        for each in (near, connection):
            assert not is_stuck(each) and not is_fruitless(each)
    assert not is_stuck(connection) and not is_fruitless(connection), "nor one that has been closed"


def place(host: str) -> Place:
    return Address("tls", "host", 1), (socket.AF_INET, (host, 1))


def test_names_are_looked_up_beside_what_is_known() -> None:
    """Nobody is waited for who may be out of reach, too."""
    old, new = [place("192.0.2.1")], [place("192.0.2.2")]
    served, asked = threading.Event(), threading.Event()

    def find() -> list[Place]:
        if not asked.is_set():
            asked.set()
            return list(old)
        assert served.wait(PATIENCE)
        return list(new)

    known = LookupCache(find)
    assert known.ask() == known.ask() == old, "the second is answered while its question is not"
    served.set()
    while known.ask() != new:
        threading.Event().wait(0.01)


def test_what_is_known_outlives_who_knows_no_more() -> None:
    found = iter([[place("192.0.2.1")]])
    over = threading.Event()

    def find() -> list[Place]:
        try:
            return list(next(found))
        except StopIteration:
            over.set()
            raise PeerError("cannot find it") from None

    known = LookupCache(find)
    first = known.ask()
    assert known.ask() == first and over.wait(PATIENCE) and known.ask() == first


class Link(SocketTransport):
    """One of which the test says whether it is stuck."""

    is_stuck = False


class Dialler:
    """Makes links to a port, and keeps them. `meanwhile` happens during each dial but the first."""

    def __init__(self, port: int) -> None:
        self.port, self.made = port, list[Link]()
        self.twice = threading.Event()

    def meanwhile(self) -> None: ...

    def __call__(self) -> Link:
        connection = socket.create_connection(("127.0.0.1", self.port))
        if self.made:
            self.meanwhile()
        self.made.append(Link(connection, "the receiver", "the receiver"))
        if len(self.made) > 1:
            self.twice.set()
        return self.made[-1]


def test_a_fresh_link_takes_the_place_of_one_that_is_stuck() -> None:
    with Receiver(Kept()) as receiver:
        dial = Dialler(receiver.port)
        with dialled(dial, Role.SENDS, "the receiver", QUICK, channels=0) as session:
            sink = Outlet(session)
            session.meet()
            dial.made[0].is_stuck = True
            while FIRST in session.wire.links or not session.links:
                assert not session.stopped.wait(0.01)
            assert list(session.wire.links) == [FIRST + MAX_LINKS]
            Pipeline(Bytes(8 * MIB), [], sink).run()
    assert receiver.error is None and receiver.sink.kept == whole(8 * MIB)


def test_one_that_comes_back_by_itself_is_kept() -> None:
    class Recovers(Dialler):
        def meanwhile(self) -> None:
            self.made[0].is_stuck = False

    with Receiver(Kept()) as receiver:
        dial = Recovers(receiver.port)
        with dialled(dial, Role.SENDS, "the receiver", QUICK, channels=0) as session:
            sink = Outlet(session)
            session.meet()
            dial.made[0].is_stuck = True
            assert dial.twice.wait(PATIENCE)
            while dial.made[1].connection.fileno() != -1:
                assert not session.stopped.wait(0.01)
            assert list(session.wire.links) == [FIRST]
            Pipeline(Bytes(8 * MIB), [], sink).run()
            assert sink.resent == 0
    assert receiver.error is None and receiver.sink.kept == whole(8 * MIB)
    assert len(dial.made) == 2


def test_one_whose_greeting_is_not_answered_is_replaced() -> None:
    """The kernel there has taken it, so that nothing here is repeated in vain; and silence takes a minute."""

    class Swallowed(Dialler):
        far: socket.socket

        def __call__(self) -> Link:
            if len(self.made) != 1:
                return super().__call__()
            near, self.far = socket.socketpair()
            self.made.append(Link(near, "the receiver", "the receiver"))
            return self.made[-1]

    with Receiver(Kept()) as receiver:
        dial = Swallowed(receiver.port)
        with dialled(dial, Role.SENDS, "the receiver", replace(QUICK, limit=600), channels=0) as session:
            sink = Outlet(session)
            session.meet()
            dial.made[0].cut()
            while FIRST + 2 * MAX_LINKS not in session.wire.links or not session.links:
                assert not session.stopped.wait(0.01)
            Pipeline(Bytes(8 * MIB), [], sink).run()
        dial.far.close()
    assert receiver.error is None and receiver.sink.kept == whole(8 * MIB)
