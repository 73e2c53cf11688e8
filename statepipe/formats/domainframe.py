"""What libvirt knows of a saved domain, as the contents of a metadata frame of a state file.

The contents are one zstd frame, and it holds the beginning of a save image of libvirt's (libvirtimage.py): its header,
with the numbers in little-endian order and format 0, and the texts without zeros to spare. So these bytes and the
stream behind them are an image that `virsh restore` reads, without any code of ours.
"""

from __future__ import annotations

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.formats.libvirtimage import (
    HEADER_SIZE,
    RAW,
    TEXT_LIMIT,
    Domain,
    beginning,
    parse_header,
    split_data,
)
from statepipe.formats.metadata import META_LIMIT, META_OVERHEAD
from statepipe.libzstd import zstandard

CONTENT_LIMIT = HEADER_SIZE + 2 * TEXT_LIMIT
"""Bytes of what the frame decodes to at most. A usual domain has 10 KiB, and its frame 3 KiB."""

_LEVEL = 9


def encode_domain(domain: Domain) -> bytes:
    """Return the contents of the frame. Raises StatepipeError for a domain that does not fit into it."""
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(_plain(domain))
    if len(packed) + META_OVERHEAD > META_LIMIT:
        raise StatepipeError(
            f"this domain does not fit into a state file: its XML and cookie have {len(packed)} bytes, compressed",
            hint=f"the metadata of a state file is limited to {META_LIMIT} bytes",
        )
    return packed


def _plain(domain: Domain) -> bytes:
    return beginning(domain, RAW, spare=0, is_big_endian=False)


def decode_domain(contents: bytes, offset: int) -> Domain:
    """Return the domain in a frame that begins at `offset` of the file. Raises IntegrityError."""
    try:
        size = zstandard.frame_content_size(contents)
        if not HEADER_SIZE < size <= CONTENT_LIMIT:
            raise IntegrityError(f"it has {size} bytes")
        unpacker = zstandard.ZstdDecompressor(max_window_size=CONTENT_LIMIT)
        plain = unpacker.decompress(contents, read_across_frames=False, allow_extra_data=False)
        header = parse_header(plain)
        domain = split_data(header, plain[HEADER_SIZE:])
        if plain != _plain(domain):
            raise IntegrityError("it is not as statepipe writes it")
        return domain
    except (StatepipeError, zstandard.ZstdError) as error:
        raise IntegrityError(f"the description of the domain is damaged: {error}", offset=offset) from error
