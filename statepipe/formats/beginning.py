"""Recognize a file that is not ours by its first bytes, so that an error can say what the user gave instead."""

from __future__ import annotations

_KNOWN = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "a zip archive",
    b"age-encryption.org/": "an age file",
    b"QFI\xfb": "a disk image in qcow2",
    b"KDMV": "a disk image in VMDK",
    b"vhdxfile": "a disk image in VHDX",
    b"LUKS\xba\xbe": "a LUKS volume",
    b"\x7fELF": "a program (ELF)",
    b"#!": "a script (#!)",
    b"LibvirtQemud": "a file of virsh save",
    b"QEVM": "a migration stream of QEMU",
}

HEAD = 1024
"""Bytes needed to recognize a file: armor has headers before its first packet."""

SHOWN = 16
"""Bytes that an error shows at most."""


def beginning(head: bytes) -> str:
    """Return what `head` looks like, as the end of a sentence that starts "it begins"."""
    for magic, what in _KNOWN.items():
        if head.startswith(magic):
            return f"like {what}"
    shown = head[:SHOWN]
    line = shown.partition(b"\n")[0]
    if line.isascii() and line.decode().isprintable() and len(line) >= min(len(shown), 4):
        return f"with the text '{line.decode()}'"
    return f"with the bytes {shown.hex(' ')}"
