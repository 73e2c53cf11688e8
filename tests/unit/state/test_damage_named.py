"""Damage in a state: the error names the file, the byte, and what to do, whoever reads it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from statepipe.cli.onfiles import for_each_file
from statepipe.errors import ANOTHER_COPY, IntegrityError, StatepipeError
from statepipe.formats.libvirtimage import RAW, beginning
from statepipe.libvirt.convert import Conversion, convert
from statepipe.stages.packing import choose
from statepipe.state.inspect import inspect
from statepipe.state.pagestore import open_pages
from statepipe.state.source import damage_named
from statepipe.state.verify import verify_state
from tests.qemu.harness import statepipe_command
from tests.statefiles import DOMAIN, NO_KEYS, cut, layout, noisy_stream, state_file

STATE = state_file(cut(noisy_stream(), 3), domain=DOMAIN)
FRAME = next(piece for piece in layout(STATE) if piece.content)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def converted(path: str) -> None:
    how = Conversion(choose("zstd:3").packing(lambda: 0.0), [], [], RAW, None, overwrite=False)
    convert(path, f"{path}.new", NO_KEYS, how)


READERS: dict[str, Callable[[str], object]] = {
    "verify-state": lambda path: verify_state(path, NO_KEYS),
    "convert": converted,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.state"


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("at", [60, FRAME.start + 30, len(STATE) - 40])
def test_each_reader_names_file_and_byte(path: Path, reader: Callable[[str], object], at: int) -> None:
    path.write_bytes(flipped(STATE, at))
    with pytest.raises(IntegrityError) as caught:
        reader(str(path))
    assert str(caught.value).startswith((f"{path}: ", f"{path} "))
    assert caught.value.offset is not None or re.search(r"byte \d+", str(caught.value))
    assert caught.value.hint


def test_a_foreign_stream_and_an_encrypted_file_are_named_too(path: Path) -> None:
    path.write_bytes((beginning(DOMAIN) + noisy_stream())[:-2000])
    for reader in (lambda: inspect(str(path), NO_KEYS), lambda: open_pages(str(path), NO_KEYS)):
        with pytest.raises(IntegrityError, match=re.escape(f"{path}: the migration stream stops before its end")):
            reader()
    path.write_bytes(b"age-encryption.org/v1\n-> X25519 ???")
    with pytest.raises(IntegrityError, match=re.escape(f"{path}: ")):
        verify_state(str(path), NO_KEYS._replace(identities=list))


def test_load_as_a_filter_names_them(path: Path) -> None:
    path.write_bytes(flipped(STATE, FRAME.start + 30))
    done = subprocess.run([*statepipe_command(), "load", path], capture_output=True, stdin=subprocess.DEVNULL)
    first, second = done.stderr.decode().splitlines()[-2:]
    assert done.returncode == 3 and re.search(rf"error: {path}: the zstd frame at byte \d+ is corrupt", first)
    assert second == f"statepipe: hint: {ANOTHER_COPY}"


def test_what_names_the_file_or_has_a_hint_keeps_it() -> None:
    for said, hint in (("a is cut", "x"), ("a: cut", None), ("a cut", "y")):
        with pytest.raises(IntegrityError) as caught, damage_named("a"):
            raise IntegrityError(said, hint=hint)
        assert (str(caught.value), caught.value.hint) == (said, hint or ANOTHER_COPY)
    with pytest.raises(StatepipeError) as other, damage_named("a"):
        raise StatepipeError("the disk is full")
    assert (str(other.value), other.value.hint) == ("the disk is full", None)


def test_of_several_files_each_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    def work(path: str) -> None:
        with damage_named(path):
            raise IntegrityError("cut", offset=7)

    assert for_each_file("verify-state", ["a", "b"], work) == 3
    said = capsys.readouterr().err
    assert "statepipe: verify-state: error: a: cut (at byte 7)\n" in said
    assert "statepipe: verify-state: error: b: cut (at byte 7)\n" in said
