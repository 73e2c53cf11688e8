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
from statepipe.libvirt.virsh import LibvirtSilent

BEGINNING = beginning(Domain(b"<domain>" + bytes(range(1, 255)) * 200 + b"</domain>", b"<cookie/>", True))
STREAM = os.urandom(3 << 20)

Offered = tuple[Offer, str, int]


@pytest.fixture
def offered() -> Iterator[Offered]:
    """An offer, its path, and the descriptor whose closing means that virsh has ended."""
    ended, virsh = os.pipe()
    try:
        with Offer(BEGINNING) as offer:
            offer.ended = ended
            yield offer, offer.path, virsh
        assert not os.path.exists(offer.folder)
    finally:
        os.close(ended)


def take(fd: int, size: int) -> bytes:
    """Read exactly so many bytes, as libvirt's saferead does."""
    data = b""
    while len(data) < size and (part := os.read(fd, size - len(data))):
        data += part
    return data


def read_head(path: str, size: int = len(BEGINNING)) -> None:
    """Open the image, read its first bytes in libvirt's own portions, and close it."""
    fd = os.open(path, os.O_RDONLY)
    head = take(fd, min(size, HEADER_SIZE))
    head += take(fd, size - len(head))
    os.close(fd)
    assert head == BEGINNING[:size]


def read_all(path: str) -> bytes:
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
def test_who_reads_on_gets_all_of_the_stream(offered: Offered, looks: tuple[int, ...], cut: int) -> None:
    """However often it opened the image before, and however the stream's first buffer is cut."""

    def libvirt() -> bytes:
        for size in looks:
            read_head(path, size)
        return read_all(path)

    offer, path, _ = offered
    with beside(libvirt) as results:
        offer.write(STREAM[:cut])
        offer.write(memoryview(STREAM)[cut:])
        assert offer.bytes == len(STREAM)
        offer.commit()
    assert results == [STREAM]


def test_one_that_never_reads_on_is_told_apart_from_libvirt(offered: Offered) -> None:
    def look() -> None:
        for _ in range(OPENS):
            read_head(path)

    offer, path, _ = offered
    with beside(look), pytest.raises(StatepipeError, match="16 times"):
        offer.write(STREAM)


def test_a_reader_that_takes_a_part_of_the_stream_gets_no_second_chance(offered: Offered) -> None:
    def take_some() -> None:
        fd = os.open(path, os.O_RDONLY)
        take(fd, len(BEGINNING) + PIECE + 1)
        os.close(fd)

    offer, path, _ = offered
    with beside(take_some), pytest.raises(ReaderGone) as gone:
        offer.write(STREAM)
    assert not isinstance(gone.value, Withdrawn)


@pytest.mark.parametrize("size", [0, 10, HEADER_SIZE, len(BEGINNING)])
def test_virsh_that_ends_before_the_stream_was_read_ends_the_offer(offered: Offered, size: int) -> None:
    def fail() -> None:
        read_head(path, size)
        os.close(virsh)

    offer, path, virsh = offered
    with beside(fail), pytest.raises(Withdrawn):
        offer.write(STREAM)


def test_a_reader_of_a_withdrawn_offer_finds_the_end(offered: Offered) -> None:
    """One that has it open, and one that was opening it just then; a later one finds no file."""
    offer, path, _ = offered
    if True:
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


def test_a_folder_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "statepipe").touch()
    with pytest.raises(StatepipeError, match="make a folder for libvirt's FIFO: Not a directory"):
        Offer(BEGINNING)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    offer = Offer(BEGINNING)
    Path(offer.folder).touch()
    with pytest.raises(StatepipeError, match="make a folder for libvirt's FIFO: File exists"), offer:
        pass


def test_a_file_for_virsh_is_ours_alone_and_goes_with_the_folder(offered: Offered) -> None:
    offer, _, _ = offered
    path = Path(offer.put("domain.xml", b"<domain/>"))
    assert path.read_bytes() == b"<domain/>"
    assert path.parent.stat().st_mode & 0o077 == 0
    with pytest.raises(StatepipeError, match=r"domain\.xml: File exists"):
        offer.put("domain.xml", b"")


def test_a_libvirt_that_opens_nothing_is_not_waited_for_without_end(
    offered: Offered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statepipe.libvirt.offer.LATEST", 0.1)
    with pytest.raises(LibvirtSilent, match=r"libvirt has not opened the image after 0\.1 s"):
        offered[0].write(STREAM)
