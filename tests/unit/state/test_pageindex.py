"""The index of pages in a state file: told by inspect, held against the stream by verify-state, refused if damaged."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from statepipe.cli.report import inspected, verified
from statepipe.errors import IntegrityError
from statepipe.formats.qemu.pageframes import encode_index
from statepipe.formats.qemu.pages import PageIndex
from statepipe.formats.qemu.stream import QemuStream
from statepipe.state.file import open_state
from statepipe.state.inspect import inspect
from statepipe.state.loading import read_ends
from statepipe.state.pageindex import read_index
from statepipe.state.verify import verify_state
from tests import streams
from tests.statefiles import NO_KEYS, cut, index_frame, layout, load, noise, noisy_stream, state_file, with_index

STREAM = noisy_stream()
FILE = state_file(cut(STREAM, 5), index=True)
PIECES = layout(FILE)
FRAMES = [FILE[it.start : it.end] for it in PIECES[-4:-2]]
TRAILER = json.loads(FILE[PIECES[-2].start + 34 : PIECES[-2].end])
Facts = dict[str, Any]


def made(frames: list[bytes], /, *behind: bytes, **told: Any) -> bytes:
    """FILE with these frames for its index."""
    return with_index(FILE, frames, *behind, **told)


def index_of(stream: bytes) -> PageIndex:
    followed = QemuStream()
    followed.record_pages()
    followed.feed(stream)
    return followed.page_index()


def refused(path: Path, file: bytes, read: Callable[[str], object]) -> IntegrityError:
    path.write_bytes(file)
    with pytest.raises(IntegrityError) as caught:
        read(str(path))
    return caught.value


def verify(path: str) -> Facts:
    return verify_state(path, NO_KEYS)


def read_alone(path: str) -> PageIndex | None:
    with open_state(path, NO_KEYS) as source:
        return read_index(source, read_ends(source))


def test_the_index_is_read_alone_told_of_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(FILE)
    index = read_alone(str(path))
    assert index is not None and (index.runs, index.stored, index.zero) == (2, 6, 0)
    found = index.find(0, 3)
    at = (found.place + (3 - found.page) * index.stride) if found else 0
    assert STREAM[at : at + streams.PAGE] == noise(3)[8:]
    assert "index:      6 pages stored, 0 zero, in 2 runs; " in inspected(inspect(str(path), NO_KEYS))
    facts = verify(str(path))
    assert facts["index"] and "digests, frames, index and stream agree" in verified(facts)
    assert load(path).data == STREAM


def test_a_file_without_an_index_is_as_whole_as_before(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(state_file(cut(STREAM, 5)))
    assert read_alone(str(path)) is None and "index" not in inspect(str(path), NO_KEYS)["trailer"]
    facts = verify(str(path))
    assert not facts["index"] and "digests, frames and stream agree" in verified(facts)


def test_a_stream_that_cannot_be_served_says_why_in_the_place_of_an_index(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(state_file([streams.whole()], index=True))
    assert inspect(str(path), NO_KEYS)["trailer"]["index"] == {"unserved": "it has XBZRLE pages"}
    assert "index:      none: it has XBZRLE pages\n" in inspected(inspect(str(path), NO_KEYS))
    assert read_alone(str(path)) is None and not verify(str(path))["index"]


def test_verify_state_names_the_place_where_the_index_is_wrong(tmp_path: Path) -> None:
    """All sums are right, so it was written so."""
    other = index_of(STREAM)
    other.places[1] += 8
    error = refused(tmp_path / "state", made(list(map(index_frame, encode_index(other)))), verify)
    assert "does not describe the stream: it is wrong about the run at page 0x1 of the RAM block 'pc.ram'" in str(error)
    assert (error.offset, error.exit_code) == (other.places[1], 3)
    assert load(tmp_path / "state").data == STREAM, "the stream is whole"


DAMAGED = {
    "a flip": (lambda: made([FRAMES[0], FRAMES[1][:-1] + b"\xff"], blake3=TRAILER["index"]["blake3"]), "checksum"),
    "a frame less": (lambda: made(FRAMES[:1], **TRAILER["index"]), "page index"),
    "no frame": (lambda: made([], **TRAILER["index"]), "page index"),
    "a frame more than told": (lambda: made(FRAMES, frames=1), "page index"),
    "frames of no index": (lambda: made([index_frame(b"{}", b"Q"), FRAMES[1]]), "page index"),
    "another frame behind it": (lambda: made(FRAMES, struct.pack("<II", 0x184D2A50, 1) + b"x"), "page index"),
    "larger than the file": (lambda: made(FRAMES, size=1 << 30), "page index"),
    "no digest told": (lambda: made(FRAMES, blake3=None), "page index|blake3 is missing"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_an_index_that_is_not_as_announced_is_refused_alone_and_in_its_file(how: str, tmp_path: Path) -> None:
    make, words = DAMAGED[how]
    path = tmp_path / "state"
    for read in (read_alone, verify):
        error = refused(path, make(), read)
        assert any(word in str(error) for word in words.split("|"))
    assert isinstance(load(path).error, IntegrityError)


@pytest.mark.parametrize("key", ["runs", "stored", "zero"])
def test_other_numbers_than_the_trailer_announces_are_refused(key: str, tmp_path: Path) -> None:
    error = refused(tmp_path / "state", made(FRAMES, **{key: 7}), read_alone)
    assert "other numbers of pages" in str(error)


def test_an_index_of_another_stream_is_refused(tmp_path: Path) -> None:
    other = index_of(STREAM.replace(streams.devices(), streams.device("rtc", 9) + streams.devices()))
    error = refused(tmp_path / "state", made(list(map(index_frame, encode_index(other)))), read_alone)
    assert "disagree on the place of the end mark" in str(error)
