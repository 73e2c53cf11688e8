"""The way past the stages between two ends of which none is a pipe: through a pipe of ours."""

from __future__ import annotations

import errno
import os
import resource
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.ends.fd import FdSink, FdSource
from statepipe.ends.file import FileSink
from statepipe.ends.net import Patience, SocketSink, SocketSource, reset
from statepipe.errors import PeerError, StatepipeError
from statepipe.pipeline.bypass import Target
from statepipe.pipeline.pipeline import Pipeline
from statepipe.stage import Cancelled
from tests.unit.pipeline.test_bypass import NOISE, Counter


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@contextmanager
def fed_socket(data: bytes, breaks_off: Callable[[], bool] | None = None) -> Iterator[socket.socket]:
    """A TCP connection that a thread fills; with `breaks_off` again and again, until that is true, and then resets."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as far:
        near, _ = server.accept()

        def feed() -> None:
            with suppress(OSError):  # the near end was closed first
                far.sendall(data)
                while breaks_off is not None and not breaks_off():
                    far.sendall(data)
                if breaks_off is None:
                    far.shutdown(socket.SHUT_WR)
                else:
                    reset(far)
            far.close()

        thread = threading.Thread(target=feed)
        with near:
            thread.start()
            try:
                yield near
            finally:
                reset(near)
                near.close()
                thread.join()


def carried(connection: socket.socket, sink: Target, counter: Counter, idle: int | None = None) -> None:
    """Carry all that comes in on a connection."""
    with SocketSource(connection, "the peer", Patience(), idle) as source:
        Pipeline(source, [("counter", counter)], sink).run()
        assert source.bytes == sink.bytes == counter.seen + counter.counted


def test_a_connection_into_a_new_file(tmp_path: Path) -> None:
    """Also if its source marks idle times: a stage that is blind waits for no marks."""
    counter = Counter(portion=70_001)
    with fed_socket(NOISE) as near:
        carried(near, FileSink(str(tmp_path / "new")), counter, idle=1)
    assert (tmp_path / "new").read_bytes() == NOISE and counter.counted > len(NOISE) // 2


def test_a_connection_into_another_one() -> None:
    """Both reset at their exits, so the reader below gets all before."""
    got: list[bytes] = []
    counter = Counter()
    near, far = socket.socketpair()
    with fed_socket(NOISE) as source, near, far:

        def read() -> None:
            while data := far.recv(1 << 20):
                got.append(data)
            far.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=read)
        thread.start()
        carried(source, SocketSink(near, "the other", Patience()), counter)
        thread.join()
    assert b"".join(got) == NOISE and counter.counted > len(NOISE) // 2


def test_a_file_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(NOISE)
    counter = Counter()
    with open(tmp_path / "in", "rb") as file, open(tmp_path / "out", "wb") as out, FdSource(file.fileno(), "in") as it:
        Pipeline(it, [("counter", counter)], FdSink(out.fileno(), "out")).run()
    assert (tmp_path / "out").read_bytes() == NOISE and counter.counted > len(NOISE) // 2


def test_what_is_in_the_pipe_when_the_kernel_refuses_is_written(tmp_path: Path) -> None:
    """A file with O_APPEND takes no splice: the first hop was made by then."""
    fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    counter = Counter()
    with fed_socket(NOISE) as near, open(fd, "wb") as out:
        carried(near, FdSink(out.fileno(), "out"), counter)
    assert (tmp_path / "out").read_bytes() == NOISE and 0 < counter.counted < len(NOISE)


def test_without_a_descriptor_for_the_pipe_it_goes_the_ordinary_way(tmp_path: Path) -> None:
    counter = Counter()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with fed_socket(NOISE) as near, open(tmp_path / "out", "wb") as out, FdSource(near.fileno(), "the peer") as source:
        pipeline = Pipeline(source, [("counter", counter)], FdSink(out.fileno(), "out"))
        with ExitStack() as taken:
            taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
            resource.setrlimit(resource.RLIMIT_NOFILE, (source.fd + 50, limits[1]))
            with suppress(OSError):  # until none is left
                while True:
                    taken.callback(os.close, os.dup(source.fd))
            pipeline.run()
    assert (tmp_path / "out").read_bytes() == NOISE and counter.counted == 0


def test_a_full_disk_is_told_by_name() -> None:
    refused = pytest.raises(StatepipeError, match="cannot write out: No space left on device")
    with fed_socket(NOISE) as near, open("/dev/full", "wb", 0) as out, refused:
        carried(near, FdSink(out.fileno(), "out"), Counter())


@settings(deadline=None)
@given(st.integers(1, 300_000), st.integers(0, 300_000), st.integers(3_000, 400_000))
def test_a_file_that_may_not_grow_holds_all_that_fits(size: int, limit: int, portion: int) -> None:
    """The kernel writes a part of what it was asked to, and refuses the rest."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with fed_socket(NOISE[:size]) as near, tempfile.TemporaryFile(buffering=0) as out:
        sink, counter = FdSink(out.fileno(), "out"), Counter(portion=portion)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            if size <= limit:
                carried(near, sink, counter)
            else:
                with pytest.raises(StatepipeError, match=f"cannot write out: {os.strerror(errno.EFBIG)}"):
                    carried(near, sink, counter)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert os.pread(out.fileno(), size + 1, 0) == NOISE[: min(size, limit)]
        assert sink.bytes <= min(size, limit)


def test_a_sender_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    counter = Counter()
    broken = pytest.raises(PeerError, match="the peer broke the connection off after")
    with fed_socket(NOISE[:300_000], lambda: counter.counted > 0) as near, broken:
        carried(near, FileSink(str(tmp_path / "new")), counter)
    assert os.listdir(tmp_path) == []


def test_a_receiver_that_breaks_off_is_the_one_that_is_named() -> None:
    counter = Counter()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()

        def leave() -> None:
            far.recv(1)
            while not counter.counted:
                far.recv(1 << 20)
            reset(far)
            far.close()

        with fed_socket(NOISE * 8) as source:
            thread = threading.Thread(target=leave)
            thread.start()
            with pytest.raises(PeerError, match="the receiver broke the connection off after"):
                carried(source, SocketSink(near, "the receiver", Patience()), counter)
            thread.join()


def test_a_wait_for_more_can_be_cancelled(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    counter = Counter()
    with near, far, SocketSource(near, "the peer", Patience()) as source:
        far.sendall(NOISE[:1000])
        pipeline = Pipeline(source, [("counter", counter)], FileSink(str(tmp_path / "new")))

        def cancel() -> None:
            while counter.seen + counter.counted < 1000:
                continue
            source.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(Cancelled):
            pipeline.run()
        thread.join()
    assert os.listdir(tmp_path) == []


def test_a_silent_sender_is_given_up(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    counter = Counter()
    with near, far, SocketSource(near, "the peer", Patience(0.05)) as source:
        far.sendall(NOISE[:1000])
        pipeline = Pipeline(source, [("counter", counter)], FileSink(str(tmp_path / "new")))
        with pytest.raises(PeerError, match=r"the peer has not moved for 0.05 s \(after 1000 bytes\)"):
            pipeline.run()
    assert os.listdir(tmp_path) == []
