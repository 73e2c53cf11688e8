"""FdSource and FdSink over real pipes, sockets and files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statepipe.ends.fd import FdSink, FdSource, failure, write_all
from statepipe.errors import ReaderGone, StatepipeError
from statepipe.stage import FLUSH, Cancelled
from statepipe.wakeups import PIPE_SIZE, READ_SIZE, enlarge_pipe

PATIENCE = 30
NOISE = hashlib.shake_128(b"descriptors").digest(3 << 20)


@contextmanager
def pipe() -> Iterator[tuple[int, list[int]]]:
    """Both ends; take the writing end out of its list to close it yourself."""
    reading, writing = os.pipe()
    mine = [writing]
    try:
        yield reading, mine
    finally:
        for fd in (reading, *mine):
            os.close(fd)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def test_a_pipe_is_read_to_its_end() -> None:
    with pipe() as (reading, writing), FdSource(reading, "a pipe") as source:
        writer = threading.Thread(target=lambda: (write_all(writing[0], NOISE), os.close(writing.pop())))
        writer.start()
        out = list(source)
        writer.join()
        assert b"".join(out) == NOISE and source.bytes == len(NOISE)
        assert all(0 < len(buffer) <= READ_SIZE for buffer in out)
        assert list(source) == []


def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(NOISE)
    with open(tmp_path / "f", "rb") as file, FdSource(file.fileno(), "a file") as source:
        assert b"".join(source) == NOISE


def test_a_writer_that_says_nothing_is_a_flush_mark() -> None:
    with pipe() as (reading, writing), FdSource(reading, "a pipe", idle=1) as source:
        assert next(source) == FLUSH
        os.write(writing[0], b"abc")
        assert next(source) == b"abc"
        assert [next(source), next(source)] == [FLUSH, FLUSH]
        os.close(writing.pop())
        assert list(source) == []


def test_quiet_is_neither_bytes_nor_the_end() -> None:
    with pipe() as (reading, writing), FdSource(reading, "a pipe") as source:
        assert source.is_quiet()
        source.cancel()
        assert source.is_quiet()
        os.write(writing[0], b"abc")
        assert not source.is_quiet()
        os.read(reading, 3)
        assert source.is_quiet()
        os.close(writing.pop())
        assert not source.is_quiet()


def test_cancel_wakes_a_reader_in_another_thread() -> None:
    entered, caught = threading.Event(), []
    with pipe() as (reading, _), FdSource(reading, "a pipe") as source:

        def read() -> None:
            entered.set()
            try:
                next(source)
            except Cancelled as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert entered.wait(PATIENCE)
        source.cancel()
        thread.join(PATIENCE)
        assert len(caught) == 1


def test_cancel_counts_more_than_bytes_that_wait() -> None:
    with pipe() as (reading, writing), FdSource(reading, "a pipe") as source:
        os.write(writing[0], b"abc")
        source.cancel()
        source.cancel()
        with pytest.raises(Cancelled):
            next(source)


def test_a_descriptor_that_does_not_block_is_waited_for() -> None:
    with pipe() as (reading, writing):
        os.set_blocking(reading, False)
        with FdSource(reading, "a pipe", idle=1) as source:
            assert next(source) == FLUSH
            os.write(writing[0], b"abc")
            assert next(source) == b"abc"


def test_another_reader_was_quicker() -> None:
    """poll says there is something, read finds nothing: it waits again."""
    with pipe() as (reading, writing):
        os.set_blocking(reading, False)
        with FdSource(reading, "a pipe") as source:
            os.write(writing[0], b"abc")
            source._poll = interfering = Interfering(source._poll, reading)  # type: ignore[assignment]
            thread = threading.Thread(target=interfering.write_again, args=[writing[0], b"de"])
            thread.start()
            assert next(source) == b"de"
            thread.join()


class Interfering:
    """A poll after which somebody else reads, once."""

    def __init__(self, poll: object, fd: int) -> None:
        self.poll_, self.fd, self.stolen = poll, fd, threading.Event()

    def poll(self, timeout: int | None) -> object:
        ready = self.poll_.poll(timeout)  # type: ignore[attr-defined]
        if not self.stolen.is_set():
            os.read(self.fd, 100)
            self.stolen.set()
        return ready

    def write_again(self, fd: int, data: bytes) -> None:
        assert self.stolen.wait(PATIENCE)
        os.write(fd, data)


def test_a_read_that_fails_names_the_source(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with FdSource(folder, "the folder") as source, pytest.raises(StatepipeError, match="cannot read the folder: Is a"):
        next(source)
    os.close(folder)


def test_a_peer_that_resets_is_an_error_not_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    with ours, FdSource(ours.fileno(), "the socket") as source:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        with pytest.raises(StatepipeError, match="cannot read the socket: Connection reset by peer"):
            next(source)


def test_the_descriptor_stays_its_owners() -> None:
    with pipe() as (reading, writing):
        with FdSource(reading, "a pipe"):
            pass
        with FdSink(writing[0], "a pipe") as sink:
            sink.commit()
        os.fstat(reading)
        os.fstat(writing[0])


def test_what_leaves_is_what_was_written_however_slowly_it_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.extend(iter(lambda: theirs.recv(7001), b"")))
        reader.start()
        with FdSink(ours.fileno(), "the socket") as sink:
            for kind in (bytes, bytearray, memoryview):
                sink.write(kind(NOISE[:500_000]))
            sink.write(b"")
            assert sink.bytes == 1_500_000
        ours.shutdown(socket.SHUT_WR)
        reader.join()
        assert b"".join(got) == NOISE[:500_000] * 3


def test_waiting_for_room_works_with_any_number_of_descriptors() -> None:
    """select() knows none above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this system allows no descriptor so high")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    ours, theirs = socket.socketpair()
    high = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 1500)
    try:
        os.set_blocking(high, False)
        reader = threading.Thread(target=lambda: [None for _ in iter(lambda: theirs.recv(1 << 16), b"")])
        reader.start()
        assert write_all(high, NOISE) == len(NOISE)
        ours.shutdown(socket.SHUT_WR)
        reader.join()
    finally:
        os.close(high)
        ours.close()
        theirs.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_reader_that_went_away_is_sigpipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    sink = FdSink(writing, "a pipe")
    with pytest.raises(ReaderGone) as caught:
        sink.write(b"abc")
    assert caught.value.exit_code == 141
    os.close(writing)


def test_a_full_disk_names_the_sink_and_what_to_do() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(StatepipeError, match="cannot write the disk: No space left on device") as caught:
        FdSink(full, "the disk").write(b"abc")
    assert "make room" in (caught.value.hint or "")
    os.close(full)


def test_pipes_are_enlarged_and_others_left_alone(tmp_path: Path) -> None:
    with pipe() as (reading, _):
        enlarge_pipe(reading)
        assert fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ) == PIPE_SIZE
    with open(tmp_path / "f", "wb") as file:
        enlarge_pipe(file.fileno())


def test_an_error_of_an_unknown_kind_has_no_hint() -> None:
    assert failure("do it", OSError(5, "x")).hint
    assert failure("do it", OSError(71, "x")).hint is None
    assert str(failure("do it", OSError())).startswith("cannot do it: ")
