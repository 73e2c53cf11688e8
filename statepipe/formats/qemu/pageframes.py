"""The page index as the contents of frames in a state file (docs/state-file.md, section 12).

The first frame holds the outline of the stream as JSON; each other frame holds up to RUNS_IN_FRAME runs, in the order
of their pages, as columns of numbers. A column is stored byte by byte: first the lowest byte of each number, then the
next one, so that zstd finds the bytes alike together. The numbers are small: a run's distance from the end of the run
before it, in pages and in bytes of the stream, is nearly always 0. Both directions run at the speed of C: one run costs
about a microsecond, where a varint in Python costs that for each number.
"""

from __future__ import annotations

import json
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise, zip_longest
from operator import add, le

from statepipe.errors import IntegrityError
from statepipe.formats.qemu.pages import (
    COUNT_BITS,
    KIND_BITS,
    KINDS,
    MAX_PIECES,
    MAX_PLACE,
    MAX_RUNS,
    MOST,
    PAGE_SHIFT,
    STORED,
    ZERO,
    Outline,
    PageIndex,
    Piece,
    Run,
)
from statepipe.formats.qemu.ram import MAX_BLOCKS, MAX_RAM, RamBlock
from statepipe.libzstd import zstandard
from statepipe.shapes import Misshapen, Shape, fields, flag, many, maybe, parse, text, whole
from statepipe.typed import Any, NamedTuple

RUNS_IN_FRAME = 1 << 15
CONTENT_LIMIT = 1 << 20
"""Bytes that a frame's content has at most: a full frame of runs has 576 KiB."""
MAX_FRAMES = 1 + MAX_RUNS // RUNS_IN_FRAME

_COLUMNS = (1, 4, 5, 8)
"""Bytes of a number in each column: kind, count, distance in pages, distance in the stream (signed)."""
_LEVEL = 3


def _tuple_of(*shapes: Shape) -> Shape:
    """A list with one value of each shape."""

    def look(value: object, where: str) -> None:
        many(lambda *_: None, len(shapes), len(shapes))(value, where)
        assert isinstance(value, list)
        for number, (item, shape) in enumerate(zip(value, shapes, strict=True)):
            shape(item, f"{where}[{number}]")

    return look


_PLACE = whole(0, MAX_PLACE)
_OUTLINE = fields(
    {
        "page_size": whole(1 << 10, 1 << 20),
        "footers": flag,
        "ram_section": whole(0, (1 << 32) - 1),
        "head": _PLACE,
        "devices": _tuple_of(_PLACE, _PLACE),
        "blocks": many(_tuple_of(text(255), whole(0, MAX_RAM), maybe(whole())), MAX_BLOCKS),
        "pieces": many(_tuple_of(whole(1, 8), whole(0, (1 << 32) - 1), _PLACE, _PLACE), MAX_PIECES),
        "runs": whole(0, MAX_RUNS),
    }
)


class _Runs(NamedTuple):
    """The runs of one frame: columns, and what follows from them."""

    keys: array[int]
    places: array[int]


def encode_index(index: PageIndex) -> Iterator[bytes]:
    """Yield the contents of the frames that hold an index, compressed."""
    outline = index.outline
    facts = {
        "page_size": outline.page_size,
        "footers": outline.footers,
        "ram_section": outline.ram_section,
        "head": outline.head,
        "devices": outline.devices,
        "blocks": [[block.name, block.length, block.page_size] for block in outline.blocks],
        "pieces": outline.pieces,
        "runs": index.runs,
    }
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
    yield packer.compress(json.dumps(facts, separators=(",", ":")).encode())
    for at in range(0, index.runs, RUNS_IN_FRAME):
        part = slice(at, at + RUNS_IN_FRAME)
        yield packer.compress(_columns(index.keys[part], index.places[part], index.stride))


def _columns(keys: Sequence[int], places: Sequence[int], stride: int) -> bytes:
    page = place = 0
    distances, gaps = array("Q"), array("q")
    for key, at in zip(keys, places, strict=True):
        first, count, is_stored = key >> PAGE_SHIFT, key >> KIND_BITS & MOST, key & KINDS == STORED
        distances.append(first - page)
        gaps.append(at - place if is_stored else 0)
        page = first + count
        place = at + count * stride if is_stored else place + count * ZERO_STRIDE
    kinds = array("Q", (key & KINDS for key in keys))
    counts = array("Q", (key >> KIND_BITS & MOST for key in keys))
    return b"".join(map(_planes, (kinds, counts, distances, gaps), _COLUMNS))


ZERO_STRIDE = 9
"""Bytes of a zero page's record: a stored run is expected so many bytes further on for each zero page before it."""


def _planes(numbers: array[int], width: int) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    data = numbers.tobytes()
    return b"".join(data[byte::8] for byte in range(width))


def _numbers(data: bytes, width: int, kind: str) -> array[int]:
    """The numbers of a column; of those of eight bytes, the kind "q" has a sign."""
    count = len(data) // width
    joined = bytearray(8 * count)
    for byte in range(width):
        joined[byte::8] = data[byte * count : (byte + 1) * count]
    numbers = array(kind)
    numbers.frombytes(joined)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def decode_index(frames: Sequence[bytes], offset: int) -> PageIndex:
    """Return the index that frames hold. Raises IntegrityError with `offset` for what `encode_index` does not make."""
    try:
        return _decoded(frames)
    except (_WrongError, Misshapen, zstandard.ZstdError) as error:
        raise IntegrityError(f"the page index of the file is damaged: {error}", offset=offset) from error


class _WrongError(ValueError):
    """What is wrong in an index."""


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise _WrongError(what)


def _decoded(frames: Sequence[bytes]) -> PageIndex:
    _need(1 <= len(frames) <= MAX_FRAMES, f"it has {len(frames)} frames")
    facts = parse(_content(frames[0]), _OUTLINE)
    outline = _outline(facts)
    stride = outline.page_size + 8
    keys, places = array("Q"), array("Q")
    for frame in frames[1:]:
        _need(len(keys) % RUNS_IN_FRAME == 0, "a frame in its middle is not full")
        more = _runs(_content(frame), stride)
        _need(not keys or _end(keys[-1]) <= more.keys[0] >> PAGE_SHIFT, "its runs are not in order")
        keys.extend(more.keys)
        places.extend(more.places)
    _need(len(keys) == facts["runs"], f"it has {len(keys)} runs, and {facts['runs']} are announced")
    index = PageIndex(outline, keys, places)
    _demand_sound(index)
    return index


def _content(frame: bytes) -> bytes:
    size = zstandard.frame_content_size(frame)
    _need(0 < size <= CONTENT_LIMIT, f"a frame with a content of {size} bytes")
    unpacker = zstandard.ZstdDecompressor(max_window_size=CONTENT_LIMIT)
    return unpacker.decompress(frame, read_across_frames=False, allow_extra_data=False)


def _outline(facts: dict[str, Any]) -> Outline:
    blocks = tuple(RamBlock(*block) for block in facts["blocks"])
    pieces = tuple(Piece(*piece) for piece in facts["pieces"])
    start, end = facts["devices"]
    _need(facts["page_size"].bit_count() == 1, "its page size is not a power of two")
    _need(sum(block.length for block in blocks) <= MAX_RAM, "its blocks are larger than a guest's")
    edges = [facts["head"], *(edge for piece in pieces for edge in piece[2:]), start, end]
    _need(all(one <= other for one, other in pairwise(edges)), "its sections are not in order")
    return Outline(
        facts["page_size"], facts["footers"], facts["ram_section"], facts["head"], (start, end), blocks, pieces
    )


def _runs(content: bytes, stride: int) -> _Runs:
    width = sum(_COLUMNS)
    count = len(content) // width
    _need(len(content) == count * width and 1 <= count <= RUNS_IN_FRAME, f"a frame of runs with {len(content)} bytes")
    edges = accumulate((size * count for size in _COLUMNS), initial=0)
    parts = [content[start:end] for start, end in pairwise(edges)]
    kinds, counts, distances = (_numbers(data, size, "Q") for data, size in zip(parts, _COLUMNS[:3], strict=False))
    gaps = _numbers(parts[3], _COLUMNS[3], "q")
    _need(max(kinds) <= STORED, f"a run of kind {max(kinds)}, which this statepipe does not know")
    _need(min(counts) > 0 and max(counts) < 1 << COUNT_BITS, "a run of a length that is not written")
    firsts = list(accumulate(map(add, distances, (0, *counts[:-1]))))
    _need(firsts[-1] + counts[-1] < 1 << 64 - PAGE_SHIFT, "a run outside the memory")
    sizes = [count * (stride if kind else ZERO_STRIDE) for kind, count in zip(kinds, counts, strict=True)]
    places = list(accumulate(map(add, gaps, (0, *sizes[:-1]))))
    _need(min(places) >= 0 and max(places) < MAX_PLACE, "a page outside the stream")
    keys = [
        first << PAGE_SHIFT | count << KIND_BITS | kind
        for first, count, kind in zip(firsts, counts, kinds, strict=True)
    ]
    return _Runs(array("Q", keys), array("Q", places))


def _end(key: int) -> int:
    return (key >> PAGE_SHIFT) + (key >> KIND_BITS & MOST)


def _demand_sound(index: PageIndex) -> None:
    """Raises _WrongError for runs outside a block or outside the part of the stream that has the pages."""
    keys, places, bases = index.keys, index.places, index.bases
    _need(not keys or _end(keys[-1]) < bases[-1], "a run outside the memory")
    for base in bases[1:]:
        at = bisect_left(keys, base << PAGE_SHIFT) - 1
        _need(at < 0 or _end(keys[at]) < base, "a run in two blocks")
    end, stride = index.outline.head, index.stride
    order = index.by_place or range(len(keys))
    for at in range(0, len(order), RUNS_IN_FRAME):  # some at a time: a Python integer has 36 bytes
        stored = [(keys[number], places[number]) for number in order[at : at + RUNS_IN_FRAME]]
        stored = [each for each in stored if each[0] & KINDS != ZERO]
        ends = [end, *(place + (key >> KIND_BITS & MOST) * stride - 8 for key, place in stored)]
        _need(all(map(le, ends, [place for _, place in stored])), "a run that overlaps another part of the stream")
        end = ends[-1]
    _need(end <= index.outline.devices[0], "a page outside the stream")


def difference(index: PageIndex, other: PageIndex) -> tuple[str, int] | None:
    """Return the first difference between two indexes of one stream, as words and a place; None if they are equal.

    Into how many runs the pages in a row are divided makes no difference.
    """
    if index.outline != other.outline:
        return "the sections of the stream", 0
    for one, another in zip_longest(_joined(index), _joined(other)):
        if one != another:
            run = one or another
            assert run is not None
            return f"the run at page {run.page:#x} of the RAM block {index.outline.blocks[run.block].name!r}", run.place
    return None


def _joined(index: PageIndex) -> Iterator[Run]:
    """The runs, those that go on where the one before ended joined; zeros without a place."""
    last: Run | None = None
    for each in index:
        run = each if each.kind == STORED else each._replace(place=0)
        if last is not None:
            due = last.place + last.pages * index.stride if last.kind == STORED else 0
            if run == (last.block, last.page + last.pages, run.pages, last.kind, due):
                last = last._replace(pages=last.pages + run.pages)
                continue
            yield last
        last = run
    if last is not None:
        yield last
