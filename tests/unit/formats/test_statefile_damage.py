"""A damaged state file never passes for whole, and its guest never runs (rows 15 to 17 of the fault matrix).

What is asked of each damage: verify-state and load raise IntegrityError with an offset; load lets out nothing that
is not of the stream, and not its end: QEMU runs a guest as soon as it has read the end mark.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.metadata import encode_meta
from statepipe.formats.zstdframe import skippable
from statepipe.stages.codec import compress, decompress
from statepipe.state.inspect import inspect
from statepipe.state.verify import verify_state
from tests.statefiles import NO_KEYS, cut, layout, load, noisy_stream, seal, seek_entries, state_file
from tests.streams import whole

STREAM = noisy_stream()
END_MARK = STREAM.rindex(b"\0\x06\0\0")
FILE = state_file(cut(STREAM, 8))

SMALL_STREAM = whole()
SMALL = state_file(cut(SMALL_STREAM, 5))


def terse(file: bytes) -> bytes:
    """The same file with a trailer that says no more than it must: fewer bits to try."""
    frames = [(file[piece.start : piece.end], piece.content) for piece in layout(file)[:-2]]
    facts = {"end_mark": SMALL_STREAM.rindex(b"\0\x06\0\0"), "blake3": blake3(SMALL_STREAM).hexdigest()}
    return seal(frames, facts)


TERSE = terse(SMALL)


def assert_damaged(path: Path, data: bytes, stream: bytes = STREAM) -> IntegrityError:
    """Both verbs find it, and load lets out the beginning of the stream at most."""
    rewrite(path, data)
    with pytest.raises(IntegrityError) as caught:
        verify_state(str(path), NO_KEYS)
    assert caught.value.offset is not None
    return assert_not_loaded(path, stream)


def rewrite(path: Path, data: bytes) -> None:
    """Without emptying it first, which takes longer than all the rest."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))
    os.close(fd)


def assert_not_loaded(path: Path, stream: bytes) -> IntegrityError:
    loaded = load(path)
    assert isinstance(loaded.error, IntegrityError)
    assert loaded.error.offset is not None
    assert stream.startswith(loaded.data) and len(loaded.data) <= stream.rindex(b"\0\x06\0\0")
    return loaded.error


# --- row 15: cut


def boundaries() -> Iterator[int]:
    """Around every frame's edges, and inside every frame: its header, its middle, its end."""
    for piece in layout(FILE):
        yield from (piece.start, piece.start + 1, piece.start + 4, piece.start + 8, piece.start + 17)
        yield from ((piece.start + piece.end) // 2, piece.end - 9, piece.end - 4, piece.end - 1)


@pytest.mark.parametrize("size", sorted(set(boundaries())))
def test_a_cut_anywhere_is_found(tmp_path: Path, size: int) -> None:
    error = assert_damaged(tmp_path / "state", FILE[:size])
    assert isinstance(error, TruncatedError) or size < 8


def test_a_small_file_cut_at_every_byte_is_found(tmp_path: Path) -> None:
    for size in range(len(TERSE)):
        assert_damaged(tmp_path / "state", TERSE[:size], SMALL_STREAM)


# --- row 16: one bit


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("part", range(4))
def test_a_bit_flipped_anywhere_is_found(tmp_path: Path, part: int) -> None:
    chance = random.Random(part)
    for _ in range(250):
        assert_damaged(tmp_path / "state", flipped(FILE, chance.randrange(len(FILE) * 8)))


@pytest.mark.parametrize("index", [0, -2, -1], ids=["header", "trailer", "seek table"])
def test_any_bit_of_the_metadata_flipped_is_found(tmp_path: Path, index: int) -> None:
    (tmp_path / "whole").write_bytes(TERSE)
    assert load(tmp_path / "whole").data == SMALL_STREAM
    piece = layout(TERSE)[index]
    for bit in range(piece.start * 8, piece.end * 8):
        assert_damaged(tmp_path / "state", flipped(TERSE, bit), SMALL_STREAM)


def test_any_bit_of_a_data_frames_header_flipped_is_found(tmp_path: Path) -> None:
    for piece in layout(SMALL)[1:-2]:
        for bit in range(piece.start * 8, (piece.start + 12) * 8):
            assert_damaged(tmp_path / "state", flipped(SMALL, bit), SMALL_STREAM)


# --- row 17: pieces lost, repeated, moved


def exchange(data: bytes, a: int, b: int, size: int) -> bytes:
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def swap_frames(a: int, b: int) -> bytes:
    first, second = layout(FILE)[a], layout(FILE)[b]
    middle = FILE[first.end : second.start]
    swapped = FILE[second.start : second.end] + middle + FILE[first.start : first.end]
    return FILE[: first.start] + swapped + FILE[second.end :]


def without(index: int) -> bytes:
    piece = layout(FILE)[index]
    return FILE[: piece.start] + FILE[piece.end :]


def twice(index: int) -> bytes:
    piece = layout(FILE)[index]
    return FILE[: piece.end] + FILE[piece.start :]


DAMAGES: dict[str, Callable[[], bytes]] = {
    "pages swapped": lambda: exchange(FILE, 4096, 12288, 4096),
    "4 KiB zeroed": lambda: FILE[:8192] + bytes(4096) + FILE[12288:],
    "512 bytes lost": lambda: FILE[:5000] + FILE[5512:],
    "512 bytes lost at the beginning": lambda: FILE[512:],
    "tail repeated": lambda: FILE + FILE[-4096:],
    "seek table repeated": lambda: twice(-1),
    "trailer repeated": lambda: twice(-2),
    "header repeated": lambda: twice(0),
    "a frame repeated": lambda: twice(3),
    "a frame lost": lambda: without(3),
    "the last data frame lost": lambda: without(-3),
    "the header lost": lambda: without(0),
    "the trailer lost": lambda: without(-2),
    "the seek table lost": lambda: without(-1),
    "only the trailer left": lambda: FILE[layout(FILE)[-2].start :],
    "only the seek table left": lambda: FILE[layout(FILE)[-1].start :],
    "only header, trailer and seek table left": lambda: FILE[: layout(FILE)[0].end] + FILE[layout(FILE)[-2].start :],
    "one byte more": lambda: FILE + b"\0",
    "zeros behind it": lambda: FILE + bytes(4096),
    "garbage behind it": lambda: FILE + b"garbage" * 100,
    "a frame behind it": lambda: FILE + FILE[layout(FILE)[1].start : layout(FILE)[1].end],
    "itself behind it": lambda: FILE + FILE,
    "a line before it": lambda: b"a line\n" + FILE,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_pieces_lost_repeated_or_added_are_found(tmp_path: Path, damage: Callable[[], bytes]) -> None:
    data = damage()
    assert data != FILE
    assert_damaged(tmp_path / "state", data)


@pytest.mark.parametrize(("a", "b"), [(1, 2), (2, 7), (-4, -3), (1, -3), (0, 1), (-3, -2), (-2, -1), (0, -2)])
def test_frames_in_another_order_never_end(tmp_path: Path, a: int, b: int) -> None:
    """Each is whole, so some of them may leave; but QEMU must not see an end mark, wherever it stands now."""
    path = tmp_path / "state"
    path.write_bytes(swap_frames(a % len(layout(FILE)), b % len(layout(FILE))))
    with pytest.raises(IntegrityError):
        verify_state(str(path), NO_KEYS)
    assert_no_end(path)


def assert_no_end(path: Path) -> StatepipeError:
    loaded = load(path)
    assert loaded.error is not None and loaded.error.exit_code == 3, loaded.error
    assert b"\0\x06\0\0" not in loaded.data
    return loaded.error


def fine(stream: bytes) -> list[bytes]:
    """Cut so that an end mark, the length of its vmdesc and the vmdesc are in frames of their own."""
    mark = stream.rindex(b"\0\x06\0\0")
    return [*cut(stream[:mark], 8), stream[mark : mark + 1], b"", stream[mark + 1 : mark + 6], b"", stream[mark + 6 :]]


SHORT_STREAM, LONG_STREAM = noisy_stream(2), noisy_stream(12)
SHORT = state_file(fine(SHORT_STREAM), header={"name": "one"})
LONG = state_file(fine(LONG_STREAM), header={"name": "another"})
PACKED = b"".join(compress()(iter([SHORT_STREAM])))


def body(file: bytes) -> bytes:
    return file[: layout(file)[-2].start]


def tail(file: bytes) -> bytes:
    return file[layout(file)[-2].start :]


def seal_as(stream: bytes, file: bytes) -> bytes:
    """Frames of one stream under a trailer that speaks of another's, all sizes and sums in order."""
    frames = [(file[piece.start : piece.end], piece.content) for piece in layout(file)[:-2]]
    return seal(frames, {"end_mark": stream.rindex(b"\0\x06\0\0"), "blake3": blake3(stream).hexdigest()})


SPLICED = {
    "short then long": body(SHORT) + tail(LONG),
    "long then short": body(LONG) + tail(SHORT),
    "half and half": LONG[: layout(LONG)[8].start] + SHORT[layout(SHORT)[8].start :],
    "one in the midst of another": LONG[: layout(LONG)[8].start] + SHORT + LONG[layout(LONG)[8].start :],
    "header of another": SHORT[: layout(SHORT)[0].end] + LONG[layout(LONG)[0].end :],
    "a plain stream's end": body(SHORT) + tail(PACKED),
    "of the right size": seal_as(LONG_STREAM, SHORT),
}


@pytest.mark.parametrize("data", SPLICED.values(), ids=SPLICED.keys())
def test_two_files_spliced_never_end(tmp_path: Path, data: bytes) -> None:
    """Also where the first file's stream is whole and the second's trailer says that its end comes later."""
    path = tmp_path / "state"
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        verify_state(str(path), NO_KEYS)
    assert_no_end(path)


# --- frames out of place, every sum in order


FIRST = FILE[: layout(FILE)[0].end]
OTHERS = skippable(0x184D2A50, b"another's")
LATER = encode_meta(b"I", {})


@pytest.mark.parametrize("frame", [FIRST, PACKED[: layout(PACKED)[0].end]], ids=["again", "another"])
def test_a_second_header_is_refused(tmp_path: Path, frame: bytes) -> None:
    frames = [(FILE[piece.start : piece.end], piece.content) for piece in layout(FILE)[:-2]]
    facts = {"end_mark": END_MARK, "blake3": blake3(STREAM).hexdigest()}
    error = assert_damaged(tmp_path / "state", seal([*frames[:3], (frame, 0), *frames[3:]], facts))
    assert "a second header" in str(error) and error.offset == layout(FILE)[3].start


@pytest.mark.parametrize("frame", [OTHERS, LATER, FIRST], ids=["another's", "a later one's", "a header"])
def test_nothing_but_the_seek_table_follows_the_trailer(frame: bytes) -> None:
    """Through a pipe; of a file, the trailer is looked for before the seek table."""
    pieces = layout(FILE)
    entries = [*seek_entries(FILE), (len(frame), 0)]
    table = b"".join(struct.pack("<II", *entry) for entry in entries) + struct.pack("<IBI", len(entries), 0, 0x8F92EAB1)
    data = FILE[: pieces[-2].end] + frame + struct.pack("<II", 0x184D2A5E, len(table)) + table
    with pytest.raises(IntegrityError, match=r"after the trailer|a second header"):
        b"".join(decompress()(iter([data])))


@pytest.mark.parametrize("wrong", [END_MARK - 1, END_MARK + 1, END_MARK + 1_000_000, 0])
def test_an_end_mark_that_is_elsewhere_is_refused(tmp_path: Path, wrong: int) -> None:
    frames = [(FILE[piece.start : piece.end], piece.content) for piece in layout(FILE)[:-2]]
    data = seal(frames, {"end_mark": wrong, "blake3": blake3(STREAM).hexdigest()})
    assert f"not where the trailer says, at byte {wrong}" in str(assert_damaged(tmp_path / "state", data))


def test_inspect_trusts_nothing_of_a_file_without_its_end(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(FILE[:-5])
    with pytest.raises(TruncatedError):
        inspect(str(path), NO_KEYS)
