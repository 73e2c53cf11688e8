"""libvirt's save image, as `virsh save` writes it and `virsh restore` reads it: what stands before the guest's state.

    92 bytes               the header: magic, version, data_len, was_running, format, cookie_offset, 56 unused bytes
    data_len bytes         the domain's XML and a zero; libvirt's cookie, also XML, and a zero, if there is one; zeros
    the rest               QEMU's stream, compressed with the program that `format` names

The numbers are 32 bits wide, in the byte order of the host that wrote them. While libvirt writes an image, its magic is
that of an unfinished one. libvirt leaves 64 KiB of zeros behind the texts, so that `virsh save-image-edit` can write a
longer XML. Nothing in an image is a checksum. (libvirt's src/qemu/qemu_saveimage.c.)
"""

from __future__ import annotations

import struct
import sys

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.beginning import beginning as words_of
from statepipe.typed import NamedTuple

SAVED, PARTIAL = b"LibvirtQemudSave", b"LibvirtQemudPart"
"""The magic of a whole image, and of one that libvirt has not finished."""

HEADER_SIZE = 92
VERSION = 2

RAW, GZIP, BZIP2, XZ, LZOP, ZSTD, SPARSE = range(7)
FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
"""libvirt's names of the formats, by number. libvirt 9.0 knows the first five."""

TEXT_LIMIT = 4 << 20
"""Bytes of the XML and of the cookie at most, each with its zero: libvirt's protocol carries no longer text
(VIR_NET_MESSAGE_STRING_MAX)."""

SPARE = 64 << 10
"""Zeros that libvirt leaves behind the texts."""

DATA_LIMIT = 2 * TEXT_LIMIT + SPARE
"""The largest data_len that is read."""

_FIELDS = 5
_LITTLE, _BIG = (struct.Struct(f"{order}16s{_FIELDS}I56x") for order in "<>")


class Domain(NamedTuple):
    """What libvirt keeps beside a guest's state: its definition, a cookie of libvirt's own (b"" if there is none), and
    whether the guest ran before the save."""

    xml: bytes
    cookie: bytes
    was_running: bool


class ImageHeader(NamedTuple):
    """The first 92 bytes of an image. `format` is an index of FORMATS; `cookie_offset` is in the data, 0 for none."""

    data_len: int
    was_running: int
    format: int
    cookie_offset: int
    version: int = VERSION
    magic: bytes = SAVED
    is_big_endian: bool = sys.byteorder == "big"

    @property
    def is_partial(self) -> bool:
        """Whether libvirt has not finished the image: it was interrupted, or is still at work."""
        return self.magic == PARTIAL

    @property
    def payload_at(self) -> int:
        """The offset in the image at which the guest's state begins."""
        return HEADER_SIZE + self.data_len


def looks_like_image(head: bytes) -> bool:
    """Return whether a file that begins with `head` is an image of libvirt's, finished or not."""
    return head.startswith((SAVED, PARTIAL))


def parse_header(data: bytes) -> ImageHeader:
    """Return the header in the first 92 bytes of an image, in either byte order.

    Raises TruncatedError, IntegrityError, and StatepipeError for a version or a format that is not known.
    """
    if not looks_like_image(data):
        what = f"it begins {words_of(data)}" if data else "it is empty"
        raise IntegrityError(f"this is not libvirt's save image: {what}", offset=0)
    if len(data) < HEADER_SIZE:
        what = f"libvirt's save image ends within its header of {HEADER_SIZE} bytes"
        raise TruncatedError(what, offset=len(data))
    is_big = _LITTLE.unpack_from(data)[1] > VERSION
    magic, version, data_len, was_running, number, cookie_offset = (_BIG if is_big else _LITTLE).unpack_from(data)
    if not version:
        raise IntegrityError("libvirt's save image has version 0, which libvirt never wrote", offset=len(SAVED))
    if version > VERSION:
        told = _LITTLE.unpack_from(data)[1]
        raise StatepipeError(
            f"libvirt's save image has version {told}; versions 1 and {VERSION} are known",
            hint="restore it with virsh restore, and save the domain with this statepipe",
            offset=len(SAVED),
        )
    if version == 1:
        number = RAW  # the field had no meaning yet
    if number >= len(FORMATS):
        raise StatepipeError(
            f"libvirt's save image has the format number {number}, which this statepipe does not know",
            hint="restore it with virsh restore, and save the domain with this statepipe",
            offset=len(SAVED) + 12,
        )
    if not 0 < data_len <= DATA_LIMIT:
        what = f"libvirt's save image announces {data_len} bytes of XML; there are 1 to {DATA_LIMIT}"
        raise IntegrityError(what, offset=len(SAVED) + 4)
    if cookie_offset >= data_len:
        what = f"libvirt's save image has its cookie at byte {cookie_offset} of {data_len}"
        raise IntegrityError(what, offset=len(SAVED) + 16)
    return ImageHeader(data_len, was_running, number, cookie_offset, version, magic, is_big)


def encode_header(header: ImageHeader) -> bytes:
    """Return the 92 bytes of a header."""
    packer = _BIG if header.is_big_endian else _LITTLE
    fields = (header.version, header.data_len, header.was_running, header.format, header.cookie_offset)
    return packer.pack(header.magic, *fields)


def split_data(header: ImageHeader, data: bytes) -> Domain:
    """Return the domain that the data_len bytes behind the header describe. Raises IntegrityError, TruncatedError."""
    if len(data) < header.data_len:
        raise TruncatedError("libvirt's save image ends within its XML", offset=HEADER_SIZE + len(data))
    end = header.cookie_offset or header.data_len
    xml = _text("XML", data, 0, end)
    cookie = _text("cookie", data, end, header.data_len) if header.cookie_offset else b""
    return Domain(xml, cookie, bool(header.was_running))


def _text(what: str, data: bytes, start: int, end: int) -> bytes:
    """Return the text in data[start:end] without its zero and the zeros behind it. Raises IntegrityError."""
    stop = data.find(b"\0", start, end)
    if not start < stop <= start + TEXT_LIMIT - 1:
        problem = "is empty" if stop == start else "has no end" if stop < 0 else f"has {stop - start} bytes"
        raise IntegrityError(f"the {what} in libvirt's save image {problem}", offset=HEADER_SIZE + start)
    if rest := data[stop:end].lstrip(b"\0"):
        message = f"bytes that are not zero follow the {what} in libvirt's save image"
        raise IntegrityError(message, offset=HEADER_SIZE + end - len(rest))
    return data[start:stop]


def beginning(domain: Domain, number: int = RAW, *, spare: int = SPARE, is_big_endian: bool | None = None) -> bytes:
    """Return what stands before the stream in a finished image: the header, the texts and `spare` zeros.

    `number` is the format of the stream behind it. The byte order is this host's if it is not given. Raises
    StatepipeError for texts that an image cannot hold.
    """
    for what, text in (("XML", domain.xml), ("cookie", domain.cookie)):
        if b"\0" in text or len(text) >= TEXT_LIMIT or (what == "XML" and not text):
            problem = "contains a zero byte" if b"\0" in text else f"has {len(text)} bytes"
            hint = f"libvirt keeps texts of 1 to {TEXT_LIMIT - 1} bytes"
            raise StatepipeError(f"this domain does not fit into a save image: its {what} {problem}", hint=hint)
    data = domain.xml + b"\0"
    cookie_offset = len(data) if domain.cookie else 0
    if domain.cookie:
        data += domain.cookie + b"\0"
    data += bytes(spare)
    is_big = sys.byteorder == "big" if is_big_endian is None else is_big_endian
    running = int(domain.was_running)
    header = ImageHeader(len(data), running, number, cookie_offset, VERSION, SAVED, is_big)
    return encode_header(header) + data
