"""The server against a destination that reads what QEMU would, and asks as QEMU does."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from struct import pack

import pytest

from statepipe.formats.qemu.postcopy import Block
from statepipe.formats.qemu.stream import QemuStream
from statepipe.lazy.pageset import PageSet
from statepipe.lazy.server import AllSent, Damaged, Failed, Learned, Server, Shut
from statepipe.lazy.work import LazyWork
from statepipe.lazy.workingset import FirstPages
from statepipe.state.pagestore import FrameDamaged, open_pages
from tests import streams
from tests.statefiles import DATA, NO_KEYS, cut, layout, noise, state_file

PAGES = 64
BLOCKS = [Block(name, length) for name, length in streams.BLOCKS]
"""pc.ram of 64 pages, pc.bios of 16."""

ZEROS = range(40, 50)


def stream() -> bytes:
    """pc.ram has noise but for ZEROS, and pages that the stream does not have; page 3 is there twice."""
    rounds = streams.ram(noise(0, "pc.ram"), *map(noise, range(1, 40)), *map(streams.zero, ZEROS))
    again = streams.ram(streams.ordinary(3, "pc.ram"), noise(2, "pc.bios"), noise(3), kind=3)
    rest = streams.devices() + b"\0" + streams.vmdesc(*streams.DEVICES)
    return streams.head() + streams.ram_start() + rounds + again + rest


def expected() -> dict[tuple[str, int], bytes]:
    pages = {("pc.ram", page): noise(page)[8:] for page in range(40)}
    pages["pc.ram", 3] = streams.ordinary(3)[8:]
    return pages | {("pc.bios", page): noise(page)[8:] for page in (2, 3)}


class Destination:
    """Reads sections of RAM as QEMU does after LISTEN, and fails over a page that it has."""

    def __init__(self, link: socket.socket) -> None:
        self._link, self._file = link, link.makefile("rb")
        link.settimeout(20)
        self.pages: dict[tuple[str, int], bytes] = {}
        self.order: list[tuple[str, int]] = []
        self._block = ""

    def close(self) -> None:
        self._file.close()

    def ask(self, block: str, page: int) -> None:
        self._link.sendall(pack(">HHQIB", 3, 13 + len(block), page * 4096, 4096, len(block)) + block.encode())

    def section(self) -> bool:
        """Read one; False after the last."""
        kind = self._file.read(1)[0]
        assert self._file.read(4) == pack(">I", streams.RAM_ID) and kind in (2, 3)
        while not (header := int.from_bytes(self._file.read(8), "big")) & 0x10:
            if not header & 0x20:
                self._block = self._file.read(self._file.read(1)[0]).decode()
            where = (self._block, header >> 12)
            assert where not in self.pages, f"{where} came twice"
            self.pages[where] = self._file.read(4096) if header & 0x08 else bytes(4096)
            assert header & 0x08 or self._file.read(1) == b"\0"
            self.order.append(where)
        assert self._file.read(5) == streams.footer(streams.RAM_ID)
        return kind == 2 or self._file.read(1) != b"\0"

    def is_package(self) -> bool:
        """Whether the package follows; then it is read."""
        return self._file.peek(1)[:1] == b"P" and self._file.read(8) == b"PACKAGE!"

    def until(self, block: str, page: int) -> None:
        while (block, page) not in self.pages:
            self.section()


def written(folder: Path, damage: bool = False) -> Path:
    data = bytearray(state_file(cut(stream(), 8), index=True))
    if damage:
        frame = [piece for piece in layout(bytes(data)) if piece.magic == DATA][4]
        data[(frame.start + frame.end) // 2] ^= 1
    path = folder / "state"
    path.write_bytes(data)
    return path


def a_set(*pages: tuple[str, int]) -> PageSet:
    """These pages."""
    found = PageSet([block.length // 4096 for block in BLOCKS])
    for name, page in pages:
        found.add([block.name for block in BLOCKS].index(name), page, 1)
    return found


@contextmanager
def serving(path: Path, *pages: tuple[str, int], learns: bool = False) -> Iterator[tuple[Server, Destination]]:
    """With `pages`, these are sent before the package; the test reads them and it."""
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        open_pages(str(path), NO_KEYS) as store,
    ):
        server = Server(store, ours, BLOCKS, time.monotonic)
        first = FirstPages(store, a_set(*pages)) if pages else None
        if learns:
            server.learn(first)
        try:
            server.begin(b"OPENING!", b"PACKAGE!" if pages else b"", first)
            destination = Destination(theirs)
            assert theirs.recv(8) == b"OPENING!"
            yield server, destination
        finally:
            server.close()
            if first is not None:
                first.close()


def test_each_stored_page_comes_once_the_last_copy_of_it_and_no_zeros(tmp_path: Path) -> None:
    with serving(written(tmp_path)) as (server, destination):
        server.push()
        while destination.section():
            continue
        assert destination.pages == expected()
        assert server.news.get(timeout=20) == AllSent()
        destination._link.sendall(pack(">HHI", 1, 4, 0))
        assert server.news.get(timeout=20) == Shut(0)
        assert server.figures.pages == len(expected()) == server.figures.total


def test_a_page_that_is_asked_for_comes_first_and_its_frame_with_the_background(tmp_path: Path) -> None:
    with serving(written(tmp_path)) as (server, destination):
        destination.ask("pc.ram", 30)
        destination.section()
        assert destination.order[0] == ("pc.ram", 30)
        server.push()
        while destination.section():
            continue
        assert destination.pages == expected()
        assert server.figures.waits.count == 1 and server.figures.waits.longest > 0


@pytest.mark.parametrize("where", [("pc.ram", 44), ("pc.ram", 60), ("pc.bios", 0)])
def test_zeros_that_are_asked_for_come_once(tmp_path: Path, where: tuple[str, int]) -> None:
    """Also those that the stream does not have."""
    with serving(written(tmp_path)) as (server, destination):
        destination.ask(*where)
        destination.until(*where)
        assert destination.pages[where] == bytes(4096)
        destination.ask(*where)
        server.push()
        while destination.section():
            continue
        assert destination.pages == expected() | {where: bytes(4096)}


def test_requests_at_random_beside_the_background_never_bring_a_page_twice(tmp_path: Path) -> None:
    path = written(tmp_path)
    for seed in range(20):
        chance = random.Random(seed)
        with serving(path) as (server, destination):
            server.set_rate(40_000_000)
            server.push()
            for _ in range(30):
                destination.ask(*chance.choice([("pc.ram", chance.randrange(64)), ("pc.bios", chance.randrange(16))]))
            while destination.section():
                continue
            assert {where: data for where, data in destination.pages.items() if any(data)} == expected()


def test_a_rate_holds_the_background_and_no_request(tmp_path: Path) -> None:
    with serving(written(tmp_path)) as (server, destination):
        server.set_rate(1)
        server.push()
        destination.ask("pc.ram", 20)
        destination.until("pc.ram", 20)
        server.set_rate(None)
        while destination.section():
            continue
        assert destination.pages == expected()


def test_of_a_damaged_frame_no_page_leaves_and_all_others_do(tmp_path: Path) -> None:
    with serving(written(tmp_path, damage=True)) as (server, destination):
        server.push()
        told = []
        while (news := server.news.get(timeout=20)) != AllSent():
            told.append(news)
        assert len(told) == 1 and isinstance(told[0], Damaged) and told[0].asked is None
        missing = {where for where in expected() if where not in _read_so_far(destination, server)}
        assert missing and all(block == "pc.ram" for block, _ in missing)
        assert {where: data for where, data in expected().items() if where not in missing} == destination.pages
        page = min(page for _, page in missing)
        destination.ask("pc.ram", page)
        again = server.news.get(timeout=20)
        assert isinstance(again, Damaged) and again.asked is not None and again.asked.page == page


def test_a_file_that_became_shorter_is_a_trouble_at_once(tmp_path: Path) -> None:
    """The main thread may be waiting for a QEMU that waits for a page of it. A connection that ends is none."""
    path, told = written(tmp_path), threading.Event()
    with serving(path) as (server, destination):
        server.at_trouble(told.set)
        os.truncate(path, 2000)
        destination.ask("pc.ram", 20)
        assert told.wait(20)
        failed = server.news.get(timeout=20)
        assert isinstance(failed, Failed) and "was changed while it was read" in str(failed.error)
        assert server.failure is failed.error
        told.clear()
        server.at_trouble(told.set)
        assert told.is_set(), "it came before anybody asked to be told"
    with serving(written(tmp_path)) as (server, destination):
        server.at_trouble(told.clear)
        destination._link.shutdown(socket.SHUT_RDWR)
        failed = server.news.get(timeout=20)
        assert isinstance(failed, Failed) and server.failure is None and told.is_set()


# --- the working set

FIRST = [("pc.ram", page) for page in (0, 3, 7, 8, 9, 30, 44, 45, 63)] + [("pc.bios", 2), ("pc.bios", 9)]
"""Pages in several frames, zeros of the stream, and pages that it does not have."""


def test_a_working_set_comes_before_the_package_zeros_too_and_never_again(tmp_path: Path) -> None:
    with serving(written(tmp_path), *FIRST) as (server, destination):
        while not destination.is_package():
            destination.section()
        zeros = {where: bytes(4096) for where in FIRST if where not in expected()}
        assert destination.pages == {where: (expected() | zeros)[where] for where in FIRST}
        assert server.figures.first == server.figures.pages == len(FIRST) - len(zeros)
        for where in FIRST:
            destination.ask(*where)
        server.push()
        while destination.section():
            continue
        assert destination.pages == expected() | zeros


def test_a_page_of_a_working_set_whose_frame_is_damaged_ends_the_load(tmp_path: Path) -> None:
    """Also one that begins in a good frame and ends in the damaged one: it is not sent as zeros instead."""
    path, failed = written(tmp_path, damage=True), 0
    for where in expected():
        with serving(path, where) as (server, destination):
            if _arrives(server, destination):
                destination.section()
                assert destination.is_package() and destination.pages == {where: expected()[where]}
                continue
            news = server.news.get()
            assert isinstance(news, Failed) and isinstance(news.error, FrameDamaged)
            assert not destination.order
            failed += 1
    assert 2 <= failed < len(expected()) / 2


def _arrives(server: Server, destination: Destination) -> bool:
    """Wait for bytes (True) or for news."""
    while server.news.empty():
        if select([destination._link], [], [], 0.01)[0]:
            return True
    return False


def test_while_it_learns_a_request_brings_its_page_alone(tmp_path: Path) -> None:
    with serving(written(tmp_path), ("pc.ram", 12), learns=True) as (server, destination):
        while not destination.is_package():
            destination.section()
        asked = [("pc.ram", 30), ("pc.ram", 31), ("pc.ram", 44), ("pc.bios", 2)]
        for where in asked:
            destination.ask(*where)
            destination.section()
            assert destination.order[-1] == where
        assert len(destination.order) == 1 + len(asked)
        server.push(after=0)
        while destination.section():
            continue
        news = server.news.get(timeout=20)
        assert isinstance(news, Learned)
        assert dict(news.recorder.pages.runs()) == dict(a_set(("pc.ram", 12), *asked).runs())
        assert destination.pages == expected() | {("pc.ram", 44): bytes(4096)}


def test_a_time_is_named_once_the_background_sends(tmp_path: Path) -> None:
    """What the guest asked for before says nothing of its speed."""
    with serving(written(tmp_path), ("pc.ram", 12), learns=True) as (server, destination):
        work = LazyWork(server, lambda: True)
        while not destination.is_package():
            destination.section()
        destination.ask("pc.ram", 30)
        destination.section()
        assert work.status()["lazy"]["seconds_left"] is None
        server.set_rate(1 << 20)
        server.push()
        while destination.section():
            continue
        assert server.news.get(timeout=20) and isinstance(server.news.get(timeout=20), AllSent)
        assert work.status()["lazy"]["seconds_left"] == 0


def test_a_load_that_ends_while_it_learns_does_not_wait(tmp_path: Path) -> None:
    with serving(written(tmp_path), learns=True) as (server, destination):
        server.push(after=3600)
        destination.ask("pc.ram", 1)
        destination.until("pc.ram", 1)
    assert destination.order == [("pc.ram", 1)]


def _read_so_far(destination: Destination, server: Server) -> set[tuple[str, int]]:
    while len(destination.pages) < server.figures.pages:
        destination.section()
    return set(destination.pages)


def test_the_stream_of_these_tests_is_one_of_qemus() -> None:
    parser = QemuStream()
    parser.feed(stream())
    parser.close()
    assert parser.pages.repeated == 1
