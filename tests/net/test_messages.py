"""Messages within a session: each once, in order, whatever becomes of the links; and no others."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from statepipe.errors import PeerError
from statepipe.session.links import Acceptor, dialled
from statepipe.session.messages import MAX_MESSAGE, MESSAGES, Messages
from statepipe.session.protocol.frames import Frame, Kind, Role
from statepipe.session.session import Session, Timing
from statepipe.session.transport import SocketTransport
from tests.net.relay import Faults, relay

TIMING = Timing(tick=0.25, limit=20, retry=20)
PATIENCE = 60


class Other:
    """The accepting side, in a thread: what `work` makes of its messages."""

    def __init__(self, work: Callable[[Session, Messages], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self._work = work
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._acceptor = Acceptor(Role.BOTH, TIMING, lambda name, error: None, channels=2)
        self._threads = [threading.Thread(target=self._listen), threading.Thread(target=self._run)]

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._acceptor.adopt(SocketTransport(connection, "visitor", "dialler"))

    def _run(self) -> None:
        try:
            with self._acceptor.wait(PATIENCE) as session:
                self.result = self._work(session, Messages(session))
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Other:
        for thread in self._threads:
            thread.start()
        return self

    def join(self) -> None:
        self._threads[1].join(PATIENCE)
        assert not self._threads[1].is_alive()

    def __exit__(self, *error: object) -> None:
        self.join()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()


@contextlib.contextmanager
def dialling(port: int) -> Iterator[tuple[Session, Messages]]:
    def dial() -> SocketTransport:
        return SocketTransport(socket.create_connection(("127.0.0.1", port)), "acceptor", "acceptor")

    session = dialled(dial, Role.BOTH, "the acceptor", TIMING, channels=2)
    messages = Messages(session)
    with session:
        session.meet()
        yield session, messages


def close(session: Session, messages: Messages) -> None:
    """The end of a session that has no stream: both sides hear all, and then say that they have."""
    messages.end()
    while messages.hear() is not None:
        continue
    session.say_close()
    session.hear_close(PATIENCE)
    session.flush(PATIENCE)


def test_each_comes_once_and_in_order_over_links_that_are_cut() -> None:
    count = 3000

    def work(session: Session, messages: Messages) -> list[int]:
        heard = []
        while message := messages.hear():
            heard.append(message["n"])
        messages.tell({"heard": len(heard)})
        close(session, messages)
        return heard

    faults = Faults(cut_after=lambda: 20_000)
    with Other(work) as other, relay(other.port, faults) as between, dialling(between.port) as (session, messages):
        for n in range(count):
            messages.tell({"n": n, "text": "ä" * 20})
        messages.tell({})
        assert messages.hear() == {"heard": count}
        close(session, messages)
        assert between.cuts >= 3
    assert other.error is None and other.result == list(range(count))


def test_the_longest_and_one_too_long() -> None:
    longest = {"text": "x" * (MAX_MESSAGE - len('{"text":""}'))}

    def work(session: Session, messages: Messages) -> object:
        heard = messages.hear()
        assert messages.hear() is None
        close(session, messages)
        return heard

    with Other(work) as other, dialling(other.port) as (session, messages):
        with pytest.raises(PeerError, match="65537 bytes is too long: at most 65536 are"):
            messages.tell({"text": longest["text"] + "x"})
        messages.tell(longest)
        close(session, messages)
    assert other.result == longest


NO_MESSAGES = {
    "too long": (b"\xff\xff\xff\xff", "at most 65536 are allowed"),
    "no JSON": (b"\0\0\0\1{", "that is not a JSON object"),
    "deep": (b"\0\1\0\0" + b"[" * 65536, "that is not a JSON object"),
    "no object": (b"\0\0\0\2[]", "it is a list, where an object"),
    "no number": (b'\0\0\0\x0a{"x": NaN}', "NaN is not a JSON number"),
    "endless digits": (b'\0\0\x20\6{"x":' + b"1" * 8192 + b"}", "that is not a JSON object"),
}


@pytest.mark.parametrize("name", NO_MESSAGES)
def test_what_is_no_message_ends_the_session_on_both_sides(name: str) -> None:
    raw, reason = NO_MESSAGES[name]
    with (
        Other(lambda session, messages: messages.hear()) as other,
        pytest.raises(PeerError, match=f"the acceptor failed: a message .*{reason}"),
        dialling(other.port) as (session, messages),
    ):
        session.put(session.wire.outgoing[MESSAGES], raw)
        messages.hear()
    assert isinstance(other.error, PeerError) and reason in str(other.error)


def test_one_cut_short_by_the_end() -> None:
    with (
        Other(lambda session, messages: messages.hear()) as other,
        pytest.raises(PeerError, match="in the middle of a message"),
        dialling(other.port) as (session, messages),
    ):
        outgoing = session.wire.outgoing[MESSAGES]
        outgoing.absorb(b"\0\0")
        session.put(outgoing, b"\0\0")
        close(session, messages)
    assert isinstance(other.error, PeerError)


def test_a_hostile_frame_amid_a_flood_is_told_and_not_reset() -> None:
    """What was said last must not be overtaken by the reset of a socket that is closed over unread bytes."""

    def work(session: Session, messages: Messages) -> None:
        messages.hear()

    with (
        Other(work) as other,
        pytest.raises(PeerError, match=r"the acceptor failed: channel 1: it sent bytes .* beyond the window"),
        dialling(other.port) as (session, messages),
    ):
        with session.lock:
            link = next(iter(session.wire.links))
            frames = [Frame(Kind.DATA, MESSAGES, (1 << 40) + (n << 16), bytes(1 << 16)) for n in range(100)]
            transport = session._transports[link]
        with contextlib.suppress(OSError):
            transport.send([buffer for frame in frames for buffer in frame.encode()])
        messages.hear()
    assert isinstance(other.error, PeerError)
