"""What is said of bytes that are none of ours: what they begin like, never as a program writes them."""

from __future__ import annotations

import pytest

from statepipe.ends.address import parse_address
from statepipe.errors import UsageError
from statepipe.formats.beginning import beginning

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


@pytest.mark.parametrize(
    ("written", "meant"),
    [("unix:/run/s", "unix:///run/s"), ("tcp:host:4444", "tcp://host:4444"), ("tcp:4444", "tls://tcp:4444")],
)
def test_an_address_may_be_written_as_qemu_writes_it(written: str, meant: str) -> None:
    assert str(parse_address(written)) == meant


def test_a_unix_socket_by_a_relative_path_is_told_so() -> None:
    with pytest.raises(UsageError, match=r"'unix:vm1\.sock' is not an absolute path"):
        parse_address("unix:vm1.sock")
