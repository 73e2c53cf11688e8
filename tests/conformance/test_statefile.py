"""The state file as docs/state-file.md lays it down, read by zstd, by the standard's own rules, and by statepipe."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.formats.metadata import HEADER, META_MAGIC, decode_meta, encode_meta
from statepipe.formats.seektable import SEEK_ENTRY_SIZE, SEEK_FOOTER_SIZE
from statepipe.formats.statefile import Checker, Writer
from statepipe.formats.zstdframe import skippable
from statepipe.stage import FLUSH
from statepipe.stages.prove import Proof
from statepipe.stages.zstd import decompress
from statepipe.state.inspect import inspect
from statepipe.state.verify import verify_state
from tests.qemu.harness import run_statepipe, statepipe_command
from tests.statefiles import (
    DATA,
    META,
    NO_KEYS,
    SEEK_TABLE,
    cut,
    layout,
    load,
    noisy_stream,
    seal,
    seek_entries,
    state_file,
)

STREAM = noisy_stream()
FILE = state_file(cut(STREAM, 5))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command itself saves from a stream that is piped into it."""
    path = tmp_path_factory.mktemp("saved") / "state"
    subprocess.run([*statepipe_command(), "save", path], input=STREAM, check=True, stderr=subprocess.DEVNULL)
    return path


def meta(file: bytes, index: int) -> dict[str, Any]:
    """A metadata frame by hand: tag, kind, 16 bytes of BLAKE3 over kind and JSON, JSON."""
    piece = layout(file)[index]
    frame = file[piece.start : piece.end]
    assert int.from_bytes(frame[4:8], "little") == len(frame) - 8
    assert frame[8:17] == b"statepipe"
    kind, check, text = frame[17:18], frame[18:34], frame[34:]
    assert check == blake3(kind + text).digest(16)
    return {"frame": kind.decode(), **json.loads(text)}


def test_header_data_trailer_and_seek_table_are_where_the_document_says(saved: Path) -> None:
    for file, index in ((saved.read_bytes(), 2), (FILE, 0)):
        magics = [piece.magic for piece in layout(file)]
        assert magics == [META, *[DATA] * (len(magics) - 3 - index), *[META] * index, META, SEEK_TABLE]
        assert meta(file, 0)["frame"] == "H" and meta(file, -2)["frame"] == "T"


def test_a_level_that_adapts_makes_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    (tmp_path / "stream").write_bytes(STREAM)
    with open(tmp_path / "stream", "rb") as source:
        assert run_statepipe("save", "compress:zstd:auto,min=1,max=9", path, stdin=source).returncode == 0
    assert meta(path.read_bytes(), 0)["stages"] == ["compress:zstd:auto"]
    assert run_statepipe("verify-state", path).returncode == 0
    assert run_statepipe("load", path, text=False).stdout == STREAM


def test_header_and_trailer_tell_the_facts(saved: Path) -> None:
    file = saved.read_bytes()
    header, trailer = meta(file, 0), meta(file, -2)
    assert (header["statepipe"], header["kind"]) == (1, "state")
    assert header["writer"].startswith("statepipe ") and header["stages"] == ["compress:zstd:1"]
    assert trailer["bytes"] == len(STREAM) and trailer["blake3"] == blake3(STREAM).hexdigest()
    assert trailer["file_blake3"] == blake3(file[: layout(file)[-2].start]).hexdigest()
    assert trailer["frames"] == len(layout(file)) - 3 - trailer["index"]["frames"]
    assert (trailer["index"]["stored"], trailer["index"]["zero"]) == (6, 0)
    assert (trailer["proof"], trailer["run_state"]) == ("vmdesc", "running")
    assert STREAM[trailer["end_mark"] :].startswith(b"\0\x06")


def test_the_seek_table_lists_metadata_as_size_and_nothing() -> None:
    entries = seek_entries(FILE)
    assert sum(content for _, content in entries) == len(STREAM)
    assert entries[0][1] == entries[-1][1] == 0
    assert all(content for _, content in entries[1:-1])


def test_each_data_frame_has_its_content_size_and_checksum() -> None:
    for piece in layout(FILE)[1:-2]:
        descriptor = FILE[piece.start + 4]
        assert descriptor & 0xC0 or descriptor & 0x20, "no content size"
        assert descriptor & 4, "no checksum"


def test_zstd_gives_the_exact_stream(saved: Path) -> None:
    assert subprocess.run(["zstd", "-dcq", saved], capture_output=True, check=True).stdout == STREAM


def test_each_frame_can_be_read_alone() -> None:
    plain = b""
    for piece in layout(FILE)[1:-2]:
        frame = FILE[piece.start : piece.end]
        part = subprocess.run(["zstd", "-dcq"], input=frame, capture_output=True, check=True).stdout
        assert len(part) == piece.content
        plain += part
    assert plain == STREAM


def test_a_whole_file_is_verified_inspected_and_loaded(saved: Path) -> None:
    facts = verify_state(str(saved), NO_KEYS)
    assert (facts["format"], facts["digest"], facts["proof"]) == ("statepipe state", True, "vmdesc")
    assert (facts["bytes"], facts["size"]) == (len(STREAM), saved.stat().st_size)
    assert inspect(str(saved), NO_KEYS)["trailer"]["pages"]["normal"] == 7
    loaded = load(saved)
    assert loaded.error is None and loaded.data == STREAM


def test_a_frame_of_a_kind_yet_unknown_is_skipped(tmp_path: Path) -> None:
    """So that the format can grow: here a page index, and another's frame, before the trailer."""
    path = tmp_path / "state"
    path.write_bytes(grown(encode_meta(b"I", {"pages": [1, 2]}), skippable(0x184D2A50, b"another's")))
    assert verify_state(str(path), NO_KEYS)["digest"]
    assert load(path).data == STREAM


def grown(*extra: bytes) -> bytes:
    """FILE with more frames before its trailer, and a trailer and a seek table that know of them."""
    frames = [(FILE[piece.start : piece.end], piece.content) for piece in layout(FILE)[:-2]]
    facts = {key: value for key, value in meta(FILE, -2).items() if key != "frame"}
    return seal([*frames, *((frame, 0) for frame in extra)], facts)


@pytest.mark.parametrize("kind", ["metadata", "data", "skippable"])
def test_frames_without_end_are_not_all_kept(kind: str) -> None:
    """Only as many as the largest seek table lists: each takes eight bytes of memory, and can be eight bytes long."""
    room = 3
    checker = Checker(8 + room * SEEK_ENTRY_SIZE + SEEK_FOOTER_SIZE)
    header, empty = encode_meta(HEADER, {"statepipe": 1}), skippable(META_MAGIC, b"")
    checker.meta(header[8:], header, 0)
    take = {
        "metadata": lambda: checker.meta(b"", empty, 9),
        "data": lambda: checker.frame(b"a frame", 0, 9),
        "skippable": lambda: checker.skipped(META_MAGIC - 1, 0, 0, b"", 9),
    }[kind]
    for _ in range(room - 1):
        take()
    with pytest.raises(IntegrityError, match="more frames than statepipe writes"):
        take()


def test_a_file_of_a_later_version_is_refused_by_that_name(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(state_file(cut(STREAM, 2), header={"statepipe": 2}))
    for verb in ("load", "verify-state", "inspect"):
        done = run_statepipe(verb, path)
        assert done.returncode == 1, done.stderr
        assert "format version 2" in done.stderr and "newer statepipe" in done.stderr


def test_a_later_version_is_named_whatever_its_end_looks_like(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = state_file(cut(STREAM, 2), header={"statepipe": 2})
    path.write_bytes(file[: layout(file)[-2].start] + b"an end that this version does not know")
    error = load(path).error
    assert type(error) is StatepipeError and "format version 2" in str(error)


def test_names_that_are_no_utf_8_survive() -> None:
    """A disk's path is bytes; Python carries those that are no UTF-8 as surrogates."""
    path = os.fsdecode(b"/images/caf\xe9.img")
    frame = encode_meta(b"H", {"statepipe": 1, "path": path, "name": "Grüße"})
    found = decode_meta(frame[8:], 0)
    assert found is not None and found.facts == {"statepipe": 1, "path": path, "name": "Grüße"}


@pytest.mark.parametrize("text", [b"[1]", b"{", b"\xff", b"", b"[" * 100_000])
def test_metadata_that_is_no_json_object_is_damage(text: bytes) -> None:
    payload = b"statepipeH" + blake3(b"H" + text).digest(16) + text
    with pytest.raises(IntegrityError) as caught:
        decode_meta(payload, 77)
    assert caught.value.offset == 77


def test_metadata_of_others_is_none_of_ours() -> None:
    assert decode_meta(b"pzstd's own", 0) is None


def test_an_empty_stream_makes_a_whole_file() -> None:
    writer = Writer()
    file = writer.header({"kind": "stream"}) + writer.trailer({})
    assert b"".join(decompress()(iter([file]))) == b""
    assert subprocess.run(["zstd", "-dcq"], input=file, capture_output=True, check=True).stdout == b""


def test_checker_tells_header_and_trailer() -> None:
    proof = Proof()
    assert b"".join(proof(iter([FLUSH, FILE]))) == FILE
    checker = proof.checker
    assert checker is not None and checker.header is not None and checker.header["writer"] == "a test"
    assert checker.trailer is not None and checker.trailer["bytes"] == len(STREAM)


def test_a_writer_stops_before_its_seek_table_is_larger_than_readers_take() -> None:
    writer = Writer(table_limit=17 + 8 * 4)
    written = writer.header({}) + b"".join(writer.frame(frame, 1) for frame in (b"1" * 20, b"2" * 20))
    with pytest.raises(StatepipeError, match="at most 2 frames"):
        writer.frame(b"3" * 20, 1)
    pieces = layout(written + writer.trailer({}))
    assert pieces[-1].end - pieces[-1].start == 17 + 8 * 4
