"""The way past the stages that only count: the same bytes, the same counters, the same errors as the ordinary way."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from statepipe.ends.fd import FdSink, FdSource
from statepipe.ends.net import Patience, SocketSource, reset
from statepipe.errors import ReaderGone, StatepipeError
from statepipe.pipeline.pipeline import Pipeline
from statepipe.stage import Buffer, Cancelled, Stage
from statepipe.stages.prove import CONTAINER, MIGRATION, Proof

NOISE = hashlib.shake_128(b"shortcut").digest(3 << 20)


class Counter:
    """A meter: it sees bytes until it has seen `looks` buffers, and admits `portion` at a time."""

    def __init__(self, looks: int = 1, portion: int = 1 << 30) -> None:
        self.looks, self.portion = looks, portion
        self.seen = self.counted = 0

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        for buffer in upstream:
            self.looks -= 1
            self.seen += len(buffer)
            yield buffer

    @property
    def blind(self) -> bool:
        return self.looks <= 0

    def admit(self, wanted: int) -> int:
        return min(wanted, self.portion)

    def passed(self, count: int) -> None:
        self.counted += count


@contextmanager
def fed_pipe(data: bytes) -> Iterator[int]:
    """The reading end of a pipe that a thread fills."""
    reading, writing = os.pipe()

    def feed() -> None:
        with open(writing, "wb") as file:
            try:
                file.write(data)
            except BrokenPipeError:
                return

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield reading
    finally:
        os.close(reading)
        thread.join()


def carried(data: bytes, target: Path, *counters: Stage, flags: int = 0) -> dict[str, object]:
    """What the pipeline tells once the data have gone from a pipe to a file."""
    out = os.open(target, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    try:
        with fed_pipe(data) as pipe, FdSource(pipe, "a pipe") as source:
            stages = [(f"counter {n}", counter) for n, counter in enumerate(counters)]
            pipeline = Pipeline(source, stages, FdSink(out, "a file"))
            pipeline.run()
            return pipeline.status()
    finally:
        os.close(out)


@pytest.mark.parametrize("size", [0, 1, 100, len(NOISE)])
def test_every_byte_and_every_counter(tmp_path: Path, size: int) -> None:
    counters = [Counter(), Counter(portion=70_001)]
    status = carried(NOISE[:size], tmp_path / "out", *counters)
    assert (tmp_path / "out").read_bytes() == NOISE[:size]
    stages = [{"name": f"counter {n}", "in": size, "out": size} for n in range(2)]
    assert (status["bytes_in"], status["bytes_out"], status["stages"]) == (size, size, stages)
    assert all(counter.seen + counter.counted == size for counter in counters)


def test_the_kernel_moves_what_nobody_looks_at(tmp_path: Path) -> None:
    counter = Counter(looks=2)
    carried(NOISE, tmp_path / "out", counter)
    assert counter.counted > len(NOISE) // 2 and counter.looks == 0


def test_one_that_looks_on_sees_all(tmp_path: Path) -> None:
    watchful, blind = Counter(looks=1 << 30), Counter()
    carried(NOISE, tmp_path / "out", blind, watchful)
    assert (watchful.seen, watchful.counted) == (len(NOISE), 0)


def test_a_file_that_takes_no_splice_is_written_the_ordinary_way(tmp_path: Path) -> None:
    """With O_APPEND splice says EINVAL."""
    (tmp_path / "out").write_bytes(b"before")
    status = carried(NOISE, tmp_path / "out", Counter(), flags=os.O_APPEND)
    assert (tmp_path / "out").read_bytes() == b"before" + NOISE
    assert status["bytes_out"] == len(NOISE)


def test_a_full_disk_is_told_by_name() -> None:
    with pytest.raises(StatepipeError, match="cannot write a file: No space left on device"):
        carried(NOISE, Path("/dev/full"), Counter())


def test_a_reader_that_left_is_sigpipe() -> None:
    reading, writing = os.pipe()
    counter = Counter()
    with fed_pipe(NOISE) as pipe, FdSource(pipe, "a pipe") as source, open(writing, "wb") as out:

        def leave() -> None:
            while len(os.read(reading, 4096)) == 4096 and not counter.counted:
                continue
            os.close(reading)

        thread = threading.Thread(target=leave)
        thread.start()
        with pytest.raises(ReaderGone) as caught:
            Pipeline(source, [("counter", counter)], FdSink(out.fileno(), "a pipe")).run()
        thread.join()
    assert caught.value.exit_code == 141


@pytest.mark.parametrize("plain", [True, False])
def test_a_reset_between_two_splices_is_an_error_and_no_end(*, plain: bool) -> None:
    """A socket reports its reset once: the next read of it finds a clean end."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as far:
        near, _ = server.accept()
        counter, reading, writing = Counter(), *os.pipe()

        def feed() -> None:
            with open(reading, "rb", 0) as taken:
                for _ in range(2):
                    far.sendall(NOISE[:1000])
                    assert len(taken.read(1000)) == 1000
                reset(far)
                far.close()
                taken.read()

        thread = threading.Thread(target=feed)
        source = FdSource(near.fileno(), "a socket") if plain else SocketSource(near, "a socket", Patience())
        with near, open(writing, "wb") as out, source:
            thread.start()
            with pytest.raises(StatepipeError, match=r"reset by peer|broke the connection off after 2000 bytes"):
                Pipeline(source, [("counter", counter)], FdSink(out.fileno(), "a pipe")).run()
            out.close()
            thread.join()
    assert counter.counted == 1000


@pytest.mark.parametrize("head", [b"any", MIGRATION, CONTAINER])
def test_only_a_stream_that_can_be_proved_is_followed(head: bytes, tmp_path: Path) -> None:
    proof, counter = Proof(), Counter()
    with suppress(StatepipeError):  # behind its first bytes it is no such stream
        carried(head + NOISE, tmp_path / "out", proof, counter)
    assert proof.blind == (counter.counted > 0) == (head == b"any")


def test_a_wait_for_more_can_be_cancelled() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb", 0) as feed, open(os.devnull, "wb") as out:
        feed.write(b"x")
        counter = Counter()
        with FdSource(reading, "a pipe") as source:
            pipeline = Pipeline(source, [("counter", counter)], FdSink(out.fileno(), "nothing"))
            threading.Timer(0.05, source.cancel).start()
            with pytest.raises(Cancelled):
                pipeline.run()


def test_descriptors_that_do_not_block_go_the_ordinary_way(tmp_path: Path) -> None:
    with fed_pipe(NOISE) as pipe, FdSource(pipe, "a pipe") as source, open(tmp_path / "out", "wb") as out:
        os.set_blocking(pipe, False)
        counter = Counter()
        Pipeline(source, [("counter", counter)], FdSink(out.fileno(), "a file")).run()
    assert counter.counted == 0 and (tmp_path / "out").read_bytes() == NOISE
