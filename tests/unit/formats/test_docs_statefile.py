"""docs/state-file.md against the code: its dump, its tables, and a reader that knows nothing else."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.formats.domainframe import decode_domain
from statepipe.formats.libvirtimage import Domain
from statepipe.formats.metadata import HEADER, META_LIMIT, TRAILER, decode_meta, encode_meta
from statepipe.formats.qemu.pageframes import CONTENT_LIMIT, MAX_FRAMES, RUNS_IN_FRAME
from statepipe.formats.qemu.pages import MAX_PIECES, MAX_PLACE, MAX_RUNS, MOST
from statepipe.formats.seektable import SEEK_TABLE_LIMIT
from statepipe.formats.zstdframe import MEMORY, WHOLE_LIMIT, skippable
from statepipe.stages.codec import compress, decompress
from statepipe.stages.zstd import FRAME_SIZE
from statepipe.state.inspect import inspect
from statepipe.state.verify import verify_state
from tests.documents import cases, dumps, joined, keys, section, text_of
from tests.minireader import Refused, read
from tests.statefiles import NO_KEYS, cut, load, noisy_stream, seal

NAME = "state-file.md"
OF_DOMAIN, DUMP = dumps(text_of(NAME))
SAMPLE = joined(DUMP)
OF_HEADER, OF_HARDWARE = map(keys, section(NAME, "3. The header").split("`hardware` has"))
OF_TRAILER = keys(section(NAME, "5. The trailer"))
OF_DISK = keys(section(NAME, "A disk"))
OF_INDEX = keys(section(NAME, "12. The page index").split("The contents of each frame")[0])
STREAM = noisy_stream()


# --- the file in the document


def test_the_file_in_the_document_is_read_by_the_real_reader(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(SAMPLE)
    assert verify_state(str(path), NO_KEYS)["proof"] == "vmdesc"
    loaded = load(path)
    assert loaded.error is None and len(loaded.data) == 8591
    assert inspect(str(path), NO_KEYS)["header"]["kind"] == "state"


def test_the_file_in_the_document_is_read_by_a_reader_made_from_the_document() -> None:
    it = read(SAMPLE)
    assert it.header["writer"] == "statepipe 0.1.0" and it.trailer["bytes"] == len(it.stream) == 8591
    assert it.stream[it.trailer["end_mark"] :].startswith(b"\0\x06")
    assert it.pages == {("pc.ram", 0): None, ("pc.ram", 1): it.stream.rindex(b"\x01" * 4096)}
    assert it.outline is not None and it.outline["devices"][1] == it.trailer["end_mark"]


def test_what_stands_beside_the_bytes_is_in_them() -> None:
    it = read(SAMPLE)
    shown = "".join(words for data, words in DUMP if data == words.encode())
    assert shown == "".join(json.dumps(each, separators=(",", ":")) for each in (it.header, it.trailer))
    for data, words in DUMP:
        if found := re.match("magic 0x([0-9A-F]{8})|([0-9]+) (?:bytes follow|entries)", words):
            assert int.from_bytes(data, "little") == (int(found[1], 16) if found[1] else int(found[2]))
        elif found := re.match(r".*: ([0-9]+) bytes, (?:decode )?to ([0-9]+)$", words):
            assert data == struct.pack("<II", int(found[1]), int(found[2]))


def test_every_flip_of_a_bit_is_refused() -> None:
    """By the reader made from the document; by the real one every eleventh, as its own tests flip them all."""
    for bit in range(8 * len(SAMPLE)):
        damaged = bytearray(SAMPLE)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            read(bytes(damaged))
        if bit % 11 == 0:
            with pytest.raises(StatepipeError):
                b"".join(decompress()(iter([damaged])))


def test_the_frame_of_a_domain_in_the_document_is_what_is_written() -> None:
    domain = Domain(b"<domain type='kvm'><name>vm1</name></domain>", b"<cookie/>", was_running=True)
    frame = joined(OF_DOMAIN)
    assert decode_domain(frame[34:], 0) == domain
    first = encode_meta(HEADER, {"statepipe": 1, "kind": "stream"})
    assert read(seal([(first, 0), (frame, 0)], {})).domain == (domain.xml, domain.cookie, True)
    sizes = [f"{len(frame) - 8} bytes follow", f"the content: {len(frame) - 34} bytes, 147 decoded"]
    assert [words for _, words in OF_DOMAIN if "bytes" in words and "16" not in words] == sizes


# --- files that are written today


def test_it_reads_what_compress_writes_which_is_no_guest() -> None:
    it = read(b"".join(compress("zstd:3")(iter(cut(STREAM, 4)))))
    assert it.stream == STREAM and it.header == {"statepipe": 1, "kind": "stream"}
    assert set(it.trailer) == {"bytes", "frames", "file_blake3"} and it.trailer["frames"] == 4
    assert read(b"".join(compress("zstd")(iter([])))).trailer["frames"] == 0


def test_it_skips_what_a_later_writer_may_add() -> None:
    first = encode_meta(b"H", {"statepipe": 1, "kind": "stream"})
    more = [encode_meta(b"I", {"pages": []}), skippable(0x184D2A50, b"another's")]
    file = seal([(each, 0) for each in (first, *more)], {})
    assert read(file).stream == b"".join(decompress()(iter([file]))) == b""


@pytest.mark.parametrize("codec", ["gzip", "bzip2", "xz", "lz4"])
def test_other_codecs_are_what_their_standards_say(codec: str) -> None:
    data = STREAM * 40  # more than one block of each
    packed = b"".join(compress(codec)(iter([data])))
    if codec == "lz4":
        assert lz4_frame(packed) == data
    else:
        assert {"gzip": gzip.decompress, "bzip2": bz2.decompress, "xz": lzma.decompress}[codec](packed) == data
    done = subprocess.run([codec, "-dc"], input=packed, capture_output=True, check=True)
    assert done.stdout == data


def lz4_frame(packed: bytes) -> bytes:
    """The content of one frame of independent blocks, by lz4's own documents; no checksum is looked at."""
    assert packed[:4] == b"\x04\x22\x4d\x18" and packed[4] == 0b0111_0100 and packed[5] >> 4 == 6
    at, plain = 7, b""
    while size := int.from_bytes(packed[at : at + 4], "little"):
        block = packed[at + 4 : at + 4 + (size & 0x7FFFFFFF)]
        plain += block if size >> 31 else lz4_block(block)
        at += 8 + len(block)
    assert at + 8 == len(packed)
    return plain


def lz4_block(block: bytes) -> bytes:
    at, plain = 0, bytearray()

    def length(count: int) -> int:
        nonlocal at
        more = 255 if count == 15 else 0
        while more == 255:
            more = block[at]
            at, count = at + 1, count + more
        return count

    while at < len(block):
        token, at = block[at], at + 1
        literals = length(token >> 4)
        plain += block[at : at + literals]
        at += literals
        if at < len(block):
            back, at = int.from_bytes(block[at : at + 2], "little"), at + 2
            for _ in range(length(token & 15) + 4):
                plain.append(plain[-back])
    return bytes(plain)


# --- the tables


ENDS = {"bytes": 0, "frames": 0, "file_blake3": "0" * 64}
SEEN = {"path": "p", "format": "raw", "size": 0, "mtime_ns": None, "samples_blake3": "0"}

Around = Callable[[dict[str, Any]], tuple[bytes, dict[str, Any]]]
"""The kind of metadata frame, and its JSON, with some keys in their place."""


def in_header(facts: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    return HEADER, {"statepipe": 1, **facts}


def in_hardware(facts: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    return in_header({"hardware": facts})


def in_trailer(facts: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    return TRAILER, ENDS | facts


def in_disk(facts: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    return in_trailer({"disks": [SEEN | facts]})


def in_index(facts: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    return in_trailer({"index": facts})


PLACES = [
    pytest.param(around, name, kind, id=f"{around.__name__}-{name}")
    for around, names in (
        (in_header, OF_HEADER),
        (in_hardware, OF_HARDWARE),
        (in_trailer, OF_TRAILER),
        (in_disk, OF_DISK),
        (in_index, OF_INDEX),
    )
    for name, kind in names.items()
]


def is_taken(kind: bytes, facts: dict[str, Any]) -> bool:
    text = json.dumps(facts, separators=(",", ":")).encode()
    try:
        decode_meta(b"statepipe" + kind + blake3(kind + text).digest(16) + text, 0)
    except IntegrityError:
        return False
    return True


@pytest.mark.parametrize(("around", "name", "what"), PLACES)
def test_the_tables_say_what_the_reader_takes_and_what_it_refuses(around: Around, name: str, what: str) -> None:
    right, wrong = cases(what)
    for value in right:
        assert is_taken(*around({name: value})), f"{name}: {value!r:.60} is a {what}"
    for value in wrong:
        assert not is_taken(*around({name: value})), f"{name}: {value!r:.60} is no {what}"


def test_what_the_tables_call_required_must_be_there() -> None:
    assert not is_taken(HEADER, {"kind": "state"})
    for name in ENDS:
        assert not is_taken(TRAILER, {key: value for key, value in ENDS.items() if key != name})
    for name in SEEN:
        disk = {key: value for key, value in SEEN.items() if key != name}
        assert not is_taken(*in_trailer({"disks": [disk]}))
    for block, right in (({"name": "pc.ram", "length": 0}, True), ({"name": "pc.ram"}, False), ({"length": 0}, False)):
        assert is_taken(*in_trailer({"blocks": [block]})) == right


def test_the_numbers_in_the_document_are_those_of_the_code() -> None:
    text = text_of(NAME)
    assert f"{META_LIMIT:,} bytes long" in text and f"1 MiB ({FRAME_SIZE:,} bytes)" in text
    assert (SEEK_TABLE_LIMIT - 17) // 8 == 8_388_605 and "8,388,605 entries" in text
    assert WHOLE_LIMIT == 8 << 20 and MEMORY == 128 << 20
    assert f"more than {MAX_RUNS:,} runs" in text and f"more than {MAX_PIECES:,} sections" in text
    assert f"holds runs: {RUNS_IN_FRAME:,} of them" in text and f"1 to {MAX_FRAMES}" in text
    assert MAX_PLACE == 1 << 42 and MOST == (1 << 25) - 1 and CONTENT_LIMIT == 1 << 20
