"""The beginning of libvirt's save images: what is written is read again; what libvirt does not write is refused."""

from __future__ import annotations

import struct

import pytest

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.domainxml import Identity, identity
from statepipe.formats.libvirtimage import (
    DATA_LIMIT,
    FORMATS,
    HEADER_SIZE,
    SPARE,
    TEXT_LIMIT,
    XZ,
    Domain,
    ImageHeader,
    beginning,
    encode_header,
    looks_like_image,
    parse_header,
    split_data,
)
from tests.statefiles import DOMAIN


def by_hand(
    order: str = "<",
    magic: bytes = b"LibvirtQemudSave",
    version: int = 2,
    length: int = 9,
    running: int = 1,
    number: int = 0,
    cookie: int = 0,
) -> bytes:
    return struct.pack(f"{order}16s5I14I", magic, version, length, running, number, cookie, *range(14))


@pytest.mark.parametrize("is_big", [False, True])
def test_what_is_written_is_read_again(is_big: bool) -> None:
    image = beginning(DOMAIN, XZ, is_big_endian=is_big)
    header = parse_header(image + b"the stream")
    texts = len(DOMAIN.xml) + len(DOMAIN.cookie) + 2
    expected = ImageHeader(texts + SPARE, 1, 3, len(DOMAIN.xml) + 1, 2, b"LibvirtQemudSave", is_big)
    assert header == expected and header.payload_at == len(image) and FORMATS[header.format] == "xz"
    assert encode_header(header) == image[:HEADER_SIZE]
    assert split_data(header, image[HEADER_SIZE:]) == DOMAIN


def test_the_bytes_are_those_of_libvirt() -> None:
    image = beginning(Domain(b"<domain/>", b"", was_running=False), spare=2, is_big_endian=False)
    assert image == b"LibvirtQemudSave" + struct.pack("<5I56x", 2, 12, 0, 0, 0) + b"<domain/>\0\0\0"
    with_cookie = beginning(Domain(b"<a/>", b"<c/>", was_running=True), 5, spare=0, is_big_endian=True)
    assert with_cookie == b"LibvirtQemudSave" + struct.pack(">5I56x", 2, 10, 1, 5, 5) + b"<a/>\0<c/>\0"


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_header_of_either_byte_order_is_read(order: str) -> None:
    header = parse_header(by_hand(order, cookie=5, number=6, running=7))
    assert header[:5] == (9, 7, 6, 5, 2) and header.is_big_endian == (order == ">")
    assert parse_header(by_hand(order, version=1, number=1 << 31)).format == 0
    partial = parse_header(by_hand(order, b"LibvirtQemudPart"))
    assert partial.is_partial and not header.is_partial and looks_like_image(encode_header(partial))


WRONG_HEADERS = {
    "empty": (b"", IntegrityError, "it is empty", 0),
    "text": (b"#!/bin/sh\n", IntegrityError, "it begins ", 0),
    "a capital": (by_hand(magic=b"LibvirtQemudSAVE"), IntegrityError, "not libvirt's save image", 0),
    "cut in the magic": (by_hand()[:15], IntegrityError, "not libvirt's", 0),
    "cut behind the magic": (by_hand()[:16], TruncatedError, "within its header", 16),
    "cut at the end": (by_hand()[:91], TruncatedError, "within its header", 91),
    "version 0": (by_hand(version=0), IntegrityError, "version 0", 16),
    "version 3": (by_hand(version=3), StatepipeError, "version 3", 16),
    "version 3, big": (by_hand(">", version=3), StatepipeError, "version 50331648", 16),
    "another format": (by_hand(number=7), StatepipeError, "format number 7", 28),
    "no data": (by_hand(length=0), IntegrityError, "announces 0 bytes", 20),
    "too much data": (by_hand(length=DATA_LIMIT + 1), IntegrityError, "announces 8454145 bytes", 20),
    "too much data, big": (by_hand(">", length=1 << 31), IntegrityError, "announces 2147483648 bytes", 20),
    "cookie at the end": (by_hand(cookie=9), IntegrityError, "at byte 9 of 9", 32),
    "cookie outside": (by_hand(cookie=1 << 31), IntegrityError, "of 9", 32),
}


@pytest.mark.parametrize(("data", "kind", "words", "offset"), WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_a_header_that_libvirt_does_not_write_is_refused(
    data: bytes, kind: type[StatepipeError], words: str, offset: int
) -> None:
    with pytest.raises(StatepipeError, match=words) as caught:
        parse_header(data)
    assert type(caught.value) is kind and caught.value.offset == offset


WRONG_DATA = {
    "cut": (0, b"<a/>", TruncatedError, "within its XML", 4),
    "no zero": (0, b"<domain/>", IntegrityError, "the XML .* has no end", 0),
    "an empty text": (0, b"\0" * 9, IntegrityError, "the XML .* is empty", 0),
    "bytes behind it": (0, b"<a/>\0\0\0x\0", IntegrityError, "not zero follow the XML", 7),
    "no zero before the cookie": (4, b"<a/><c/>\0", IntegrityError, "the XML .* has no end", 0),
    "an XML of nothing": (1, b"\0<c/>\0\0\0\0", IntegrityError, "the XML .* is empty", 0),
    "bytes between them": (6, b"<\0\0\0x\0c\0\0", IntegrityError, "not zero follow the XML", 4),
    "a cookie of nothing": (5, b"<a/>\0\0\0\0\0", IntegrityError, "the cookie .* is empty", 5),
    "a cookie without end": (5, b"<a/>\0<c/>", IntegrityError, "the cookie .* has no end", 5),
    "bytes behind the cookie": (5, b"<a/>\0c\0\0x", IntegrityError, "not zero follow the cookie", 8),
}


@pytest.mark.parametrize(("cookie", "data", "kind", "words", "at"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_texts_that_libvirt_does_not_write_are_refused(
    cookie: int, data: bytes, kind: type[StatepipeError], words: str, at: int
) -> None:
    with pytest.raises(IntegrityError, match=words) as caught:
        split_data(ImageHeader(9, 1, 0, cookie), data)
    assert type(caught.value) is kind and caught.value.offset == HEADER_SIZE + at


def test_the_longest_texts_fit_and_no_longer_ones() -> None:
    text = b"x" * (TEXT_LIMIT - 1)
    longest = Domain(text, text, was_running=True)
    image = beginning(longest)
    assert split_data(parse_header(image), image[HEADER_SIZE:]) == longest
    for domain in (Domain(text + b"x", b"", was_running=True), Domain(text, text + b"x", was_running=True)):
        with pytest.raises(StatepipeError, match=r"has 4194304 bytes") as caught:
            beginning(domain)
        assert caught.value.hint is not None
    data = text + b"x\0"
    with pytest.raises(IntegrityError, match=r"the XML .* has 4194304 bytes"):
        split_data(ImageHeader(len(data), 1, 0, 0), data)


@pytest.mark.parametrize("domain", [Domain(b"", b"", True), Domain(b"a\0b", b"", True), Domain(b"a", b"c\0", True)])
def test_texts_that_an_image_cannot_hold_are_not_written(domain: Domain) -> None:
    with pytest.raises(StatepipeError, match="does not fit into a save image"):
        beginning(domain)


# --- who a domain is


ENTITIES = b'<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><domain><name>&b;</name></domain>'


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        (DOMAIN.xml, Identity("web\xe41", "9f0b0c5e-6b1c-4d8e-8f6e-0d7d1a2b3c4d")),
        (b"<domain><name>a&lt;b&#x1b;</name><cpu><name>no</name></cpu></domain>", Identity()),
        (b"<domain><name>a&lt;b</name><cpu><name>no</name></cpu></domain>", Identity("a<b")),
        (b"<domain><name>" + b"x" * 5000 + b"</name></domain>", Identity("x" * 1024)),
        (b"<domain/>", Identity()),
        (b"<domain><name>a</name>", Identity()),
        (b"\xff\xfe\0", Identity()),
        (ENTITIES, Identity()),
    ],
)
def test_the_xml_says_who_it_is_or_nothing(xml: bytes, expected: Identity) -> None:
    assert identity(xml) == expected
