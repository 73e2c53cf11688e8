"""A save image in a FIFO, read as each libvirt reads it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statepipe.errors import ReaderGone, StatepipeError
from statepipe.formats.libvirtimage import HEADER_SIZE, Domain, beginning
from statepipe.libvirt.offer import FIRST, OPENS, PIECE, Offer, Withdrawn

BEGINNING = beginning(Domain(b"<domain>" + bytes(range(1, 255)) * 200 + b"</domain>", b"<cookie/>", True))
STREAM = os.urandom(3 << 20)

Reader = Callable[[Path], bytes]


@contextmanager
def offered(folder: Path) -> Iterator[tuple[Offer, Path, int]]:
    """An offer, its path, and the descriptor whose closing means that virsh has ended."""
    path = folder / "image"
    ended, virsh = os.pipe()
    try:
        with Offer(str(path), BEGINNING, ended) as offer:
            yield offer, path, virsh
        assert os.listdir(folder) == []
    finally:
        os.close(ended)


def take(fd: int, size: int) -> bytes:
    """Read exactly so many bytes, as libvirt's saferead does."""
    data = b""
    while len(data) < size and (part := os.read(fd, size - len(data))):
        data += part
    return data


def read_head(path: Path, size: int = len(BEGINNING)) -> None:
    """Open the image, read its first bytes in libvirt's own portions, and close it."""
    fd = os.open(path, os.O_RDONLY)
    head = take(fd, min(size, HEADER_SIZE))
    head += take(fd, size - len(head))
    os.close(fd)
    assert head == BEGINNING[:size]


def read_all(path: Path) -> bytes:
    """Open the image, and read it to its end."""
    fd = os.open(path, os.O_RDONLY)
    assert take(fd, HEADER_SIZE) == BEGINNING[:HEADER_SIZE]
    assert take(fd, len(BEGINNING) - HEADER_SIZE) == BEGINNING[HEADER_SIZE:]
    data = b""
    while part := os.read(fd, 1 << 20):
        data += part
    os.close(fd)
    return data


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[list[object]]:
    """Run `work` in a thread; its result is in the list once the context has ended."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    try:
        yield results
    finally:
        thread.join()


@pytest.mark.parametrize("looks", [(), (len(BEGINNING),), (len(BEGINNING),) * (OPENS - 1), (HEADER_SIZE, 5000)])
@pytest.mark.parametrize("cut", [1, 8, PIECE, PIECE + 1, len(STREAM)])
def test_who_reads_on_gets_all_of_the_stream(tmp_path: Path, looks: tuple[int, ...], cut: int) -> None:
    """However often it opened the image before, and however the stream's first buffer is cut."""

    def libvirt() -> bytes:
        for size in looks:
            read_head(path, size)
        return read_all(path)

    with offered(tmp_path) as (offer, path, _), beside(libvirt) as results:
        offer.write(STREAM[:cut])
        offer.write(memoryview(STREAM)[cut:])
        assert offer.bytes == len(STREAM)
        offer.commit()
    assert results == [STREAM]


def test_one_that_never_reads_on_is_told_apart_from_libvirt(tmp_path: Path) -> None:
    def look() -> None:
        for _ in range(OPENS):
            read_head(path)

    with offered(tmp_path) as (offer, path, _), beside(look), pytest.raises(StatepipeError, match="16 times"):
        offer.write(STREAM)


def test_a_reader_that_takes_a_part_of_the_stream_gets_no_second_chance(tmp_path: Path) -> None:
    def take_some() -> None:
        fd = os.open(path, os.O_RDONLY)
        take(fd, len(BEGINNING) + PIECE + 1)
        os.close(fd)

    with offered(tmp_path) as (offer, path, _), beside(take_some), pytest.raises(ReaderGone) as gone:
        offer.write(STREAM)
    assert not isinstance(gone.value, Withdrawn)


@pytest.mark.parametrize("size", [0, 10, HEADER_SIZE, len(BEGINNING)])
def test_virsh_that_ends_before_the_stream_was_read_ends_the_offer(tmp_path: Path, size: int) -> None:
    def fail() -> None:
        read_head(path, size)
        os.close(virsh)

    with offered(tmp_path) as (offer, path, virsh), beside(fail), pytest.raises(Withdrawn):
        offer.write(STREAM)


def test_a_reader_of_a_withdrawn_offer_finds_the_end(tmp_path: Path) -> None:
    """One that has it open, and one that was opening it just then; a later one finds no file."""
    with offered(tmp_path) as (offer, path, _):
        fd = os.open(path, os.O_RDONLY)
        held = os.open(path, os.O_PATH)
        offer.withdraw()
        assert take(fd, 1 << 20) == BEGINNING[:FIRST]
        os.close(fd)
        with pytest.raises(FileNotFoundError):
            os.open(path, os.O_RDONLY)
        with beside(lambda: os.read(os.open(f"/proc/self/fd/{held}", os.O_RDONLY), 1)) as late:
            while not late:
                offer.wake()
        os.close(held)
    assert late == [b""]


def test_a_folder_without_room_for_a_fifo_is_named(tmp_path: Path) -> None:
    with pytest.raises(StatepipeError, match=r"offer the state at .*image"):
        Offer(str(tmp_path / "gone" / "image"), BEGINNING, 0)
