"""The working set: which pages a guest touched first after a load, in a file beside the state.

A load with --learn records and writes it; every later lazy load sends these pages before the guest runs, as any
migration does: without a fault of the guest and without a system call of QEMU for each page. Without the file, or with
one that does not fit the state, the load is as usual.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from statepipe.ends.file import FileSink
from statepipe.errors import StatepipeError
from statepipe.formats.qemu.pages import STORED
from statepipe.formats.qemu.postcopy import PAGE_SIZE, Block
from statepipe.formats.workingset import LIMIT, MAGIC, MOST_PAGES, build_working_set, parse_working_set
from statepipe.lazy.pageset import PageSet
from statepipe.state.pagestore import PageStore
from statepipe.telling import Tell


def beside(path: str) -> str:
    """Return the path of the working set of the state at `path`."""
    return path + ".working-set"


def page_set(blocks: Sequence[Block]) -> PageSet:
    """Return an empty set of the pages of these blocks."""
    return PageSet([block.length // PAGE_SIZE for block in blocks])


def read_working_set(store: PageStore, blocks: Sequence[Block], warn: Tell) -> PageSet | None:
    """Return the working set of a state with these blocks; None without one, or, after a warning, if it is unfit."""
    path = beside(store.name)
    try:
        data = _content(path)
        if data is None:
            return None
        named = parse_working_set(data, store.digest, {block.name: block.length // PAGE_SIZE for block in blocks})
    except StatepipeError as error:
        warn(f"{path} is ignored: {error}; load with --learn to write a new one, or remove it")
        return None
    found = page_set(blocks)
    for number, block in enumerate(blocks):
        for first, count in named.get(block.name, ()):
            found.add(number, first, count)
    return found


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
        raise StatepipeError(f"it cannot be read: {error.strerror}") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a FIFO without a writer does not hold us up."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


class Recorder:
    """Records the pages of a state that a guest with these blocks asks for, besides those `known` already.

    There are MOST_PAGES at most: the first ones count.
    """

    def __init__(self, store: PageStore, blocks: Sequence[Block], known: PageSet | None) -> None:
        self._store, self._blocks = store, blocks
        self.pages = page_set(blocks)
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
        path = beside(self._store.name)
        if (older := _content(path)) and not older.startswith(MAGIC):
            raise StatepipeError(f"{path} is not a working set, and is not replaced")
        names = [block.name for block in self._blocks]
        with FileSink(path) as sink:
            runs = ((names[block], found) for block, found in self.pages.runs())
            sink.write(build_working_set(self._store.digest, runs))
            sink.commit()
        return path


def located(store: PageStore, pages: PageSet) -> tuple[list[int], list[tuple[int, int]]]:
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
