"""Pages of a saved guest, frame by frame: from every kind of file, in any order, verified, or with the damage named."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import zstandard
from blake3 import blake3

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.qemu.pageframes import encode_index
from statepipe.formats.qemu.pages import KIND_BITS, PAGE_SHIFT, STORED
from statepipe.formats.qemu.stream import QemuStream
from statepipe.stages.codec import compress
from statepipe.stages.packing import choose
from statepipe.state import pagestore
from statepipe.state.file import Keys
from statepipe.state.pagestore import FrameDamaged, PageStore, open_pages
from tests import agefiles, streams
from tests.fuzz.guests import identities, no_openpgp
from tests.statefiles import NO_KEYS, cut, index_frame, layout, noise, noisy_stream, state_file, with_index
from tests.streams import PAGE

BLOCK = "pc.ram"


def stream_of(pages: int) -> bytes:
    """Noise, pages of zeros, and a page that is sent again at the end."""
    rest = [noise(page) if page % 5 else streams.zero(page) for page in range(1, pages)]
    return (
        streams.setup()
        + streams.ram(noise(0, BLOCK), *rest[: pages // 2])
        + streams.ram(*rest[pages // 2 :], streams.zero(0, "pc.bios"))
        + streams.ram(noise(3, BLOCK), kind=3)
        + streams.devices()
        + b"\0"
        + streams.vmdesc(*streams.DEVICES)
    )


STREAM = stream_of(60)
EXPECTED = {(BLOCK, page): noise(page)[8:] for page in range(60) if page % 5 or not page}


def sized(stream: bytes, size: int) -> bytes:
    """As other programs make it: several frames that tell their sizes."""
    packer = zstandard.ZstdCompressor(write_content_size=True, write_checksum=True)
    return b"".join(packer.compress(stream[at : at + size]) for at in range(0, len(stream), size))


KINDS: dict[str, tuple[Callable[[], bytes], bool]] = {
    "a state with an index": (lambda: state_file(cut(STREAM, 7), index=True), False),
    "one whose pages are each in several frames": (lambda: state_file(cut(STREAM, 200), index=True), False),
    "one with a page in each frame": (lambda: state_file(cut(STREAM, 60), index=True), False),
    "an older state": (lambda: state_file(cut(STREAM, 7)), True),
    "a raw stream": (lambda: STREAM, True),
    "zstd frames of another program": (lambda: sized(STREAM, 50_000), True),
    "what compress wrote": (lambda: b"".join(compress("zstd:1")(iter(cut(STREAM, 5)))), True),
    "an encrypted state": (lambda: agefiles.sealed(state_file(cut(STREAM, 7), index=True)), False),
    "an encrypted raw stream": (lambda: agefiles.sealed(STREAM), True),
}
KEYS = Keys(identities, no_openpgp)


def kept(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def pages_in(store: PageStore, pages: pagestore.Pages) -> dict[tuple[str, int], bytes]:
    found = {}
    for run, data in pages:
        assert run.kind == STORED and len(data) == run.pages * store.index.stride - 8
        for at in range(run.pages):
            start = at * store.index.stride
            found[store.index.outline.blocks[run.block].name, run.page + at] = bytes(data[start : start + PAGE])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_is_read_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    make, scanned = KINDS[kind]
    told: list[str] = []
    with open_pages(kept(tmp_path / "state", make()), KEYS, told=told.append) as store:
        assert store.is_scanned == scanned == bool(told)
        found: dict[tuple[str, int], bytes] = {}
        for number in range(store.frames):
            more = pages_in(store, store.pages(number))
            assert not found.keys() & more.keys()
            found |= more
        assert found == EXPECTED
        with closing(store.ahead(iter(range(store.frames)))) as results:
            again = [(number, pages_in(store, pages)) for number, pages in results]
        assert [number for number, _ in again] == list(range(store.frames))
        assert {key: page for _, pages in again for key, page in pages.items()} == EXPECTED
        assert store.head() == STREAM[: store.index.outline.head] and store.devices() == streams.devices()
        assert store.state.run_state == "running" and store.stored() == os.stat(tmp_path / "state").st_size
        assert store.digest == blake3(STREAM).hexdigest(), "a load could not be continued from another form of the file"
        store.verify_all()


def test_a_place_leads_to_its_frame_and_a_frame_to_its_part_of_the_stream(tmp_path: Path) -> None:
    file = state_file(cut(STREAM, 7), index=True)
    with open_pages(kept(tmp_path / "state", file), NO_KEYS) as store:
        spans = [store.span(number) for number in range(store.frames)]
        assert spans[0][0] == 0 and spans[-1][1] == len(STREAM)
        assert all(one[1] == other[0] for one, other in pairwise(spans))
        for number, (start, stop) in enumerate(spans):
            assert store.read(number) == STREAM[start:stop]
            assert {store.frame_for(start), store.frame_for(stop - 1)} == {number}
        for start, stop in ((0, len(STREAM)), (5, 5), (spans[2][1] - 3, spans[4][0] + 3)):
            assert store.stream_bytes(start, stop) == STREAM[start:stop]
        with pytest.raises(IntegrityError, match="outside the stream"):
            store.stream_bytes(0, len(STREAM) + 1)


UNSERVED: dict[str, tuple[Callable[[], bytes], str]] = {
    "armored": (lambda: agefiles.armored(agefiles.sealed(state_file(cut(STREAM, 3), index=True))), "age, armored"),
    "gzip": (lambda: b"".join(compress("gzip")(iter([STREAM]))), "compressed with gzip"),
    "one frame": (lambda: b"".join(choose("zstd", one_frame=True).stage(lambda: 0.0)(iter([STREAM]))), "zstd frames"),
    "XBZRLE": (lambda: state_file([streams.whole()], index=True), "it has XBZRLE pages"),
    "XBZRLE, older": (lambda: state_file([streams.whole()]), "it has XBZRLE pages"),
}


@pytest.mark.parametrize("kind", UNSERVED)
def test_what_cannot_be_read_page_by_page_says_why(kind: str, tmp_path: Path) -> None:
    make, why = UNSERVED[kind]
    with open_pages(kept(tmp_path / "state", make()), KEYS) as store:
        assert why in (store.index.outline.unserved or "") and store.index.runs == 0
        store.verify_all()


# --- damage


FILE = state_file(cut(STREAM, 7), index=True)
FRAMES = [it for it in layout(FILE) if it.content]


def damaged(number: int) -> bytes:
    """FILE with one byte in the middle of a frame changed."""
    at = (FRAMES[number].start + FRAMES[number].end) // 2
    return FILE[:at] + bytes([FILE[at] ^ 1]) + FILE[at + 1 :]


def test_a_damaged_frame_is_named_and_everything_else_is_still_read(tmp_path: Path) -> None:
    path = kept(tmp_path / "state", damaged(3))
    with open_pages(path, NO_KEYS) as store:
        for _ in range(2):
            with pytest.raises(
                FrameDamaged, match=f"frame 3 of {path}, at byte {FRAMES[3].start}, is damaged"
            ) as caught:
                store.pages(3)
            assert (caught.value.frame, caught.value.offset) == (3, FRAMES[3].start) and caught.value.hint
        found = {key: page for at in (0, 1, 2, 4, 5, 6) for key, page in pages_in(store, store.pages(at)).items()}
        assert found.items() <= EXPECTED.items()
        start, stop = store.span(3)
        lost = list(store.index.stored_between(start - PAGE + 1, stop))
        assert len(EXPECTED) - len(found) == sum(run.pages for run in lost)
        with pytest.raises(FrameDamaged):
            store.stream_bytes(lost[0].place, lost[0].place + PAGE)
        with pytest.raises(FrameDamaged), closing(store.ahead(range(store.frames))) as results:
            assert [number for number, _ in results] == [0, 1, 2]
        with pytest.raises(IntegrityError):
            store.verify_all()


def test_a_damaged_chunk_of_an_encrypted_file_is_a_damaged_frame(tmp_path: Path) -> None:
    sealed = bytearray(agefiles.sealed(state_file(cut(stream_of(64), 5), index=True)))
    sealed[len(sealed) // 2] ^= 1
    with open_pages(kept(tmp_path / "state", bytes(sealed)), KEYS) as store:
        broken = []
        for number in range(store.frames):
            try:
                store.pages(number)
            except FrameDamaged as error:
                broken.append(error.frame)
        assert broken and len(broken) < store.frames


@pytest.mark.parametrize("which", [0, 6], ids=["the head", "the devices"])
def test_the_head_and_the_devices_are_verified_at_the_opening(which: int, tmp_path: Path) -> None:
    with pytest.raises(FrameDamaged, match=f"frame {which} "):
        open_pages(kept(tmp_path / "state", damaged(which)), NO_KEYS)


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with open_pages(kept(path, FILE), NO_KEYS) as store:
        os.truncate(path, FRAMES[4].start + 5)
        with pytest.raises(StatepipeError, match="was changed while it was read"):
            store.pages(3)


def test_a_raw_stream_that_is_written_to_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with open_pages(kept(path, STREAM), NO_KEYS) as store:
        store._cache.clear()
        os.utime(path, ns=(1, 1))
        with pytest.raises(StatepipeError, match="was changed while it was read"):
            store.pages(0)


def test_a_file_that_is_replaced_is_read_on_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with open_pages(kept(path, FILE), NO_KEYS) as store:
        kept(tmp_path / "other", b"another")
        os.rename(tmp_path / "other", path)
        assert pages_in(store, store.pages(2)).items() <= EXPECTED.items()


def test_a_file_without_its_end_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(TruncatedError):
        open_pages(kept(tmp_path / "state", FILE[:-20]), NO_KEYS)


def test_a_wrong_index_puts_no_page_into_another(tmp_path: Path) -> None:
    """All sums of it are right: it was written so."""
    stream = QemuStream()
    stream.record_pages()
    stream.feed(STREAM)
    index = stream.page_index()
    at = next(number for number, run in enumerate(index) if run.page == 6)
    index.keys[at] += (1 << PAGE_SHIFT) - (1 << KIND_BITS)  # begins one page later, and is a page shorter
    file = with_index(FILE, list(map(index_frame, encode_index(index))), stored=index.stored)
    with open_pages(kept(tmp_path / "state", file), NO_KEYS) as store:
        number = store.frame_for(index.places[at])
        with pytest.raises(IntegrityError, match=r"page 0x7 of 'pc\.ram' is not where it says"):
            store.pages(number)
        with pytest.raises(IntegrityError, match="wrong about the run at page 0x7"):
            store.verify_all()


def test_a_seek_table_with_other_frames_than_the_trailer_tells_is_refused(tmp_path: Path) -> None:
    table = layout(FILE)[-1].start
    first = table + 8 + 8 + 4
    file = FILE[:first] + (FRAMES[0].content - 1).to_bytes(4, "little") + FILE[first + 4 :]
    with pytest.raises(IntegrityError, match=r"bytes: the trailer says [0-9]+, the seek table lists"):
        open_pages(kept(tmp_path / "state", file), NO_KEYS)
    swapped = bytearray(FILE)
    for entry, change in ((1, -1), (2, 1)):
        place = table + 8 + 8 * entry + 4
        swapped[place : place + 4] = (FRAMES[entry - 1].content + change).to_bytes(4, "little")
    with pytest.raises(FrameDamaged, match="its header is not the one that was written"):
        open_pages(kept(tmp_path / "state", bytes(swapped)), NO_KEYS)


# --- many readers


def test_many_threads_read_at_once_with_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagestore, "CACHE", 100_000)
    file = agefiles.sealed(state_file(cut(STREAM, 30), index=True))
    wrong: list[object] = []

    def read(store: PageStore, random: Random) -> None:
        for _ in range(60):
            number = random.randrange(store.frames)
            try:
                wrong.extend(pages_in(store, store.pages(number)).items() - EXPECTED.items())
            except BaseException as error:
                wrong.append(error)
                raise

    with open_pages(kept(tmp_path / "state", file), KEYS) as store:
        threads = [threading.Thread(target=read, args=(store, Random(seed))) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert sum(len(it.data) for it in store._cache.values()) == store._cached <= 100_000


def test_a_reader_that_stops_ahead_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with open_pages(kept(tmp_path / "state", FILE), NO_KEYS) as store:
        with closing(store.ahead(range(store.frames))) as results:
            assert next(results)[0] == 0
        assert threading.active_count() == before


def test_the_noisy_stream_of_the_other_tests_is_served_too(tmp_path: Path) -> None:
    with open_pages(kept(tmp_path / "state", state_file(cut(noisy_stream(), 5), index=True)), NO_KEYS) as store:
        assert store.index.stored == 6
