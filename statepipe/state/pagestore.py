"""The pages of a saved guest, read from its file one frame at a time, in any order, and never before they are verified.

    file     H | frame 0 | frame 1 | frame 2 | ... | P P | T | seek table
    stream       0 ....... 1 MiB ... 2 MiB ...
    pages            |page|page|page|pa ge|page|

At opening, both ends, the seek table and the index are read and verified; a file without an index is read whole once,
which makes the index. From then on a frame is read, opened if the file is encrypted, decoded and checked each time that
one of its pages is needed. A page that begins in one frame may end in the next one: both are verified then.

A request reads its frame in the caller's thread, beside the threads that decode ahead for the background: it waits for
a core, never for a queue. Frames that were just decoded are kept, since two neighbours share a page nearly always.
"""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing

from statepipe.ends.source import FileSource
from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.qemu.pages import STORED, Outline, PageIndex, Run
from statepipe.formats.seektable import SEEK_FOOTER_SIZE, entries_of, seek_table_size
from statepipe.formats.zstdframe import MEMORY, WHOLE_LIMIT, Frame, FrameSplitter, Part, parse_header
from statepipe.libzstd import zstandard
from statepipe.stage import Buffer
from statepipe.stages.blocks import PerThread
from statepipe.stages.codec import RAW
from statepipe.state.file import Keys, open_state
from statepipe.state.loading import HOLD_LIMIT, Ends, State, prepare, table_parts
from statepipe.state.pageindex import read_index
from statepipe.state.saveimage import SaveImage
from statepipe.state.source import StateFile, damage_named
from statepipe.telling import Tell, nobody
from statepipe.threads import cores, parallel
from statepipe.typed import TYPE_CHECKING, Self
from statepipe.units import format_size

if TYPE_CHECKING:  # what reads a whole stream takes 10 ms, which a lazy load need not pay
    from statepipe.formats.qemu.stream import QemuStream
    from statepipe.pipeline.pipeline import NamedStage

RAW_FRAME = 1 << 20
"""Bytes of a stream that is not compressed which are read at once."""

CACHE = 24 << 20
"""Bytes of decoded frames that are kept: those of a request, and what is decoded ahead."""

MOST_WORKERS = 8
"""Threads that decode ahead: each has a frame at work, and four wait. One core decodes about a gigabyte a second."""

Pages = list[tuple[Run, memoryview]]
"""Runs of stored pages with their bytes: page, header of the next page's record, page, and so on."""


class FrameDamaged(IntegrityError):
    """A frame of the file is not as it was written. `frame` is its number, `offset` where it begins in the file."""

    def __init__(self, message: str, *, frame: int, offset: int) -> None:
        super().__init__(message, offset=offset, hint="take another copy of the file")
        self.frame = frame


class FrameTable:
    """Where the data frames are: in the file, and in the stream."""

    def __init__(self) -> None:
        self.offsets, self.sizes = array("Q"), array("Q")
        self.starts = array("Q", (0,))

    def add(self, offset: int, size: int, content: int) -> None:
        """Add the next frame: `size` bytes at `offset` of the file, which decode to `content` bytes."""
        self.offsets.append(offset)
        self.sizes.append(size)
        self.starts.append(self.starts[-1] + content)


def open_pages(path: str, keys: Keys, *, told: Tell = nobody) -> PageStore:
    """Open a state whose pages are wanted one by one. What cannot be served so says why in its index (`unserved`).

    `told` hears that a file without an index is read whole first. Raises StatepipeError, NoKeyError, IntegrityError and
    TruncatedError as the other ways to read a state do.
    """
    source = open_state(path, keys)
    try:
        return pages_of(prepare(source), told=told)
    except BaseException:
        source.__exit__()
        raise


def pages_of(state: State, *, told: Tell = nobody) -> PageStore:
    """Return the pages of a state that is open, and stays open if this raises: as `open_pages`."""
    source = state.source
    if (why := state.unserved) is not None:
        return PageStore(source, state, FrameTable(), _no_index(why))
    frames, digest = FrameTable(), ""
    with damage_named(source.name):
        if state.ends.trailer is not None:
            _listed(source, state.ends, frames)
        index = read_index(source, state.ends)
    is_scanned = index is None
    if index is None:
        told(f"{source.name} has no index of pages: all of it is read first")
        with damage_named(source.name):
            index, stream, digest = _scanned(source, state.ends, frames)
        state = state._replace(stream=stream)
    store = PageStore(source, state, frames, index, state.digest or digest, is_scanned=is_scanned)
    store.demand_sound()
    return store


def _no_index(why: str) -> PageIndex:
    return PageIndex(Outline(unserved=why), array("Q"), array("Q"))


def _listed(source: StateFile, ends: Ends, frames: FrameTable) -> None:
    """Put the frames of the seek table into `frames`. Raises IntegrityError."""
    assert ends.trailer is not None
    end = source.size()
    size = seek_table_size(source.tail(end - SEEK_FOOTER_SIZE, SEEK_FOOTER_SIZE)) or 0
    at = 0
    for stored, content in entries_of(table_parts(source, end - size, size)):
        if content:
            frames.add(at, stored, content)
        if content > WHOLE_LIMIT:
            raise IntegrityError(f"the seek table lists a frame that decodes to {content} bytes", offset=end - size)
        at += stored
    found = {"bytes": frames.starts[-1], "frames": len(frames.offsets)}
    for name, value in found.items():
        if ends.trailer[name] != value:
            raise IntegrityError(
                f"{name}: the trailer says {ends.trailer[name]}, the seek table lists {value}", offset=end - size
            )


def _scanned(source: StateFile, ends: Ends, frames: FrameTable) -> tuple[PageIndex, QemuStream, str]:
    """Read a file whole for its index, for the digest of its stream, and for its frames if nothing lists them.

    Raises as `verify-state` does.
    """
    from statepipe.formats.qemu.stream import QemuStream
    from statepipe.stages.checksum import Digest
    from statepipe.state.verify import read_whole

    stream, digest = QemuStream(), Digest("blake3")
    stream.record_pages()
    before: list[NamedStage] = []
    if ends.trailer is None and ends.codec != RAW:
        before = [("frames", lambda upstream: _noted(upstream, frames))]
    try:
        read_whole(source, ends, stream, before=before, behind=[] if ends.is_state else [("digest", digest)])
    except _NoFramesError as error:
        return _no_index(str(error)), stream, ""
    if ends.codec == RAW:
        for at in range(0, stream.offset, RAW_FRAME):
            size = min(RAW_FRAME, stream.offset - at)
            frames.add(at, size, size)
    return stream.page_index(), stream, digest.value


class _NoFramesError(StatepipeError):
    """A zstd file is not made of frames that can be read one by one."""


def _noted(upstream: Iterator[Buffer], frames: FrameTable) -> Iterator[Buffer]:
    """The same bytes of a zstd file, while its frames are put into `frames`. Raises _NoFramesError."""
    splitter = FrameSplitter(MEMORY)
    for buffer in upstream:
        for piece in splitter.feed(buffer):
            if isinstance(piece, Frame) and piece.content_size:
                frames.add(piece.offset, len(piece.data), piece.content_size)
            elif isinstance(piece, Frame | Part):
                raise _NoFramesError("its zstd frames are too large to be read one by one, or do not tell their size")
        yield buffer


class _Decoded:
    """A frame that is being decoded, or was: whoever finds it there waits for `done`."""

    def __init__(self) -> None:
        self.done = threading.Lock()
        self.done.acquire()
        self.data = b""
        self.error: BaseException | None = None


class PageStore:
    """An open file, and the pages in it. Any thread may read; `with` closes it.

    `is_scanned` tells that the file was read whole for its index, and so was verified whole. `digest` is the BLAKE3 of
    the stream, the same however the file is compressed or encrypted; it is empty if the state cannot be served.
    """

    def __init__(
        self,
        source: StateFile,
        state: State,
        frames: FrameTable,
        index: PageIndex,
        digest: str = "",
        *,
        is_scanned: bool = False,
    ) -> None:
        self.name, self.state, self.index, self.is_scanned = source.name, state, index, is_scanned
        self.digest = digest
        self._source, self._frames = source, frames
        self._is_raw = state.ends.codec == RAW
        self._contexts = PerThread(lambda: zstandard.ZstdDecompressor(max_window_size=MEMORY))
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, _Decoded] = OrderedDict()
        self._cached = 0  # bytes
        self._stamp = self._look()

    # --- the stream

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self._frames.offsets)

    def frame_for(self, place: int) -> int:
        """The number of the frame that holds the byte at `place` of the stream."""
        return bisect_right(self._frames.starts, place, hi=self.frames) - 1

    def span(self, number: int) -> tuple[int, int]:
        """The bytes [start, stop) of the stream that a frame holds."""
        return self._frames.starts[number], self._frames.starts[number + 1]

    def stream_bytes(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of the stream, verified. Raises StatepipeError for more than HOLD_LIMIT of them."""
        if stop - start > HOLD_LIMIT:
            raise StatepipeError(f"a part of the stream of {self.name} is larger than {format_size(HOLD_LIMIT)}")
        if not 0 <= start <= stop <= self._frames.starts[-1]:
            raise IntegrityError(f"the page index of {self.name} names bytes outside the stream", offset=start)
        parts = []
        while start < stop:
            number = self.frame_for(start)
            first, after = self.span(number)
            parts.append(self.read(number)[start - first : stop - first])
            start = after
        return b"".join(parts)

    def head(self) -> bytes:
        """QEMU's magic and its configuration."""
        return self.stream_bytes(0, self.index.outline.head)

    def devices(self) -> bytes:
        """What is behind the pages, up to the end mark."""
        return self.stream_bytes(*self.index.outline.devices)

    def demand_sound(self) -> None:
        """Raises IntegrityError if the index does not fit what it leads to: the head, the devices and what is around
        them. The pages are compared when they are read."""
        outline = self.index.outline
        if outline.unserved is not None:
            return
        start, end = outline.devices
        ram = b"\x7e" + outline.ram_section.to_bytes(4, "big") if outline.footers else b""
        around = self.stream_bytes(start - len(ram), end + 1)
        if not self.head().startswith(b"QEVM") or around[-1] or not around.startswith(ram):
            raise IntegrityError(f"the page index of {self.name} does not fit its stream", offset=start)

    # --- pages

    def pages(self, number: int) -> Pages:
        """The stored pages that begin in a frame, by place, verified.

        A page that ends in the next frame is a run of its own; it is left out if that frame is damaged, and
        `stream_bytes` then says so. Raises FrameDamaged, TruncatedError, StatepipeError.
        """
        start, stop = self.span(number)
        data, stride = memoryview(self.read(number)), self.index.stride
        found: Pages = []
        for run in self.index.stored_between(start, stop):
            at = run.place - start
            self._demand_header(run, data[:at])
            end = at + run.pages * stride - 8
            if end <= len(data):
                found.append((run, data[at:end]))
                continue
            if run.pages > 1:
                found.append((run._replace(pages=run.pages - 1), data[at : end - stride]))
            place = run.place + (run.pages - 1) * stride
            last = Run(run.block, run.page + run.pages - 1, 1, STORED, place)
            try:
                found.append((last, memoryview(self.stream_bytes(place, place + self.index.outline.page_size))))
            except FrameDamaged as error:
                if error.frame == number:
                    raise
        return found

    def ahead(self, numbers: Iterable[int]) -> Generator[tuple[int, Pages], None, None]:
        """The pages of frames in the order of `numbers`, decoded ahead on all cores. Close it when done with it.

        `numbers` is read in another thread, some frames ahead. Raises as `pages` does.
        """

        def work(number: int) -> tuple[int, Pages]:
            return number, self.pages(number)

        with closing(parallel(work, iter(numbers), min(cores(), MOST_WORKERS))) as results:
            yield from results

    def _demand_header(self, run: Run, before: memoryview) -> None:
        """Raises IntegrityError unless the header of the run's first page is `before` it, as far as this frame has it:
        a wrong index must not put a page elsewhere in the guest."""
        block = self.index.outline.blocks[run.block]
        name = block.name.encode("latin-1")
        address = run.page * self.index.outline.page_size
        again = (address | 0x28).to_bytes(8, "big")
        named = (address | 0x08).to_bytes(8, "big") + bytes([len(name)]) + name
        if not any(_agree(bytes(before[-len(header) :]), header) for header in (again, named)):
            what = f"the page index of {self.name} does not fit its stream: page {run.page:#x} of {block.name!r}"
            raise IntegrityError(f"{what} is not where it says", offset=run.place)

    # --- frames

    def read(self, number: int) -> bytes:
        """What a frame decodes to, verified. Raises FrameDamaged, TruncatedError, StatepipeError."""
        with self._lock:
            entry = self._cache.get(number)
            is_ours = entry is None
            if entry is None:
                entry = self._cache[number] = _Decoded()
            else:
                self._cache.move_to_end(number)
        if not is_ours:
            with entry.done:
                pass
        else:
            self._fill(number, entry)
        if entry.error is not None:
            raise entry.error
        return entry.data

    def _fill(self, number: int, entry: _Decoded) -> None:
        """Decode a frame for all who wait for it, and forget the frames that were not used for longest."""
        try:
            entry.data = self._decoded(number)
        except BaseException as error:  # each who asked raises it
            entry.error = error
        with self._lock:
            if entry.error is not None:
                self._cache.pop(number, None)
            self._cached += len(entry.data)
            while self._cached > CACHE and len(self._cache) > 1:
                oldest = next((at for at, it in self._cache.items() if it.data and at != number), None)
                if oldest is None:
                    break
                self._cached -= len(self._cache.pop(oldest).data)
        entry.done.release()

    def _decoded(self, number: int) -> bytes:
        try:
            return self._decode(number)
        except FrameDamaged:  # perhaps on its way from a store
            if not self._source.doubt(self._frames.offsets[number], self._frames.sizes[number]):
                raise
        return self._decode(number)

    def _decode(self, number: int) -> bytes:
        offset, size = self._frames.offsets[number], self._frames.sizes[number]
        start, stop = self.span(number)
        if self._look() != self._stamp:
            raise StatepipeError(f"{self.name} was changed while it was read", offset=offset)
        try:
            data = self._source.tail(offset, size)
            if len(data) != size:
                raise TruncatedError(f"{self.name} became shorter while it was read", offset=offset + len(data))
            if self._is_raw:
                return data
            header = parse_header(data, 0, offset)
            if header is None or header.content_size != stop - start or header.window > MEMORY or header.dictionary:
                raise self._damaged(number, "its header is not the one that was written")
            if not header.checksum and self.state.ends.is_state:
                raise self._damaged(number, "its checksum is missing")
            return self._contexts.get().decompress(data, read_across_frames=False, allow_extra_data=False)
        except (FrameDamaged, TruncatedError):
            raise
        except (zstandard.ZstdError, IntegrityError) as error:
            raise self._damaged(number, str(error)) from error

    def _damaged(self, number: int, why: str) -> FrameDamaged:
        offset = self._frames.offsets[number]
        return FrameDamaged(
            f"frame {number} of {self.name}, at byte {offset}, is damaged: {why}", frame=number, offset=offset
        )

    def _look(self) -> tuple[int, int]:
        """What shows that the file was changed: its size; of a raw stream, which has no checksums, its time too."""
        source = self._source.file if isinstance(self._source, SaveImage) else self._source
        time = os.fstat(source.fd).st_mtime_ns if self._is_raw and isinstance(source, FileSource) else 0
        return source.stored(), time

    # --- the file

    def verify_all(self) -> None:
        """Read and verify the whole file, if it was not yet. Raises as `verify-state` does."""
        if not self.is_scanned and self.index.outline.unserved is None:
            from statepipe.formats.qemu.stream import QemuStream
            from statepipe.state.verify import demand_equal, read_whole

            stream = QemuStream()
            stream.record_pages()
            read_whole(self._source, self.state.ends, stream)
            demand_equal(self.index, stream.page_index())
            self.is_scanned = True

    def stored(self) -> int:
        """Bytes of the file on the disk."""
        return self._source.stored()

    def has_name(self) -> bool:
        """Return False once the file was removed, or another one has taken its name: then only we can read it."""
        return self._source.has_name()

    @property
    def beside(self) -> str | None:
        """The path to which the names of files that belong to the state are added; None if it has no place for them."""
        return self._source.beside

    def give_up(self) -> None:
        """Have threads that wait for pages from elsewhere raise Cancelled, now and later."""
        self._source.give_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._cache.clear()
        self._source.__exit__(*error)


def _agree(found: bytes, expected: bytes) -> bool:
    """Whether the bytes before a page end as they should; at the beginning of a frame some may be in the one before."""
    return expected.endswith(found) if len(found) < len(expected) else found == expected
