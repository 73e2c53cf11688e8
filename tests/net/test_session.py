"""Sessions over real sockets and a network with faults: every byte arrives once, and both sides know how it ended."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from statepipe.ends.net import reset
from statepipe.errors import IntegrityError, PeerError, StatepipeError
from statepipe.pipeline.pipeline import Pipeline
from statepipe.session.links import Acceptor, Dial, dialled
from statepipe.session.protocol.admission import Party, Secrets
from statepipe.session.protocol.channels import MIN_WINDOW, WINDOW
from statepipe.session.protocol.frames import MAX_LINKS, Role
from statepipe.session.session import FAREWELL, Session, Timing
from statepipe.session.streams import Inlet, Outlet
from statepipe.session.transport import SocketTransport
from statepipe.stage import Buffer
from tests.net.relay import Faults, relay

QUICK = Timing(tick=0.1, limit=5, retry=10)
MIB = 1 << 20
FIRST = MAX_LINKS
"""The number of the first link that a session dials."""

PATIENCE = 60
"""Seconds in which anything here ends, on the busiest machine."""


class Bytes:
    """A source of random buffers that can be made again from its seed."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.bytes, self._left, self._random = 0, size, random.Random(seed)

    def __iter__(self) -> Bytes:
        return self

    def __next__(self) -> Buffer:
        if not self._left:
            raise StopIteration
        data = self._random.randbytes(min(self._left, self._random.choice((1, 5000, 70_000, 600_000))))
        self._left -= len(data)
        self.bytes += len(data)
        return data

    def cancel(self) -> None:
        """Never blocked."""


class Kept:
    """A sink that keeps what it gets, or fails after so many bytes."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.bytes, self.kept, self.committed = 0, bytearray(), False
        self._fails_after = fails_after

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None: ...

    def write(self, buffer: Buffer) -> None:
        self.bytes += len(buffer)
        self.kept += buffer
        if self._fails_after is not None and self.bytes > self._fails_after:
            raise StatepipeError("the disk is full")

    def commit(self) -> None:
        self.committed = True


class Receiver:
    """Listens on the loopback, receives one stream into `sink` in a thread, and judges it."""

    def __init__(self, sink: Kept, timing: Timing = QUICK, window: int = MIN_WINDOW) -> None:
        self.sink, self.turned_away = sink, list[str]()
        self.error: BaseException | None = None
        self.heard: bool | None = None
        self.session: Session | None = None
        self.started = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.acceptor = Acceptor(
            Role.RECEIVES, timing, lambda name, error: self.turned_away.append(str(error)), window=window
        )
        self._threads = [threading.Thread(target=self._accept), threading.Thread(target=self._receive)]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            for number in itertools.count():
                connection, _ = self._listener.accept()
                self._adopt(connection, f"visitor {number}")

    def _adopt(self, connection: socket.socket, name: str) -> None:
        self.acceptor.adopt(SocketTransport(connection, name, "the sender"))

    def _receive(self) -> None:
        try:
            with self.acceptor.wait(PATIENCE) as session:
                self.session = session
                self.started.set()
                source = Inlet(session)
                try:
                    Pipeline(source, [], self.sink).run()
                except BaseException as error:
                    source.refuse(error)
                    self._part(session, min(FAREWELL, session.timing.retry))
                    raise
                source.accept()
                self._part(session, max(FAREWELL, session.timing.retry))
        except BaseException as error:
            self.error = error

    def _part(self, session: Session, seconds: float) -> None:
        self.heard = session.hear_close(seconds)
        session.part(0)

    def __enter__(self) -> Receiver:
        for thread in self._threads:
            thread.start()
        return self

    def join(self) -> None:
        self._threads[1].join(PATIENCE)
        assert not self._threads[1].is_alive()

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()
        self._threads[0].join()


def dialler(port: int) -> Dial:
    def dial() -> SocketTransport:
        connection = socket.create_connection(("127.0.0.1", port), timeout=1)
        connection.settimeout(None)
        return SocketTransport(connection, "the receiver", "the receiver")

    return dial


@contextlib.contextmanager
def sending(port: int, links: int = 1, timing: Timing = QUICK, window: int = MIN_WINDOW) -> Iterator[Outlet]:
    with dialled(dialler(port), Role.SENDS, "the receiver", timing, links=links, window=window, channels=0) as session:
        yield Outlet(session)


def whole(size: int, seed: int = 1) -> bytes:
    return b"".join(Bytes(size, seed))


def send(port: int, size: int, **options: object) -> int:
    """Send it all through a pipeline; the bytes that had to go twice."""
    with sending(port, **options) as sink:  # type: ignore[arg-type]
        Pipeline(Bytes(size), [], sink).run()
        return sink.resent


@pytest.mark.parametrize("links", [1, 2, 4])
def test_a_stream_arrives_whole_and_both_sides_know(links: int) -> None:
    with Receiver(Kept()) as receiver:
        assert send(receiver.port, 16 * MIB, links=links) == 0
    assert receiver.error is None and receiver.heard
    assert receiver.sink.committed and receiver.sink.kept == whole(16 * MIB)


@pytest.mark.parametrize("size", [0, 1, MIN_WINDOW])
def test_small_and_empty_streams(size: int) -> None:
    with Receiver(Kept()) as receiver:
        send(receiver.port, size)
    assert receiver.sink.kept == whole(size) and receiver.sink.committed and receiver.heard


@pytest.mark.parametrize(("links", "few_cores"), [(1, 0), (1, 99), (3, 99)])
def test_fifty_cuts_cost_no_byte_and_at_most_a_window_each(
    links: int, few_cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the link's writer sends, or on a machine of few cores who writes the stream."""
    monkeypatch.setattr("statepipe.session.session.FEW_CORES", few_cores)
    chance = random.Random(links)
    faults = Faults(cut_after=lambda: chance.randrange(1, 2 * MIB) if rail.cuts < 50 else 1 << 60)
    with Receiver(Kept()) as receiver, relay(receiver.port, faults) as rail:
        resent = send(rail.port, 64 * MIB, links=links)
    assert receiver.error is None and receiver.heard
    assert receiver.sink.kept == whole(64 * MIB)
    assert rail.cuts >= 20
    assert resent <= rail.cuts * MIN_WINDOW


def test_a_slicing_and_delaying_network_changes_nothing() -> None:
    with Receiver(Kept()) as receiver, relay(receiver.port, Faults(slice=997, delay=0.0005)) as rail:
        send(rail.port, MIB, links=2)
    assert receiver.sink.kept == whole(MIB) and receiver.heard


def test_a_slow_link_is_not_taken_for_a_dead_one() -> None:
    faults = Faults(slice=4096, bandwidth=400_000)  # a frame takes longer than `tick` times `limit`
    with Receiver(Kept(), Timing(0.1, 5, 10)) as receiver, relay(receiver.port, faults) as rail:
        send(rail.port, MIB)
    assert rail.accepted == 1 and receiver.sink.kept == whole(MIB)


@pytest.mark.parametrize("few_cores", [0, 99])
def test_a_full_socket_does_not_hold_up_who_writes(few_cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a full window does: there he can be told to stop."""
    monkeypatch.setattr("statepipe.session.session.FEW_CORES", few_cores)
    calm = Timing(tick=1, limit=PATIENCE, retry=PATIENCE)
    with (
        Receiver(Kept(), calm, WINDOW) as receiver,
        relay(receiver.port, Faults()) as rail,
        sending(rail.port, 1, calm, WINDOW) as sink,
    ):
        sink.session.meet()
        rail.faults.clear.clear()
        with Pumped(sink, WINDOW) as pumped:
            while sink.bytes < WINDOW:  # sockets hold a tenth of it
                assert not sink.session.stopped.wait(0.01) and pumped.error is None
            rail.faults.clear.set()
            pumped.join()
    assert pumped.error is None and receiver.error is None and receiver.sink.kept == whole(WINDOW)


def test_a_black_hole_is_noticed_and_the_stream_goes_on_when_it_clears() -> None:
    with (
        Receiver(Kept()) as receiver,
        relay(receiver.port, Faults()) as rail,
        sending(rail.port) as sink,
        Pumped(sink, 32 * MIB) as pumped,
    ):
        assert receiver.started.wait(PATIENCE)
        rail.faults.clear.clear()
        while FIRST in sink.session.wire.links:  # until the silence was noticed
            sink.session.stopped.wait(0.02)
        rail.faults.clear.set()
        pumped.join()
    assert pumped.error is None and receiver.error is None
    assert receiver.sink.kept == whole(32 * MIB)
    assert rail.accepted > 1


class Pumped:
    """A pipeline in a thread."""

    def __init__(self, sink: Outlet, size: int) -> None:
        self.error: BaseException | None = None
        self._sink, self._size = sink, size
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            Pipeline(Bytes(self._size), [], self._sink).run()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Pumped:
        self._thread.start()
        return self

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def __exit__(self, *error: object) -> None:
        self.join()


def test_who_never_comes_back_is_given_up_by_both() -> None:
    timing = Timing(tick=0.1, limit=3, retry=1)
    with Receiver(Kept(), timing) as receiver, relay(receiver.port, Faults()) as rail:
        with sending(rail.port, timing=timing) as sink, Pumped(sink, 1 << 40) as pumped:
            assert receiver.started.wait(PATIENCE)
            while not receiver.sink.bytes:  # so that the link was open on both sides
                sink.session.stopped.wait(0.01)
            rail.faults.clear.clear()
            pumped.join()
        receiver.join()
    for error in (pumped.error, receiver.error):
        assert isinstance(error, PeerError) and "for 1 s" in str(error)
    assert not receiver.sink.committed


def test_a_consumer_that_fails_is_the_sender_s_failure_too() -> None:
    with Receiver(Kept(fails_after=3 * MIB)) as receiver, pytest.raises(StatepipeError, match="disk is full") as raised:
        send(receiver.port, 1 << 40)
    assert str(receiver.error) == "the disk is full"
    assert raised.value.exit_code == 1


def test_a_sender_that_fails_is_the_receiver_s_failure_too() -> None:
    with Receiver(Kept()) as receiver, sending(receiver.port) as sink, contextlib.suppress(IntegrityError), sink:
        sink.write(b"x" * MIB)
        raise IntegrityError("the file is damaged")
    assert isinstance(receiver.error, IntegrityError) and "the file is damaged" in str(receiver.error)
    assert not receiver.sink.committed


class Stalled(Kept):
    """Takes nothing more until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()

    def write(self, buffer: Buffer) -> None:
        assert self.may.wait(PATIENCE)
        super().write(buffer)


def test_a_stalled_reader_stalls_the_writer_within_the_window_and_kills_no_link() -> None:
    sink = Stalled()
    with Receiver(sink) as receiver, sending(receiver.port) as far, Pumped(far, 8 * MIB) as pumped:
        assert receiver.started.wait(PATIENCE)
        far.session.stopped.wait(3 * QUICK.tick * QUICK.limit)  # longer than silence may last
        assert receiver.session is not None and receiver.session.wire.read(0).held <= MIN_WINDOW
        assert far.bytes <= 2 * MIN_WINDOW
        assert list(far.session.wire.links) == [FIRST]
        sink.may.set()
        pumped.join()
    assert pumped.error is None and sink.kept == whole(8 * MIB)


SENDER = """
import socket, sys
from statepipe.session.session import Timing
from statepipe.session.streams import Outlet
from statepipe.session.links import dialled
from statepipe.session.transport import SocketTransport
from statepipe.session.protocol.frames import Role
def dial():
    return SocketTransport(socket.create_connection(("127.0.0.1", int(sys.argv[1]))), "receiver", "receiver")
with dialled(dial, Role.SENDS, "receiver", Timing(0.1, 5, 1), channels=0) as session, Outlet(session) as sink:
    while True:
        sink.write(bytes(100_000))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_sender_that_is_killed_or_stopped_is_given_up(number: int) -> None:
    with Receiver(Kept(), Timing(tick=0.1, limit=5, retry=1)) as receiver:
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", SENDER, str(receiver.port)]
        with subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}) as process:
            assert receiver.started.wait(PATIENCE)
            process.send_signal(number)
            receiver.join()
            process.kill()
    assert isinstance(receiver.error, PeerError) and "no link" in str(receiver.error)
    assert not receiver.sink.committed


def test_time_in_which_we_stood_still_is_no_part_of_what_is_waited_for() -> None:
    """As under a shell's Ctrl-Z or in a frozen container. The session's lock, held, stands for that: nothing ticks."""
    timing, still = Timing(tick=0.05, limit=100, retry=1), 1.5
    here, far = socket.socketpair()
    began = time.monotonic()
    with far, dialled(lambda: SocketTransport(here, "far", "far"), Role.SENDS, "far", timing) as session:
        assert far.recv(1)  # its link is there
        with session.lock:
            threading.Event().wait(still)
        with pytest.raises(PeerError, match="no link to far for 1 s"):
            session.meet()
    assert time.monotonic() - began >= timing.retry + 0.8 * still


def test_to_dial_the_first_time_may_last_longer_than_a_session_is_without_links() -> None:
    """A person may be asked for a passphrase meanwhile."""
    timing, asked = Timing(tick=0.05, limit=20, retry=0.1), threading.Event()

    with Receiver(Kept()) as receiver:

        def dial() -> SocketTransport:
            asked.wait(5 * timing.retry)
            return dialler(receiver.port)()

        with dialled(dial, Role.SENDS, "the receiver", timing, channels=0) as session:
            Pipeline(Bytes(MIB), [], Outlet(session)).run()
    assert receiver.sink.kept == whole(MIB)


def test_a_peer_that_is_gone_before_the_session_began_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial, dials = dialler(listener.getsockname()[1]), itertools.count()

        def first() -> SocketTransport:
            transport = dial()
            if next(dials) == 0:
                listener.accept()[0].close()
                listener.close()
            return transport

        with (
            dialled(first, Role.SENDS, "the receiver", Timing(tick=0.05, limit=20, retry=0.2)) as session,
            pytest.raises(PeerError, match=r"no link to the receiver for 0\.2 s"),
        ):
            session.meet()


def test_a_peer_that_never_greets_is_not_waited_for_at_the_end() -> None:
    """No link is open that could carry our reason, so leaving the session does not wait for one."""
    here, far = socket.socketpair()
    with far:
        with dialled(lambda: SocketTransport(here, "far", "far"), Role.SENDS, "far", Timing()) as session:
            assert far.recv(1)  # its link is there
            session.fail(PeerError("ended"))
            began = time.monotonic()
        assert time.monotonic() - began < FAREWELL


def test_a_peer_that_accepts_connections_and_never_greets_is_named() -> None:
    timing = Timing(tick=0.02, limit=2, retry=PATIENCE)
    with contextlib.ExitStack() as mute:

        def dial() -> SocketTransport:
            here, far = socket.socketpair()
            mute.enter_context(far)
            return SocketTransport(here, "far", "far")

        with (
            dialled(dial, Role.SENDS, "far", timing) as session,
            pytest.raises(PeerError, match=r"^far accepted a connection, but did not begin the session") as told,
        ):
            session.meet()
        assert "statepipe that listens" in (told.value.hint or "")


def test_nobody_at_home_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(StatepipeError, match="refused"), sending(port) as sink, sink:
        sink.write(b"x")
        sink.commit()


def visit(port: int, greeting: bytes) -> None:
    """Say that and wait until they hang up; they may well reset, with bytes unread."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(greeting)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(1000):
            continue


def test_strangers_are_turned_away_and_do_no_harm() -> None:
    with Receiver(Kept()) as receiver:
        for greeting in (
            b"GET / HTTP/1.1\r\n" * 20,
            b"\x89SPW",
            Party(Secrets(b"z" * 16, b"t" * 32), Role.SENDS).ask(1, (0,) * 16, known=True),
        ):
            visit(receiver.port, greeting)
        send(receiver.port, MIB)
    assert receiver.sink.kept == whole(MIB)
    assert sorted(each[:20] for each in receiver.turned_away) == [
        "it closed the connec",
        "no such session here",
        "the other side is no",
    ]


def test_a_second_sender_is_turned_away() -> None:
    with Receiver(Kept()) as receiver, sending(receiver.port) as first:
        first.write(b"x")
        assert receiver.started.wait(PATIENCE)
        with pytest.raises(PeerError, match="another session"):
            send(receiver.port, 1)
        first.commit()
    assert receiver.sink.kept == b"x" and receiver.error is None


def test_a_resume_from_another_peer_is_refused() -> None:
    with Receiver(Kept()) as receiver, sending(receiver.port) as sink:
        sink.write(b"x")
        assert receiver.started.wait(PATIENCE)
        near, far = socket.socketpair()
        receiver.acceptor.adopt(SocketTransport(far, "mallory", "mallory"))
        near.sendall(sink.session.wire.party.ask(9, (0,) * 16, known=True))
        answer = b"".join(iter(lambda: near.recv(1000), b""))
        near.close()
        assert b"another peer" in answer
        sink.commit()
    assert receiver.turned_away == ["this session belongs to another peer"]


@pytest.mark.parametrize("lacks", [1, 2, 3, 4])
def test_where_no_thread_can_be_had_for_a_link_the_next_is_taken_all_the_same(
    monkeypatch: pytest.MonkeyPatch, lacks: int
) -> None:
    """Each link needs four at its receiver. One of those of the first cannot be made, and the sender dials again."""
    start, number = threading.Thread.start, itertools.count(1)

    def limited(thread: threading.Thread) -> None:
        if (thread.name == "link" or isinstance(thread, threading.Timer)) and next(number) == lacks:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    root, code = Path(__file__).parents[2], SENDER.replace("while True:", "for _ in range(20):") + "    sink.commit()\n"
    with Receiver(Kept(), Timing(tick=0.1, limit=5, retry=PATIENCE)) as receiver:
        command = [sys.executable, "-c", code, str(receiver.port)]
        done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=PATIENCE)
    assert next(number) > lacks
    assert (done.returncode, receiver.sink.kept) == (0, bytes(2_000_000))


def test_a_link_that_is_reset_is_reported_in_words() -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    acceptor = Acceptor(Role.RECEIVES, QUICK, lambda name, error: told.put(str(error)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as visitor:
            acceptor.adopt(SocketTransport(listener.accept()[0], "it", "it"))
            reset(visitor)
        assert told.get(timeout=30) == "Connection reset by peer"


def test_an_acceptor_waits_only_so_long() -> None:
    with pytest.raises(PeerError, match=r"no peer connected within 0\.01 s"):
        Acceptor(Role.RECEIVES, QUICK, lambda name, error: None).wait(0.01)
