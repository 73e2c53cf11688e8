"""What is said of bytes that are none of ours: what they begin like, never as a program writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from statepipe.ends.address import parse_address
from statepipe.errors import UsageError
from statepipe.formats.beginning import beginning
from tests.conformance.running import run

BEGINNINGS = [
    (b"\x1f\x8b\x08\0", "like gzip"),
    (b"QFI\xfb\0\0\0\3", "like a disk image in qcow2"),
    (b"\x7fELF\2\1\1", "like a program (ELF)"),
    (b"LibvirtQemudSave\2", "like a file of virsh save"),
    (b"root:x:0:0:root:/root:/bin/sh\n", "with the text 'root:x:0:0:root:'"),
    (b"hello\nyou", "with the text 'hello'"),
    (b"\n\n\n\n\n", "with the bytes 0a 0a 0a 0a 0a"),
    (b"\xb2\x25\x00", "with the bytes b2 25 00"),
    (b"\x1b[2Jabc", "with the bytes 1b 5b 32 4a 61 62 63"),
]


@pytest.mark.parametrize(("head", "words"), BEGINNINGS)
def test_bytes_are_told_by_what_they_begin_like(head: bytes, words: str) -> None:
    assert beginning(head) == words


@pytest.mark.parametrize("verb", ["inspect", "verify-state", "load"])
def test_a_file_that_is_no_state_is_told_so(tmp_path: Path, verb: str) -> None:
    (tmp_path / "f").write_bytes(b"QFI\xfb\0\0\0\3")
    done = run(verb, str(tmp_path / "f"))
    assert done.returncode == 3
    assert f"{tmp_path}/f is not a saved state: it begins like a disk image in qcow2 (".encode() in done.stderr


def test_what_is_in_a_compressed_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(run("compress", "gzip", data=b"root:x:0:0:root").stdout)
    done = run("inspect", str(tmp_path / "f"))
    assert done.returncode == 3
    assert b"not a QEMU migration stream: it begins with the text 'root:x:0:0:root' (" in done.stderr


def test_a_save_that_has_no_guest_is_told_what_it_needs(tmp_path: Path) -> None:
    """A script's standard input is /dev/null, or a pipe that ends at once."""
    with open("/dev/null", "rb") as nothing:
        done = run("save", str(tmp_path / "f"), stdin=nothing)
    assert done.returncode == 2 and b"from a script or a shell, add --qmp SOCKET" in done.stderr
    done = run("save", str(tmp_path / "f"))
    assert (
        done.returncode == 3 and b"hint: no bytes arrived: QEMU has not begun; to save a running guest" in done.stderr
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("written", "meant"),
    [("unix:/run/s", "unix:///run/s"), ("tcp:host:4444", "tcp://host:4444"), ("tcp:4444", "tls://tcp:4444")],
)
def test_an_address_may_be_written_as_qemu_writes_it(written: str, meant: str) -> None:
    assert str(parse_address(written)) == meant


def test_a_unix_socket_by_a_relative_path_is_told_so() -> None:
    with pytest.raises(UsageError, match=r"'unix:vm1\.sock' is not an absolute path"):
        parse_address("unix:vm1.sock")
