"""Bytes that a stage sees and does not change: it gets a copy, and the kernel moves the originals after that."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.ends.fd import FdSink, FdSource
from statepipe.ends.net import Patience, SocketSink, SocketSource, reset, tune
from statepipe.errors import IntegrityError, PeerError, ReaderGone, StatepipeError, TruncatedError
from statepipe.pipeline.pipeline import Pipeline
from statepipe.stage import Buffer, Cancelled, Stage
from statepipe.stages.prove import CONTAINER, Proof
from statepipe.wakeups import READ_SIZE
from tests import streams
from tests.unit.pipeline.test_bypass import NOISE, Counter

STREAM = streams.long()

KINDS = ["pipe", "tcp", "unix", "file"]


class Watcher(Counter):
    """A meter that sees all. It takes `hoard` buffers before it passes them on, in pieces of `piece` bytes."""

    def __init__(self, hoard: int = 1, piece: int = 1 << 30) -> None:
        super().__init__(looks=1 << 60)
        self._hoard, self._piece = hoard, piece

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        taken: list[Buffer] = []
        for buffer in upstream:
            self.seen += len(buffer)
            taken.append(buffer)
            if len(taken) == self._hoard:
                yield from self._cut(taken)
        yield from self._cut(taken)

    def _cut(self, taken: list[Buffer]) -> Iterator[Buffer]:
        while taken:
            buffer = taken.pop(0)
            for at in range(0, len(buffer), self._piece):
                yield buffer[at : at + self._piece]


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def linked(kind: str, stack: ExitStack) -> tuple[socket.socket | int, socket.socket | int]:
    """A reading and a writing end."""
    if kind == "pipe":
        ends = os.pipe()
        return ends
    if kind == "unix":
        near, far = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            far = socket.create_connection(server.getsockname())
            near, _ = server.accept()
    stack.enter_context(near)
    stack.enter_context(far)
    return near, far


@contextmanager
def fed(kind: str, data: bytes) -> Iterator[FdSource]:
    """A source of such a kind that has the data."""
    with ExitStack() as stack:
        if kind == "file":
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(b"before" + data)
            file.seek(6)
            yield stack.enter_context(FdSource(file.fileno(), "the source"))
            return
        near, far = linked(kind, stack)

        def feed() -> None:
            with open(far if isinstance(far, int) else os.dup(far.fileno()), "wb") as out:
                try:
                    out.write(data)
                    out.flush()
                    if not isinstance(far, int):
                        far.shutdown(socket.SHUT_WR)
                except OSError:  # nobody wants the rest
                    out.raw.close()

        thread = threading.Thread(target=feed)
        stack.callback(thread.join)
        thread.start()
        if isinstance(near, int):
            stack.callback(os.close, near)
            yield stack.enter_context(FdSource(near, "the source"))
        else:
            stack.callback(near.close)
            yield stack.enter_context(SocketSource(near, "the source", Patience()))


def carried(source: FdSource, kind: str, *stages: Stage) -> bytes:
    """What arrives at a sink of that kind, whatever the pipeline raises."""
    got: list[bytes] = []
    with ExitStack() as stack:
        near, far = linked(kind, stack)

        def read() -> None:
            with open(near if isinstance(near, int) else os.dup(near.fileno()), "rb") as end:
                got.append(end.read())
            if not isinstance(near, int):
                near.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=read)
        thread.start()
        named = [(f"stage {number}", each) for number, each in enumerate(stages)]
        try:
            if isinstance(far, int):
                with open(far, "wb", 0):
                    Pipeline(source, named, FdSink(far, "the sink")).run()
            else:
                Pipeline(source, named, SocketSink(far, "the sink", Patience())).run()
        finally:
            if not isinstance(far, int):
                far.close()
            thread.join()
    return got[0]


@pytest.mark.parametrize("sink", ["pipe", "tcp", "unix"])
@pytest.mark.parametrize("source", KINDS)
def test_every_byte_is_seen_and_arrives(source: str, sink: str) -> None:
    watcher = Watcher()
    with fed(source, NOISE) as it:
        assert carried(it, sink, watcher, Counter()) == NOISE
        assert (it.tap is None) == (source == "file")  # it is read: see ends/tap.py
        assert it.bytes == watcher.seen == len(NOISE)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(KINDS), st.integers(1, 4), st.integers(2_000, 300_000), st.integers(0, len(NOISE)))
def test_however_a_stage_cuts_and_hoards(source: str, hoard: int, piece: int, size: int) -> None:
    with fed(source, NOISE[:size]) as it:
        assert carried(it, "pipe", Watcher(hoard, piece), Watcher(1, 70_000)) == NOISE[:size]


@pytest.mark.parametrize("source", KINDS)
def test_a_guests_stream_is_followed_and_proved(source: str) -> None:
    proof = Proof()
    with fed(source, STREAM) as it:
        assert carried(it, "tcp", proof) == STREAM
        assert (it.tap is None) == (source == "file")
    assert proof.holds and proof.stream is not None and proof.stream.pages.normal == 12 * 64 + 1


@pytest.mark.parametrize("source", KINDS)
def test_one_that_is_cut_is_no_whole_one(source: str) -> None:
    cut = len(STREAM) - 30_000
    with fed(source, STREAM[:cut]) as it, pytest.raises(TruncatedError, match=f"at byte {cut}, "):
        carried(it, "pipe", Proof())


@pytest.mark.parametrize("source", KINDS)
def test_one_with_a_flipped_header_is_refused_where_it_is(source: str) -> None:
    at = len(streams.setup()) + 9 * len(streams.FULL)
    flipped = STREAM[:at] + b"\xff" + STREAM[at + 1 :]
    with fed(source, flipped) as it, pytest.raises(IntegrityError) as caught:
        carried(it, "pipe", Proof())
    assert caught.value.offset == at


@pytest.mark.parametrize("source", KINDS)
def test_what_follows_its_end_is_not_passed_on(source: str) -> None:
    got: list[bytes] = []

    def keep(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        for buffer in upstream:
            got.append(bytes(buffer))
            yield buffer

    with fed(source, STREAM + b"more") as it, pytest.raises(IntegrityError, match="continues after the end"):
        carried(it, "pipe", Proof(), Kept(keep))
    assert b"".join(got) == STREAM


class Kept(Counter):
    """A meter that is a plain stage."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(looks=1 << 60)
        self._stage = stage

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        return self._stage(upstream)


def test_a_stream_whose_every_byte_is_proved_is_passed_on_as_it_was_seen() -> None:
    """No page of it may change between the digest and the write."""
    with fed("pipe", CONTAINER + NOISE) as it:
        with pytest.raises(StatepipeError):  # behind its first bytes it is no such stream
            carried(it, "pipe", Proof())
        assert it.tap is None


def test_a_file_that_is_cut_while_it_is_sent_gives_as_much_as_was_seen() -> None:
    """A file is read and written, so all that was seen arrives."""
    with fed("file", NOISE) as it:

        def cut(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
            for buffer in upstream:
                if it.bytes > 1 << 20:
                    os.truncate(it.fd, 1 << 12)
                yield buffer

        got = carried(it, "tcp", Kept(cut))
        assert len(got) == it.bytes > 1 << 20


def test_a_reader_that_left_is_sigpipe() -> None:
    """A pipe of 256 places holds 8 MB of a connection's bytes: a place has 32 KB of them, and not a page."""
    reading, writing = os.pipe()
    watcher = Watcher()

    def leave() -> None:
        while watcher.seen <= 1 << 20:
            os.read(reading, 1 << 16)
        os.close(reading)

    thread = threading.Thread(target=leave)
    with fed("tcp", NOISE * 8) as source, open(writing, "wb", 0) as out:
        thread.start()
        with pytest.raises(ReaderGone):
            Pipeline(source, [("watcher", watcher)], FdSink(out.fileno(), "the sink")).run()
        thread.join()


@pytest.mark.parametrize("source", KINDS)
def test_a_receiver_that_breaks_off_is_named(source: str) -> None:
    watcher = Watcher()
    with ExitStack() as stack, fed(source, NOISE * 8) as it:
        near, far = linked("tcp", stack)
        assert isinstance(near, socket.socket) and isinstance(far, socket.socket)

        def leave() -> None:
            while watcher.seen <= 1 << 20:
                near.recv(1 << 16)
            reset(near)
            near.close()

        thread = threading.Thread(target=leave)
        thread.start()
        with pytest.raises(PeerError, match="the receiver broke the connection off after"):
            Pipeline(it, [("watcher", watcher)], SocketSink(far, "the receiver", Patience())).run()
        thread.join()


def test_a_receiver_that_takes_nothing_is_given_up() -> None:
    with ExitStack() as stack, fed("pipe", NOISE * 8) as it:
        _, far = linked("tcp", stack)
        assert isinstance(far, socket.socket)
        patience = Patience(0.2)
        tune(far, patience)
        with pytest.raises(PeerError, match=r"the receiver has not moved for 0.2 s"):
            Pipeline(it, [("watcher", Watcher())], SocketSink(far, "the receiver", patience)).run()


class Shared(Counter):
    """A meter of bytes from a descriptor that another program has, too, and sets to non-blocking in the midst."""

    def __init__(self, fd: int, looks: int) -> None:
        super().__init__(looks)
        self._fd = fd

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        for buffer in super().__call__(upstream):
            if self.seen > READ_SIZE:
                os.set_blocking(self._fd, False)
            yield buffer

    def passed(self, count: int) -> None:
        super().passed(count)
        os.set_blocking(self._fd, False)


@pytest.mark.parametrize("looks", [1, 1 << 60])
def test_it_is_given_up_too_where_the_source_does_not_block(looks: int) -> None:
    patience = Patience(0.2)
    with ExitStack() as stack, fed("pipe", NOISE * 8) as it:
        _, far = linked("tcp", stack)
        assert isinstance(far, socket.socket)
        tune(far, patience)
        with pytest.raises(PeerError, match=r"the receiver has not moved for 0.2 s"):
            Pipeline(it, [("shared", Shared(it.fd, looks))], SocketSink(far, "the receiver", patience)).run()
        assert not os.get_blocking(it.fd)


@pytest.mark.parametrize("asks", [False, True])
def test_bytes_that_another_program_reads_are_missed(*, asks: bool) -> None:
    """They were seen, and cannot be passed on, or dropped where a stage asks for more before it has passed them on."""
    (reading, writing), ends = os.pipe(), os.pipe()

    def steal(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield next(upstream)
        os.write(writing, b"more")
        os.close(writing)
        buffer = next(upstream)
        assert source.tap is not None and source.tap.pending == len(buffer)
        assert os.read(reading, 100) == b"more"
        if asks:
            next(upstream)
        yield buffer

    os.write(writing, b"first")
    with (
        open(reading, "rb", 0),
        open(ends[0], "rb", 0),
        open(ends[1], "wb", 0) as out,
        FdSource(reading, "the source") as source,
    ):
        with pytest.raises(StatepipeError, match="the source has ended before bytes that were in it"):
            Pipeline(source, [("thief", Kept(steal))], FdSink(out.fileno(), "the sink")).run()
        assert source.tap is None


def test_a_sender_that_breaks_off_is_an_error_and_no_end() -> None:
    """A socket reports its reset once: the next read of it finds a clean end."""
    watcher = Watcher()
    reading, writing = os.pipe()
    with ExitStack() as stack, open(reading, "rb", 0) as taken, open(writing, "wb", 0) as out:
        near, far = linked("tcp", stack)
        assert isinstance(near, socket.socket) and isinstance(far, socket.socket)

        def feed() -> None:
            for _ in range(2):
                far.sendall(NOISE[:1000])
                assert len(taken.read(1000)) == 1000
            reset(far)
            far.close()

        thread = threading.Thread(target=feed)
        with SocketSource(near, "the sender", Patience()) as source:
            thread.start()
            with pytest.raises(PeerError, match="the sender broke the connection off after 2000 bytes"):
                Pipeline(source, [("watcher", watcher)], FdSink(out.fileno(), "the sink")).run()
            thread.join()


@pytest.mark.parametrize("kind", ["pipe", "tcp"])
def test_a_wait_for_more_can_be_cancelled(kind: str) -> None:
    ends = os.pipe()
    with ExitStack() as stack, open(ends[0], "rb", 0) as taken, open(ends[1], "wb", 0) as out:
        near, far = linked(kind, stack)
        if isinstance(near, int) or isinstance(far, int):
            stack.enter_context(open(near, "rb", 0))
            feed: Callable[[bytes], object] = stack.enter_context(open(far, "wb", 0)).write
            source = FdSource(near if isinstance(near, int) else near.fileno(), "the source")
        else:
            feed, source = far.sendall, SocketSource(near, "the source", Patience())

        def cancel() -> None:
            for _ in range(2):  # the second time, the bytes come by the tap
                feed(NOISE[:1000])
                assert len(taken.read(1000)) == 1000
            source.cancel()

        thread = threading.Thread(target=cancel)
        with source:
            thread.start()
            with pytest.raises(Cancelled):
                Pipeline(source, [("watcher", Watcher())], FdSink(out.fileno(), "the sink")).run()
            assert source.tap is not None
            thread.join()
