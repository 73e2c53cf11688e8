"""The pages of a guest as QEMU writes them into its migration stream.

The payload of a "ram" section is a sequence of records, each with a be64 header: a page's address inside its RAM
block, with flags in the low bits. The first section lists the blocks (MEM_SIZE), later ones carry pages, and EOS
ends every section. So RAM needs no length: following the headers leads to its end.

    header  PAGE     | CONTINUE   + one page            an ordinary page of the same block as the last one
    header  ZERO     | CONTINUE   + 00                  a page of zeros
    header  XBZRLE                + u8 len, block name  (no CONTINUE: the block is named first)
                                  + 01, be16 n, n bytes
    header  EOS

The parser looks at headers only and never copies a page. Positions in and out are offsets in the buffer
given; one beyond its end says how much of the following buffers belongs to the page being skipped.
Sources: QEMU migration/ram.c, ram_save_setup, save_zero_page, ram_save_page, ram_load_precopy.
"""

from __future__ import annotations

from struct import Struct

from statepipe.errors import IntegrityError
from statepipe.formats.qemu.configuration import name_at
from statepipe.formats.qemu.pagerows import same_headers
from statepipe.formats.qemu.zeropages import same_records
from statepipe.stage import Buffer
from statepipe.typed import NamedTuple, Protocol

ZERO, MEM_SIZE, PAGE, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
XBZRLE, HOOK, COMPRESS_PAGE, MULTIFD_FLUSH = 0x40, 0x80, 0x100, 0x200
ORDINARY_AGAIN, ZERO_AGAIN = PAGE | CONTINUE, ZERO | CONTINUE

# The largest guests sold have 24 TiB.
MAX_RAM = 32 << 40
# Pages in a part of the map of pages seen, which has a byte for each page. A part is allocated when a page in it is
# sent. A malicious sender could spread single pages to exhaust memory, so parts beyond the first are allocated only in
# proportion to the pages received: a guest's first pass fills them. For pages without a part it is unknown whether
# they were sent before.
MAP_PART = 1 << 12
FREE_PARTS = 8192
PAGES_PER_PART = MAP_PART // 4
MAX_BLOCKS = 4096
# From this length on, a row of pages is compared with a table (pagerows.py, zeropages.py).
SHORT_RUN, SHORT_ROW = 8, 4

_BE16, _BE32, _BE64 = Struct(">H"), Struct(">I"), Struct(">Q")
_header_at = _BE64.unpack_from


class RamBlock(NamedTuple):
    """One block of guest memory: its name, its length in bytes, and its page size if the stream gives it."""

    name: str
    length: int
    page_size: int | None = None


class PageCounts:
    """Pages seen so far, by encoding. `repeated` counts those that had been sent before in this stream."""

    __slots__ = ("compressed", "normal", "repeated", "xbzrle", "zero")

    def __init__(self) -> None:
        self.normal = self.zero = self.xbzrle = self.compressed = self.repeated = 0

    def by_name(self) -> dict[str, int]:
        """Return all of them, ready for JSON."""
        names = ("normal", "zero", "xbzrle", "compressed", "repeated")
        return {name: getattr(self, name) for name in names}


class Recorder(Protocol):
    """Hears of the pages in the order of the stream: pages.py has the one there is, and what the calls mean."""

    def begin(self, page_size: int) -> None: ...

    def stored(self, page: int, count: int, place: int) -> None: ...

    def zeros(self, page: int, count: int) -> None: ...

    def give_up(self, why: str) -> None: ...


class RamPages:
    """Follows RAM records and counts them in `advance`; the other attributes are facts.

    `recorder`, if one is set before the first page, hears of the pages; `origin` is then the stream offset of the
    buffer that `advance` gets.
    """

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.origin = 0
        self.page_size = 4096
        self.host_pages = 0  # the host page sizes in use, combined with OR, from POSTCOPY_ADVISE
        self.shared = False  # x-ignore-shared: a block's guest address follows its length
        self.counts = PageCounts()
        self.blocks: dict[str, RamBlock] = {}
        self.total = 0
        self.rounds = 0
        self.random_order = (
            False  # pages come in the order of postcopy requests or threads: going back does not mean a new round
        )
        self.at_end = False  # EOS was read; the caller clears it at the start of a section
        self._unlisted = 0
        self._seen: dict[str, dict[int, bytearray]] = {}
        self._parts = 0
        self._order: dict[str, int] = {}
        self._bases: dict[str, int] = {}  # the number of each block's first page, all blocks in one row
        self._listed_pages = 0
        self._block_name = ""  # the block that CONTINUE refers to
        self._block_pages = 0
        self._base = 0  # of that block
        self._block_place = 0  # blocks in order, then pages in order, as one number
        self._map: dict[int, bytearray] = {}
        self._place = -1  # of the last page
        self._wrapped = False

    def advance(self, data: Buffer, at: int, end: int) -> int:
        """Follow records from `at` on; return the new position: the old one if a record is incomplete at `end`.

        Raises IntegrityError with an offset relative to `data` for an invalid record.
        """
        mask = self.page_size - 1
        if self._unlisted:
            at = self._list_blocks(data, at, end)
        while at + 8 <= end and not (self._unlisted or self.at_end):
            header = _header_at(data, at)[0]
            kind = header & mask
            if kind == ORDINARY_AGAIN:
                after = self._ordinary_run(data, at, end, header)
            elif kind == ZERO_AGAIN:
                after = self._zero_run(data, at, end, header)
            else:
                after = self._other(data, at, end, header)
            if after == at:
                break
            at = after
        return at

    def final_sync(self) -> None:
        """Report that the guest was stopped and QEMU reads the dirty bitmap again: a new round (see `_count_round`)."""
        if self.rounds == 1:
            # If the first pass continues now, a sync interrupted it, and going back will count as one more round. If it
            # was complete, it took less than 100 ms, before which QEMU does not sync: going back is this round.
            self._place = -1
        self.rounds += 1

    # Measured with 256 KiB buffers and a loop alone: 130 ns a page in a row (30 GB/s), 610 ns a page scattered (6.7).
    def _ordinary_run(self, data: Buffer, at: int, end: int, header: int) -> int:
        page, start, expected = self.page_size, at, header
        stride, last = page + 8, end - 8
        short = min(last, at + stride * SHORT_ROW)
        while True:
            at += stride
            expected += page
            if at > short or _header_at(data, at)[0] != expected:
                break
        if short < at <= last:
            at += stride * same_headers(data, at, end, expected, page)
        count = (at - start) // stride
        self._sent(start, header & -page, count)
        self.counts.normal += count
        if self.recorder is not None:
            self.recorder.stored(self._base + header // page, count, self.origin + start + 8)
        return at

    def _zero_run(self, data: Buffer, at: int, end: int, header: int) -> int:
        page, start, expected, last = self.page_size, at, header, end - 9
        short = min(last, at + 9 * SHORT_RUN)
        while at <= short and _header_at(data, at)[0] == expected:
            if data[at + 8]:
                raise IntegrityError(f"a zero page holds the byte {data[at + 8]:#04x}, expected 0x00", offset=at + 8)
            at += 9
            expected += page
        if at > short and at <= last:
            at += 9 * same_records(data, at, end, expected, page)
        count = (at - start) // 9
        if count:
            self._sent(start, header & -page, count)
            self.counts.zero += count
            if self.recorder is not None:
                self.recorder.zeros(self._base + header // page, count)
        return at

    def _other(self, data: Buffer, at: int, end: int, header: int) -> int:
        kind = header & (self.page_size - 1)
        address = header - kind
        if kind == EOS:
            self.at_end = True
            return at + 8
        if kind == MULTIFD_FLUSH:
            return at + 8
        if kind == MEM_SIZE:
            self._start_list(at, address)
            return self._list_blocks(data, at + 8, end)
        if kind & HOOK:
            raise IntegrityError("an RDMA hook in the RAM: a migration over RDMA cannot be recorded", offset=at)
        if kind & ~CONTINUE not in (PAGE, ZERO, XBZRLE, COMPRESS_PAGE):
            raise IntegrityError(f"a RAM record with flags {kind:#x}, expected a page or the end of section", offset=at)
        body = at + 8
        if not kind & CONTINUE:
            body = self._name_block(data, body, end)
        after = self._skip_body(data, body, end, kind & ~CONTINUE) if body else 0
        if not after:
            return at
        self._sent(at, address, 1)
        if self.recorder is not None:
            self._record(kind & ~CONTINUE, self._base + address // self.page_size, after)
        return after

    def _record(self, kind: int, page: int, after: int) -> None:
        """Report one page, whose record ends at `after`, to the recorder."""
        assert self.recorder is not None
        if kind == PAGE:
            self.recorder.stored(page, 1, self.origin + after - self.page_size)
        elif kind == ZERO:
            self.recorder.zeros(page, 1)
        else:
            self.recorder.give_up(f"it has {'XBZRLE' if kind == XBZRLE else 'compressed'} pages")

    def _skip_body(self, data: Buffer, body: int, end: int, kind: int) -> int:
        """Count one page record by its kind; return the position after it, or 0 if its length is not in `data` yet."""
        if kind == PAGE:
            self.counts.normal += 1
            return body + self.page_size
        if kind == ZERO:
            return self._skip_zero(data, body, end)
        if kind == XBZRLE:
            return self._skip_xbzrle(data, body, end)
        return self._skip_compressed(data, body, end)

    def _skip_zero(self, data: Buffer, body: int, end: int) -> int:
        if body >= end:
            return 0
        if data[body]:
            raise IntegrityError(f"a zero page holds the byte {data[body]:#04x}, expected 0x00", offset=body)
        self.counts.zero += 1
        return body + 1

    def _skip_xbzrle(self, data: Buffer, body: int, end: int) -> int:
        if body + 3 > end:
            return 0
        length = _BE16.unpack_from(data, body + 1)[0]
        if data[body] != 1 or length > self.page_size:
            raise IntegrityError(f"an XBZRLE page of encoding {data[body]} and {length} bytes", offset=body)
        self.counts.xbzrle += 1
        return int(body + 3 + length)

    def _skip_compressed(self, data: Buffer, body: int, end: int) -> int:
        if body + 4 > end:
            return 0
        length = _BE32.unpack_from(data, body)[0]
        if length > 2 * self.page_size:  # zlib's compressBound is far below that
            raise IntegrityError(f"a compressed page of {length} bytes", offset=body)
        self.counts.compressed += 1
        self.random_order = True
        return int(body + 4 + length)

    def _name_block(self, data: Buffer, at: int, end: int) -> int:
        """Make the named block the current one; return the position after its name, or 0 if the name is incomplete."""
        name, after = name_at(data, at, end)
        if not after:
            return 0
        if name not in self.blocks:
            raise IntegrityError(f"a page of the RAM block {name!r}, which was not announced", offset=at)
        self._block_name = name
        self._block_pages = self.blocks[name].length // self.page_size
        self._block_place = self._order[name] * MAX_RAM
        self._base = self._bases[name]
        self._map = self._seen.setdefault(name, {})
        return after

    def _start_list(self, at: int, total: int) -> None:
        if self.blocks:
            raise IntegrityError("a second list of RAM blocks", offset=at)
        if total > MAX_RAM:
            raise IntegrityError(f"{total} bytes of RAM are announced, more than the limit of {MAX_RAM}", offset=at)
        if self.recorder is not None:
            self.recorder.begin(self.page_size)
        self.total = self._unlisted = total
        self.rounds = 1

    def _list_blocks(self, data: Buffer, at: int, end: int) -> int:
        while self._unlisted:
            name, after = name_at(data, at, end)
            # The next eight bytes are needed to decide whether a page size follows.
            if not after or after + 8 + 8 * self.shared + 8 * bool(self.host_pages) > end:
                break
            length = _BE64.unpack_from(data, after)[0]
            if not name or name in self.blocks or length > self._unlisted or len(self.blocks) == MAX_BLOCKS:
                raise IntegrityError(f"a list of RAM blocks with {name!r} of {length} bytes", offset=at)
            page_size = self._host_page_size(data, after + 8)
            self._order[name] = len(self.blocks)
            self._bases[name] = self._listed_pages
            self._listed_pages += length // self.page_size + 1  # see pages.py
            self.blocks[name] = RamBlock(name, length, page_size)
            self._unlisted -= length
            at = after + 8 + 8 * bool(page_size) + 8 * self.shared
        return at

    def _host_page_size(self, data: Buffer, at: int) -> int | None:
        """Return the page size that postcopy writes for a block of huge pages, or None if there is none.

        Without it a name's length (never 0), EOS or a flush mark follows, none of which reads as a page size."""
        if not self.host_pages:
            return None
        size: int = _BE64.unpack_from(data, at)[0]
        return size if size >= 4096 and size & (size - 1) == 0 and size & self.host_pages else None

    def _sent(self, at: int, address: int, count: int) -> None:
        """Record `count` pages from `address` on, sent by the record at `at`, in the map of pages seen."""
        first = address // self.page_size
        after = first + count
        if after > self._block_pages:
            raise self._outside(at, after - 1)
        seen = self._map.get(first // MAP_PART)
        if count == 1 and seen is not None:  # saves a third of the time for scattered pages
            again, seen[first % MAP_PART] = seen[first % MAP_PART], 1
        else:
            again = self._mark(first, after)
        place = self._block_place + first
        if place <= self._place:
            self._wrapped = True
        if again:
            self.counts.repeated += again
            if self._wrapped:
                self._count_round()
        self._place = place + count - 1

    def _mark(self, first: int, after: int) -> int:
        """Record pages in the block's map; return how many of them were already in it."""
        again = 0
        while first < after:
            number, start = divmod(first, MAP_PART)
            stop = min(start + after - first, MAP_PART)
            if (seen := self._map.get(number) or self._new_part(number)) is not None:
                again += seen.count(1, start, stop)
                seen[start:stop] = b"\x01" * (stop - start)
            first += stop - start
        return again

    def _new_part(self, number: int) -> bytearray | None:
        counts = self.counts
        pages = counts.normal + counts.zero + counts.xbzrle + counts.compressed
        if self._parts >= FREE_PARTS + pages // PAGES_PER_PART:
            return None
        self._parts += 1
        part = self._map[number] = bytearray(MAP_PART)
        return part

    @property
    def place(self) -> tuple[str, int]:
        """The RAM block and the page in it that were sent last."""
        return self._block_name, self._place - self._block_place

    def _outside(self, at: int, page: int) -> IntegrityError:
        if not self._block_name:
            return IntegrityError("a page without a RAM block, expected the block's name", offset=at)
        return IntegrityError(f"page {page:#x} is outside the RAM block {self._block_name!r}", offset=at)

    def _count_round(self) -> None:
        """Count a round: one reading of the dirty bitmap, QEMU's dirty-sync-count.

        The stream shows the first pass (1), then a round each time the order goes back to pages already sent (QEMU
        syncs near the end of a pass, and only dirty pages are sent twice), and one when the guest is stopped
        (`final_sync`). A background snapshot sends pages in any order but each only once, so the count stays at 1.
        With XBZRLE a pass may send nothing and is then not counted; the threads of `compress` change the order."""
        self._wrapped = False
        if not self.random_order:
            self.rounds += 1
