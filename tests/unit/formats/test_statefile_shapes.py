"""What a state file says of itself is input: whatever its JSON is, the verbs name the place.

Each file here is whole by its digests, so only the shape of what it says is wrong.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from statepipe.cli.report import inspected, verified
from statepipe.errors import IntegrityError, StatepipeError
from statepipe.state.inspect import inspect
from statepipe.state.verify import verify_state
from tests.statefiles import META, NO_KEYS, cut, layout, load, noisy_stream, seal, state_file
from tests.unit.cases import case

STREAM = noisy_stream()
FILE = state_file(cut(STREAM, 3))
PIECES = layout(FILE)

ODD = (None, True, -1, 1.5, 1 << 70, "", "x" * 200_000, "\ud800", [], [1], [[[]]], {}, {"a": {}}, [None], [{}])


def meta(kind: bytes, text: bytes) -> bytes:
    """A metadata frame around any text."""
    payload = b"statepipe" + kind + blake3(kind + text).digest(16) + text
    return struct.pack("<II", META, len(payload)) + payload


def facts_of(piece: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE[PIECES[piece].start + 8 + 26 : PIECES[piece].end])
    return found


HEADER, TRAILER = facts_of(0) | {"name": "guest", "ram": 1 << 20, "command": ["qemu"]}, facts_of(-2)
DISK = {"path": "/no/such", "format": "raw", "size": 1, "mtime_ns": None, "samples_blake3": "00"}
FRAMES = [(FILE[piece.start : piece.end], piece.content) for piece in PIECES[1:-2]]


def file_of(header: Any, trailer: dict[str, Any]) -> bytes:
    return seal([(meta(b"H", json.dumps(header).encode()), 0), *FRAMES], trailer)


def assert_only_told(path: Path, data: bytes) -> list[StatepipeError]:
    """No verb says anything but a StatepipeError; those that there were."""
    path.write_bytes(data)
    errors = []
    for verb in (
        lambda: inspected(inspect(str(path), NO_KEYS)),
        lambda: verified(verify_state(str(path), NO_KEYS)),
    ):
        try:
            assert verb()
        except StatepipeError as error:
            errors.append(error)
    if (error := load(path).error) is not None:
        errors.append(error)
    return errors


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_json_is_utf_8_without_a_mark(encoding: str, tmp_path: Path) -> None:
    header = json.dumps(HEADER).encode(encoding)
    errors = assert_only_told(tmp_path / "state", seal([(meta(b"H", header), 0), *FRAMES], TRAILER))
    assert len(errors) == 3 and all("header of the file is damaged: it is not JSON" in str(each) for each in errors)


@pytest.mark.parametrize("name", sorted(HEADER))
def test_an_odd_header_is_told_or_taken(tmp_path: Path, name: str) -> None:
    for value in ODD:
        with case(value):
            assert_only_told(tmp_path / "state", file_of(HEADER | {name: value}, TRAILER))


@pytest.mark.parametrize("name", sorted(TRAILER))
def test_an_odd_trailer_is_told_or_taken(tmp_path: Path, name: str) -> None:
    for value in ODD:
        with case(value):
            assert_only_told(tmp_path / "state", file_of(HEADER, TRAILER | {name: value}))


@pytest.mark.parametrize("name", sorted(DISK))
def test_an_odd_disk_is_damage(tmp_path: Path, name: str) -> None:
    for value in ODD:
        with case(value):
            errors = assert_only_told(tmp_path / "state", file_of(HEADER, TRAILER | {"disks": [DISK | {name: value}]}))
            assert errors or name in ("format", "samples_blake3", "mtime_ns")


@pytest.mark.parametrize("value", ([], 1, "x", None, True))
def test_a_header_that_is_no_object_is_damage(tmp_path: Path, value: Any) -> None:
    errors = assert_only_told(tmp_path / "state", file_of(value, TRAILER))
    assert len(errors) == 3 and all(isinstance(error, IntegrityError) for error in errors)
    assert all(error.offset == 0 for error in errors)


@pytest.mark.parametrize("name", ["end_mark", "blake3"])
def test_a_trailer_without_what_loading_needs_is_damage(tmp_path: Path, name: str) -> None:
    trailer = {key: value for key, value in TRAILER.items() if key != name}
    errors = assert_only_told(tmp_path / "state", file_of(HEADER, trailer))
    assert len(errors) == 3 and all(name in str(error) for error in errors)


def test_the_place_is_named(tmp_path: Path) -> None:
    disks = [DISK, {"path": 7}]
    error = assert_only_told(tmp_path / "state", file_of(HEADER, TRAILER | {"disks": disks}))[0]
    assert isinstance(error, IntegrityError) and "disks[1].path is 7" in str(error)


def test_what_a_later_version_adds_passes(tmp_path: Path) -> None:
    header, trailer = HEADER | {"colour": {"deep": [1]}}, TRAILER | {"more": [1]}
    path = tmp_path / "state"
    path.write_bytes(file_of(header, trailer))
    assert load(path).error is None
    frames = [(meta(b"H", json.dumps(HEADER).encode()), 0), (meta(b"Q", b"[]"), 0), *FRAMES]
    path.write_bytes(seal(frames, TRAILER))
    assert load(path).error is None


def test_a_writer_makes_no_file_that_no_reader_takes() -> None:
    with pytest.raises(StatepipeError, match="command"):
        state_file(cut(STREAM, 2), header={"command": ["x" * 1000] * 2000})
    with pytest.raises(StatepipeError, match="name"):
        state_file(cut(STREAM, 2), header={"name": ["x"]})


def test_a_thousand_disks_fit(tmp_path: Path) -> None:
    disks = [DISK | {"path": f"/var/lib/images/{'a-long-name' * 8}/{number:04}.qcow2"} for number in range(1000)]
    words = [word for disk in disks for word in ("-drive", f"file={disk['path']},format=qcow2,if=virtio,cache=none")]
    data = state_file(cut(STREAM, 2), header={"command": words}, disks=[disk | {"unknown": "x"} for disk in disks])
    path = tmp_path / "state"
    path.write_bytes(data)
    assert len(inspect(str(path), NO_KEYS)["trailer"]["disks"]) == 1000
