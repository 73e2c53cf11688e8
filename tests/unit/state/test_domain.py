"""What libvirt knows of a guest, in its state file: read without the stream, and never believed if it is damaged."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest
import zstandard

from statepipe.cli.report import inspected
from statepipe.errors import IntegrityError, StatepipeError
from statepipe.formats.domainframe import CONTENT_LIMIT, decode_domain, encode_domain
from statepipe.formats.libvirtimage import Domain, beginning
from statepipe.formats.metadata import encode_meta
from statepipe.formats.statefile import Writer
from statepipe.formats.zstdframe import skippable
from statepipe.stages.agekeys import read_identities
from statepipe.state.file import Keys, open_state
from statepipe.state.inspect import inspect
from statepipe.state.loading import prepare, read_ends
from statepipe.state.verify import verify_state
from tests.agefiles import KEY_FILE, sealed
from tests.minireader import Refused, read
from tests.statefiles import DOMAIN, NO_KEYS, cut, layout, load, noisy_stream, seal, state_file, unasked
from tests.world import world

STREAM = noisy_stream()
FILE = state_file(cut(STREAM, 3), domain=DOMAIN, index=True)
WITHOUT = state_file(cut(STREAM, 3), index=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.state"


def domain_of(path: Path, keys: Keys = NO_KEYS) -> Domain | None:
    with open_state(str(path), keys) as source:
        return prepare(source).domain


def frame(contents: bytes) -> bytes:
    return Writer().domain(contents)


def with_frames(*frames: bytes, behind: bytes = b"") -> bytes:
    """The file without a domain, with these frames behind its header, and `behind` behind its first data frame."""
    pieces = layout(WITHOUT)
    header, first, *others = [(WITHOUT[it.start : it.end], it.content) for it in pieces[:-2]]
    trailer = json.loads(WITHOUT[pieces[-2].start + 34 : pieces[-2].end])
    late = [(behind, 0)] if behind else []
    return seal([header, *((each, 0) for each in frames), first, *late, *others], trailer)


def test_it_is_read_from_the_beginning_of_the_file(path: Path) -> None:
    path.write_bytes(FILE)
    assert domain_of(path) == DOMAIN == decode_domain(encode_domain(DOMAIN), 0)
    assert verify_state(str(path), NO_KEYS)["index"] is True and load(path).data == STREAM
    path.write_bytes(FILE[: layout(FILE)[2].start] + bytes(len(FILE) - layout(FILE)[2].start))
    with pytest.raises(StatepipeError), open_state(str(path), NO_KEYS) as source:
        read_ends(source)  # no trailer, no state


def test_a_state_without_it_has_none(path: Path) -> None:
    path.write_bytes(WITHOUT)
    assert domain_of(path) is None and "domain" not in inspect(str(path), NO_KEYS)


def test_the_reader_of_the_document_reads_it() -> None:
    found = read(FILE)
    assert found.domain == (DOMAIN.xml, DOMAIN.cookie, True) and found.stream == STREAM and found.pages
    paused = state_file(cut(STREAM, 3), domain=Domain(b"<domain/>", b"", was_running=False))
    assert read(paused).domain == (b"<domain/>", None, False) and read(WITHOUT).domain is None


def test_the_frame_and_the_stream_are_an_image_of_libvirts() -> None:
    piece = layout(FILE)[1]
    plain = zstandard.ZstdDecompressor().decompress(FILE[piece.start + 34 : piece.end])
    assert plain == beginning(DOMAIN, spare=0, is_big_endian=False)


def test_an_encrypted_state_tells_it_only_to_those_who_have_the_key(path: Path) -> None:
    keys = Keys(lambda: read_identities(str(KEY_FILE), world()), unasked)
    binary = sealed(FILE)
    lines = [base64.b64encode(binary[at : at + 48]) for at in range(0, len(binary), 48)]
    armored = b"\n".join([b"-----BEGIN AGE ENCRYPTED FILE-----", *lines, b"-----END AGE ENCRYPTED FILE-----", b""])
    for data in (binary, armored):
        path.write_bytes(data)
        assert DOMAIN.xml[:15] not in data and domain_of(path, keys) == DOMAIN


def test_inspect_shows_it(path: Path) -> None:
    path.write_bytes(FILE)
    facts = inspect(str(path), NO_KEYS)
    assert facts["domain"] == {
        "name": "web\xe41",
        "uuid": "9f0b0c5e-6b1c-4d8e-8f6e-0d7d1a2b3c4d",
        "was_running": True,
        "xml": DOMAIN.xml.decode(),
        "cookie": DOMAIN.cookie.decode(),
    }
    told = "web\xe41 9f0b0c5e-6b1c-4d8e-8f6e-0d7d1a2b3c4d: running before the save; 104 characters of XML, 36 of"
    assert f"domain:     {told} libvirt's cookie" in inspected(facts)


def test_inspect_shows_a_strange_one_and_nothing_that_moves_the_cursor(path: Path) -> None:
    xml = b"<domain><name>a\xc2\x9b2J</name></domain>"
    path.write_bytes(state_file(cut(STREAM, 3), domain=Domain(xml, b"", was_running=False)))
    assert "\x9b" not in (shown := inspected(inspect(str(path), NO_KEYS))) and "paused before the save" in shown
    path.write_bytes(state_file(cut(STREAM, 3), domain=Domain(b"\xff", b"", was_running=False)))
    facts = inspect(str(path), NO_KEYS)
    assert facts["domain"]["xml"] == "\udcff" and facts["domain"]["cookie"] is None
    assert "its XML tells no name: paused" in inspected(facts) and json.loads(json.dumps(facts)) == facts


# --- what is refused


def packed(plain: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(plain)


PLAIN = beginning(DOMAIN, spare=0, is_big_endian=False)
DAMAGED = {
    "nothing": b"",
    "no zstd": b"<domain/>",
    "cut": encode_domain(DOMAIN)[:-6],
    "more behind it": encode_domain(DOMAIN) + b"\0",
    "two frames": encode_domain(DOMAIN) * 2,
    "no size": zstandard.ZstdCompressor(write_content_size=False).compress(PLAIN),
    "too much": packed(PLAIN.ljust(CONTENT_LIMIT + 1, b"\0")),
    "a header alone": packed(PLAIN[:92]),
    "text": packed(b"x" * 200),
    "spare zeros": packed(beginning(DOMAIN, spare=1, is_big_endian=False)),
    "big-endian": packed(beginning(DOMAIN, spare=0, is_big_endian=True)),
    "unfinished": packed(PLAIN.replace(b"QemudSave", b"QemudPart")),
    "compressed": packed(beginning(DOMAIN, 5, spare=0, is_big_endian=False)),
    "ran twice": packed(PLAIN[:24] + b"\x02" + PLAIN[25:]),
    "bytes that are not used": packed(PLAIN[:80] + b"\x01" + PLAIN[81:]),
    "behind the texts": packed(PLAIN + b"x"),
}


@pytest.mark.parametrize("contents", DAMAGED.values(), ids=DAMAGED)
def test_a_frame_that_is_not_written_so_is_refused(contents: bytes, path: Path) -> None:
    file = with_frames(frame(contents))
    path.write_bytes(file)
    for use in (verify_state, inspect):
        with pytest.raises(IntegrityError, match="the description of the domain is damaged") as caught:
            use(str(path), NO_KEYS)
        assert caught.value.offset == layout(file)[1].start
    with pytest.raises(Refused):
        read(file)


MISPLACED = {
    "two": with_frames(frame(encode_domain(DOMAIN)), frame(encode_domain(DOMAIN))),
    "behind another": with_frames(encode_meta(b"I", {}), frame(encode_domain(DOMAIN))),
    "behind data": with_frames(behind=frame(encode_domain(DOMAIN))),
}


@pytest.mark.parametrize("file", MISPLACED.values(), ids=MISPLACED)
def test_it_is_directly_behind_the_header_or_refused(file: bytes, path: Path) -> None:
    path.write_bytes(file)
    with pytest.raises(IntegrityError, match="not directly behind the header"):
        verify_state(str(path), NO_KEYS)
    assert isinstance(load(path).error, IntegrityError)
    with pytest.raises(Refused):
        read(file)


def test_a_flipped_bit_is_found_before_it_is_believed(path: Path) -> None:
    piece = layout(FILE)[1]
    for at in range(piece.start, piece.end, 7):
        damaged = bytearray(FILE)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError):
            verify_state(str(path), NO_KEYS)
        assert isinstance(load(path).error, IntegrityError)


def test_a_description_with_a_flipped_bit_is_not_taken_for_none(path: Path) -> None:
    """In its frame's magic number and length, in the tag, and in the first bytes behind it."""
    piece = layout(FILE)[1]
    for bit in range(8 * 40):
        damaged = bytearray(FILE)
        damaged[piece.start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for use in (domain_of, lambda path: inspect(str(path), NO_KEYS)):
            with pytest.raises(IntegrityError) as caught:
                use(path)
            assert caught.value.offset == piece.start, bit


def test_a_frame_of_another_program_is_no_damage(path: Path) -> None:
    """However large it is, and whatever its magic number."""
    for magic in (0x184D2A50, 0x184D2A55, 0x184D2A5E):
        for size in (0, 9, 26, 27, 1000, (1 << 20) + 1):
            if (magic, size) == (0x184D2A55, (1 << 20) + 1):
                continue  # no program writes so many metadata
            path.write_bytes(with_frames(skippable(magic, bytes(size))))
            assert domain_of(path) is None


def test_a_domain_that_does_not_fit_is_not_written() -> None:
    noise = bytes(random.Random(1).randbytes(1_100_000)).replace(b"\0", b"x")
    with pytest.raises(StatepipeError, match="does not fit into a state file") as caught:
        encode_domain(Domain(noise, b"", was_running=True))
    assert caught.value.hint is not None
    with pytest.raises(StatepipeError, match="does not fit into a save image"):
        encode_domain(Domain(b"x" * (4 << 20), b"", was_running=True))
    long = Domain(b"<disk/>" * 500_000, b"<c/>" * 500_000, was_running=True)
    assert decode_domain(encode_domain(long), 0) == long
