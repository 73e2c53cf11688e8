"""A save over the state of another guest: refused where both guests are known and differ, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from statepipe.ends.file import FileSink
from statepipe.ends.output import new_output
from statepipe.ends.source import FileSource
from statepipe.errors import UsageError
from statepipe.formats.domainxml import Identity
from statepipe.formats.libvirtimage import beginning
from statepipe.state.file import looks_saved
from statepipe.state.older import differ, guest_in, refuse_other_guest
from tests.agefiles import sealed
from tests.statefiles import DOMAIN, cut, noisy_stream, state_file

UUID, OTHER = "9f0b0c5e-6b1c-4d8e-8f6e-0d7d1a2b3c4d", "00000000-0000-0000-0000-000000000007"
ZEROS = "00000000-0000-0000-0000-000000000000"


def state(**header: object) -> bytes:
    return state_file(cut(noisy_stream(), 2), header=header)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vm1.state"


def replace(path: Path, name: str | None, uuid: str | None, *, overwrite: bool = False) -> None:
    """Replace what is at the path by the state of this guest."""
    with new_output(str(path), replaceable=None if overwrite else looks_saved) as sink:
        refuse_other_guest(sink, name, uuid)
        sink.write(b"new")
        sink.commit()


def test_the_state_of_another_guest_stays_unless_told(path: Path) -> None:
    path.write_bytes(before := state(name="web", uuid=OTHER))
    with pytest.raises(UsageError, match="exists already, and it is the state of another guest") as caught:
        replace(path, "vm1", UUID)
    assert f"another guest, web ({OTHER}), and this one is vm1 ({UUID})" in str(caught.value)
    assert "--overwrite" in str(caught.value.hint)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    replace(path, "vm1", UUID, overwrite=True)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("older", "name", "uuid"),
    [
        ({"name": "vm1", "uuid": UUID.upper()}, "vm1", UUID),
        ({"name": "before", "uuid": UUID}, "renamed", UUID),
        ({"name": "vm1", "uuid": OTHER}, "vm1", None),
        ({"name": "vm1", "uuid": None}, "vm1", UUID),
        ({"name": "vm1", "uuid": ZEROS}, "vm1", UUID),
        ({"name": None, "uuid": OTHER}, "vm1", None),
        ({}, "vm1", UUID),
        ({"name": "web", "uuid": OTHER}, None, None),
    ],
)
def test_the_same_guest_or_one_that_is_not_known_is_replaced(
    path: Path, older: dict[str, object], name: str | None, uuid: str | None
) -> None:
    path.write_bytes(state(**older))
    replace(path, name, uuid)
    assert path.read_bytes() == b"new"


def test_names_tell_guests_apart_that_have_no_uuid(path: Path) -> None:
    path.write_bytes(state(name="web"))
    with pytest.raises(UsageError, match="another guest, web, and this one is vm1"):
        replace(path, "vm1", None)


@pytest.mark.parametrize("data", [b"", b"QEVM a stream", sealed(state(name="web", uuid=OTHER))])
def test_what_does_not_tell_its_guest_is_replaced(path: Path, data: bytes) -> None:
    """An encrypted file, above all: no key is asked for."""
    path.write_bytes(data)
    replace(path, "vm1", UUID)
    assert path.read_bytes() == b"new"


def test_a_damaged_header_tells_nothing(path: Path) -> None:
    data = bytearray(state(name="web", uuid=OTHER))
    data[60] ^= 1
    path.write_bytes(data)
    replace(path, "vm1", UUID)
    assert path.read_bytes() == b"new"


def test_a_file_that_appears_later_is_not_looked_at(path: Path) -> None:
    """It is never replaced, whatever it is."""
    with FileSink(str(path), replaceable=looks_saved) as sink:
        path.write_bytes(state(name="web", uuid=OTHER))
        refuse_other_guest(sink, "vm1", UUID)
        with pytest.raises(UsageError, match="was not there at the beginning"):
            sink.commit()


def test_a_file_that_goes_meanwhile_is_no_matter(path: Path) -> None:
    path.write_bytes(state(name="web", uuid=OTHER))
    with FileSink(str(path), replaceable=looks_saved) as sink:
        path.unlink()
        refuse_other_guest(sink, "vm1", UUID)
        sink.commit()


def test_a_save_image_tells_its_guest_by_its_xml(path: Path) -> None:
    path.write_bytes(beginning(DOMAIN) + noisy_stream())
    with FileSource(str(path)) as file:
        assert guest_in(file) == Identity("web\xe41", UUID)
    path.write_bytes(beginning(DOMAIN)[:200])
    with FileSource(str(path)) as file:
        assert guest_in(file) == Identity()


def test_a_save_image_of_a_later_version_stays(path: Path) -> None:
    path.write_bytes(before := beginning(DOMAIN).replace(b"Save\2", b"Save\3"))
    with FileSink(str(path), replaceable=lambda head: True) as sink:
        with pytest.raises(UsageError, match=r"whose state it is cannot be read: .* has version 3") as caught:
            refuse_other_guest(sink, "vm1", UUID)
        assert "--overwrite" in str(caught.value.hint)
    assert path.read_bytes() == before


def test_a_guest_is_another_only_for_certain() -> None:
    assert differ(Identity("a", UUID), Identity("a", OTHER))
    assert not differ(Identity("a", UUID), Identity("b", UUID))
    assert differ(Identity("a", UUID), Identity("b"))
    assert not differ(Identity("a"), Identity(None, UUID))
