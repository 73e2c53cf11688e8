"""The working set: which pages a guest touched first after a load, in a file beside the state.

A load with --learn records and writes it; every later lazy load sends these pages before the guest runs, as any
migration does: without a fault of the guest and without a system call of QEMU for each page. Without the file, or with
one that does not fit the state, the load is as usual.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager

from statepipe.ends.file import FileSink
from statepipe.errors import StatepipeError
from statepipe.formats.qemu.pages import STORED, Run
from statepipe.formats.qemu.postcopy import PAGE_SIZE
from statepipe.formats.workingset import LIMIT, MAGIC, MOST_PAGES, build_working_set, parse_working_set
from statepipe.lazy.pageset import PageSet
from statepipe.state.pagestore import PageStore
from statepipe.telling import Tell
from statepipe.threads import ahead

READ_AHEAD = 48 << 20
"""Bytes of decoded frames that wait for QEMU."""


def place_of(store: PageStore) -> str | None:
    """Return the path of the working set of a state; None if it has no place for one."""
    return None if store.beside is None else store.beside + ".working-set"


def page_set(store: PageStore) -> PageSet:
    """Return an empty set of the pages of a state."""
    return PageSet([block.length // PAGE_SIZE for block in store.index.outline.blocks])


def read_working_set(store: PageStore, warn: Tell) -> PageSet | None:
    """Return the working set of a state; None without one, or, after a warning, if it does not fit the state."""
    path, blocks = place_of(store), store.index.outline.blocks
    if path is None:
        return None
    data = None
    try:
        data = _content(path)
        if data is None:
            return None
        named = parse_working_set(data, store.digest, {block.name: block.length // PAGE_SIZE for block in blocks})
    except StatepipeError as error:
        again = "load with --learn to write a new one, or " if data is not None and _is_one(data) else ""
        warn(f"{path} is ignored: {error}; {again}remove it")
        return None
    found = page_set(store)
    for number, block in enumerate(blocks):
        for first, count in named.get(block.name, ()):
            found.add(number, first, count)
    return found


def held_back(store: PageStore) -> tuple[int, int]:
    """Return the page that is never sent before the guest runs, as (number of the block, page).

    It is the first of the largest block: of a PC, the interrupt table of real mode, which a running guest hardly needs.
    """
    blocks = store.index.outline.blocks
    return max(range(len(blocks)), key=lambda number: blocks[number].length), 0


def _content(path: str) -> bytes | None:
    """Return at most LIMIT + 1 bytes of the file; None if there is none. Raises StatepipeError."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StatepipeError("it is not a regular file")
            return file.read(LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # with its ending, a long name is too long
            return None
        raise StatepipeError(f"it cannot be read: {error.strerror}") from error


def _is_one(beginning: bytes) -> bool:
    """Whether a file that begins like this is a working set."""
    return beginning.startswith(MAGIC)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a FIFO without a writer does not hold us up."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


class Recorder:
    """Records the pages of a state that a guest asks for, besides those `known` already.

    There are MOST_PAGES at most: the first ones count.
    """

    def __init__(self, store: PageStore, known: PageSet | None) -> None:
        self._store = store
        self.pages = page_set(store)
        for block, runs in known.runs() if known is not None else ():
            for first, count in runs:
                self.pages.add(block, first, count)
        self._room = MOST_PAGES - len(self.pages)

    def add(self, block: int, page: int) -> None:
        """Record a page."""
        if self._room > 0:
            self._room -= len(self.pages.add(block, page, 1))

    @property
    def is_full(self) -> bool:
        """Whether further pages are not recorded."""
        return self._room <= 0

    def write(self) -> str:
        """Write the working set beside the state, and return its path. Raises StatepipeError."""
        path = place_of(self._store)
        if path is None:
            raise StatepipeError(f"{self._store.name} has no place for it", hint="name a folder with --cache")
        if (older := _content(path)) and not _is_one(older):
            raise StatepipeError(f"{path} is not a working set, and is not replaced")
        names = [block.name for block in self._store.index.outline.blocks]
        with FileSink(path, replaceable=_is_one) as sink:  # another user's folder may have a link there by now
            runs = ((names[block], found) for block, found in self.pages.runs())
            sink.write(build_working_set(self._store.digest, runs))
            sink.commit()
        return path


@contextmanager
def first_pages(store: PageStore, warn: Tell) -> Iterator[FirstPages | None]:
    """Read the working set of a state, if there is one, and its pages from then on."""
    pages = read_working_set(store, warn)
    if pages is None:
        yield None
        return
    pages.remove(*held_back(store))
    with closing(FirstPages(store, pages)) as first:
        yield first


Chosen = tuple[Run, memoryview, int, int]
"""Stored pages to be sent first: a run, its bytes, and of its pages the first one and how many."""


class FirstPages:
    """The pages of a state that are sent before the guest runs. They are read from now on, while QEMU starts."""

    def __init__(self, store: PageStore, pages: PageSet) -> None:
        self._store, self.pages = store, pages
        self.zeros: list[tuple[int, int]] = []
        size = store.span(store.frames - 1)[1] // store.frames
        self._frames = ahead(self._read(), READ_AHEAD // size + 1)
        next(self._frames)

    def frames(self) -> Iterator[list[Chosen]]:
        """Return the stored pages, frame by frame. After that, `zeros` has the others, as (block, page).

        Raises StatepipeError.
        """
        return self._frames

    def close(self) -> None:
        """End the reading."""
        self._store.give_up()
        self._frames.close()

    def _read(self) -> Iterator[list[Chosen]]:
        yield []  # at once: whoever waits for it has the reading begin
        numbers, self.zeros = _located(self._store, self.pages)
        with closing(self._store.ahead(numbers)) as frames:
            for _, found in frames:
                yield [
                    (run, data, first, count)
                    for run, data in found
                    for first, count in self.pages.among(run.block, run.page, run.pages)
                ]


def _located(store: PageStore, pages: PageSet) -> tuple[list[int], list[tuple[int, int]]]:
    """Return where these pages are: the frames that hold them, in order, and those that are zeros, as (block, page).

    A frame in which a page only ends is among them: if it is damaged, reading it says so.
    """
    index, frames, zeros = store.index, set[int](), list[tuple[int, int]]()
    for block, runs in pages.runs():
        for first, count in runs:
            page, stop = first, first + count
            while page < stop:
                run = index.find(block, page)
                end = page + 1 if run is None else min(stop, run.page + run.pages)
                if run is None or run.kind != STORED:
                    zeros += [(block, zero) for zero in range(page, end)]
                else:
                    place = run.place + (page - run.page) * index.stride
                    last = place + (end - page) * index.stride - index.stride + PAGE_SIZE - 1
                    frames.update(range(store.frame_for(place), store.frame_for(last) + 1))
                page = end
    return sorted(frames), zeros
