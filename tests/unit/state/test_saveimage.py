"""libvirt's save images read in place: by inspect, verify-state and load, as far as the format lets damage be found."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from statepipe.cli.report import inspected, verified
from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.libvirtimage import BZIP2, FORMATS, GZIP, HEADER_SIZE, LZOP, RAW, SPARSE, XZ, ZSTD, beginning
from statepipe.qemu.guard import Said
from statepipe.stages.agekeys import read_identities
from statepipe.state.file import Keys, open_state
from statepipe.state.inspect import inspect
from statepipe.state.loading import prepare
from statepipe.state.pagestore import open_pages
from statepipe.state.verify import verify_state
from tests.agefiles import KEY_FILE, sealed
from tests.statefiles import DOMAIN, NO_KEYS, cut, load, noise, noisy_stream, state_file, unasked
from tests.streams import whole
from tests.world import world

STREAM = noisy_stream()
PACKERS: dict[int, Callable[[bytes], bytes]] = {
    RAW: bytes,
    GZIP: gzip.compress,
    BZIP2: bz2.compress,
    XZ: lzma.compress,
    ZSTD: zstandard.ZstdCompressor(write_checksum=True).compress,
}
each_format = pytest.mark.parametrize("number", PACKERS, ids=[FORMATS[number] for number in PACKERS])


def image(number: int, stream: bytes = STREAM, spare: int = 1000) -> bytes:
    return beginning(DOMAIN, number, spare=spare) + PACKERS[number](stream)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.save"


@each_format
def test_every_verb_reads_it_where_it_lies(number: int, path: Path) -> None:
    path.write_bytes(data := image(number))
    name = FORMATS[number]
    facts = verify_state(str(path), NO_KEYS)
    assert facts["format"] == f"save image of libvirt, {name}" and facts["size"] == len(data)
    assert (facts["bytes"], facts["proof"], facts["digest"]) == (len(STREAM), "vmdesc", False)
    assert "the stream is complete; it carries no digest" in verified(facts)
    assert ("nothing shows a changed bit" in verified(facts)) == (number == RAW)
    shown = inspect(str(path), NO_KEYS)
    assert shown["domain"]["name"] == "web\xe41" and shown["stream"]["bytes"] == len(STREAM)
    assert f"format:     save image of libvirt, {name}\ndomain:     web\xe41 9f0b0c5e" in inspected(shown)
    loaded = load(path)
    assert loaded.error is None and loaded.data == STREAM
    assert loaded.doubts is not None and "is a save image of libvirt's, not a state file" in loaded.doubts


def test_a_state_of_ours_in_it_keeps_its_proof(path: Path) -> None:
    path.write_bytes(beginning(DOMAIN, ZSTD) + state_file(cut(STREAM, 3), index=True))
    facts = verify_state(str(path), NO_KEYS)
    assert facts["format"] == "save image of libvirt, zstd (statepipe state)"
    assert facts["digest"] and facts["index"]
    shown = inspect(str(path), NO_KEYS)
    assert shown["trailer"]["bytes"] == len(STREAM) and shown["domain"]["name"] == "web\xe41"
    assert load(path).data == STREAM and load(path).doubts is None


def test_a_guest_that_ran_runs_again_although_libvirt_stopped_it(path: Path) -> None:
    for ran, expected in ((True, "running"), (False, "paused")):
        path.write_bytes(beginning(DOMAIN._replace(was_running=ran)) + STREAM)
        with open_state(str(path), NO_KEYS) as source:
            state = prepare(source)
            assert state.run_state == expected
            state.refuse_changed_disks(None, Said(), lambda text: None)


@pytest.mark.parametrize("number", [RAW, ZSTD])
def test_its_pages_are_read_one_by_one(number: int, path: Path) -> None:
    path.write_bytes(image(number))
    with open_pages(str(path), NO_KEYS) as store:
        pages = [bytes(data[:4096]) for at in range(store.frames) for _, data in store.pages(at)]
        assert noise(0)[-4096:] in pages and store.is_scanned
        path.write_bytes(image(number)[:-1])
        with pytest.raises(StatepipeError, match="was changed while it was read"):
            store._decoded(0)


def test_an_encrypted_image_is_opened_first(path: Path) -> None:
    path.write_bytes(sealed(image(GZIP)))
    keys = Keys(lambda: read_identities(str(KEY_FILE), world()), unasked)
    assert verify_state(str(path), keys)["format"] == "save image of libvirt, gzip, encrypted (age)"
    assert load(path, keys=keys).data == STREAM


# --- damage


@each_format
def test_a_cut_image_is_found_wherever_it_is_cut(number: int, path: Path) -> None:
    data = image(number, whole(), spare=3)
    start = len(data) - len(PACKERS[number](whole()))
    for size in {*range(16, start + 12), *range(start + 12, len(data), 97), *range(len(data) - 12, len(data))}:
        path.write_bytes(data[:size])
        with pytest.raises(IntegrityError) as caught:
            verify_state(str(path), NO_KEYS)
        assert caught.value.offset is not None
        assert size < start or not load(path).data.endswith(whole()[-20:])


def test_what_is_cut_off_with_nothing_of_the_state_left_is_called_cut(path: Path) -> None:
    data = image(RAW)
    for size in (16, 91, 92, 300, len(data) - len(STREAM)):
        path.write_bytes(data[:size])
        with pytest.raises(TruncatedError, match="save image ends"):
            inspect(str(path), NO_KEYS)


@pytest.mark.parametrize("number", [GZIP, BZIP2, XZ, ZSTD])
def test_a_flipped_bit_in_a_compressed_image_is_found_or_changes_nothing(number: int, path: Path) -> None:
    """Each of these formats has bits that say nothing of the data, such as gzip's time."""
    data = image(number, whole(), spare=3)
    start = len(data) - len(PACKERS[number](whole()))
    found = 0
    for at in range(start, len(data), 3):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            verify_state(str(path), NO_KEYS)
        except IntegrityError:
            found += 1
            assert load(path).error is not None
        else:
            assert load(path).data == whole()
    assert found > 0.9 * (len(data) - start) / 3


def test_a_flipped_bit_in_the_pages_of_a_raw_image_cannot_be_found(path: Path) -> None:
    """The format has no checksum. What is around the pages is parsed, and what is parsed is found."""
    data = bytearray(image(RAW))
    page = data.index(noise(1)[-4096:])
    data[page + 1000] ^= 1
    path.write_bytes(data)
    assert verify_state(str(path), NO_KEYS)["digest"] is False
    data[page - 3] ^= 0x40  # the header of the page
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        verify_state(str(path), NO_KEYS)


def test_an_image_that_libvirt_has_not_finished_is_refused(path: Path) -> None:
    path.write_bytes(image(RAW).replace(b"QemudSave", b"QemudPart"))
    for use in (inspect, verify_state):
        with pytest.raises(TruncatedError, match=r"web\.save: libvirt has not finished this save image") as caught:
            use(str(path), NO_KEYS)
        assert "image of the domain web\xe41, which has " in str(caught.value)
        assert "if virsh domstate --reason 'web\xe41' says saving" in str(caught.value.hint)


def test_of_one_that_libvirt_has_just_begun_not_even_the_domain_is_told(path: Path) -> None:
    path.write_bytes(image(RAW).replace(b"QemudSave", b"QemudPart")[: HEADER_SIZE + 10])
    with pytest.raises(TruncatedError, match=r"web\.save: libvirt has just begun this save image") as caught:
        inspect(str(path), NO_KEYS)
    assert "wait until" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("number", "words", "hint"),
    [
        (LZOP, "no lzop is built in", "lzop -dc | statepipe save NEW"),
        (SPARSE, "at fixed places in the file", "another save_image_format"),
    ],
)
def test_a_format_that_cannot_be_read_says_why_and_what_to_do(number: int, words: str, hint: str, path: Path) -> None:
    path.write_bytes(beginning(DOMAIN, number) + b"\x89LZO")
    with pytest.raises(StatepipeError, match=words) as caught:
        verify_state(str(path), NO_KEYS)
    assert not isinstance(caught.value, IntegrityError)
    assert caught.value.hint is not None and hint in caught.value.hint


def test_a_state_that_is_not_compressed_as_the_header_says_is_refused(path: Path) -> None:
    path.write_bytes(beginning(DOMAIN, RAW) + gzip.compress(STREAM))
    with pytest.raises(IntegrityError, match="header says raw, and its state is gzip"):
        verify_state(str(path), NO_KEYS)
    path.write_bytes(beginning(DOMAIN, RAW) + b"PK\3\4 is no stream")
    with pytest.raises(IntegrityError, match="not a saved state"):
        inspect(str(path), NO_KEYS)


def test_bytes_behind_the_stream_are_refused(path: Path) -> None:
    path.write_bytes(image(RAW) + b"\0")
    with pytest.raises(IntegrityError, match="continues after the end"):
        verify_state(str(path), NO_KEYS)


def test_a_header_that_was_changed_is_found_in_place(path: Path) -> None:
    damaged = bytearray(image(RAW))
    damaged[HEADER_SIZE + len(DOMAIN.xml)] = 1  # the zero behind the XML
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError, match=r"web\.save: the XML in libvirt's save image has no end"):
        inspect(str(path), NO_KEYS)
