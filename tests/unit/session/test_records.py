"""Large records, without a socket: they open as they were sealed, in their order, or not at all."""

from __future__ import annotations

import hashlib
import hmac
import random
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import PeerError
from statepipe.session.protocol import records
from statepipe.session.protocol.frames import MAX_DATA, Frame, FrameReader, Greeting, Greets, Kind, Role
from statepipe.session.protocol.records import (
    AES,
    CHACHA,
    LENGTH_SIZE,
    MAX_CONTENT,
    MAX_SEALED,
    OVERHEAD,
    Aead,
    Agreement,
    Opener,
    Sealer,
    sealed_size,
)

AGREED = Agreement(AES, b"f" * 48, b"a" * 196, b"d" * 32, b"w" * 196, b"e" * 32)

VECTORS = {
    AES: (
        "000000169943e6d16604223215e4aa77b6a901dd6a551d3ded12"
        "00000012aab8562e0626be453a810d853c4bfeb7780a"
        "00000016ad6a1b2ee55c70705fcabde0e0db353a770d7ce21c20"
    ),
    CHACHA: (
        "00000016c174fce301ff5ea6d83c64f606ad11ea853316ae6af8"
        "000000125f3712087a40b634ce96fbb39ea0cc959c1a"
        "0000001660fbb4c314d7d8519c69d9ebe80e0ef83a0dffa44ce8"
    ),
}
"""The first two records of the dialler, `hello` and nothing but a zero byte, and the acceptor's first, `hello`."""


def sealed(content: bytes, agreed: Agreement = AGREED, before: int = 0, *, of_dialler: bool = True) -> bytes:
    """A record, after so many others."""
    sealer = Sealer(*agreed.key(of_dialler=of_dialler))
    for _ in range(before):
        sealer.seal([b"x"])
    return b"".join(sealer.seal([content]))


def opened(wire: bytes, agreed: Agreement = AGREED, *, of_dialler: bool = True) -> tuple[list[bytes], PeerError | None]:
    """What a reader takes from these bytes, and why it stopped before their end; what is not a whole record is left."""
    opener, contents = Opener(*agreed.key(of_dialler=of_dialler)), list[bytes]()
    try:
        while len(wire) >= LENGTH_SIZE and len(wire) >= (end := LENGTH_SIZE + sealed_size(wire[:LENGTH_SIZE])):
            contents.append(bytes(opener.open(wire[:LENGTH_SIZE], wire[LENGTH_SIZE:end])))
            wire = wire[end:]
    except PeerError as error:
        return contents, error
    return contents, None


def by_hand(agreed: Agreement, number: int, content: bytes, side: bytes, kind: bytes = b"\x17") -> bytes:
    """A record by RFC 5869 and RFC 8446, 5.2, with the standard library's HMAC."""
    seen = b"\x30" + agreed.finished + agreed.asked + agreed.answered + agreed.suite.encode()
    prk = hmac.digest(hashlib.sha384(seen).digest(), agreed.dialler + agreed.acceptor, "sha384")
    made = hmac.digest(prk, b"statepipe records of the " + side + b"\x01", "sha384")[:44]
    nonce = bytes(a ^ b for a, b in zip(made[32:], number.to_bytes(12), strict=True))
    plain = content + kind
    length = (len(plain) + 16).to_bytes(4)
    cipher = AESGCM if agreed.suite == AES else ChaCha20Poly1305
    return length + cipher(made[:32]).encrypt(nonce, plain, length)


@pytest.mark.parametrize("suite", [AES, CHACHA])
def test_records_are_those_of_the_vectors_and_of_the_rfcs(suite: str) -> None:
    agreed = AGREED._replace(suite=suite)
    made = sealed(b"hello", agreed) + sealed(b"\0", agreed, 1) + sealed(b"hello", agreed, of_dialler=False)
    assert made == by_hand(agreed, 0, b"hello", b"dialler") + by_hand(agreed, 1, b"\0", b"dialler") + by_hand(
        agreed, 0, b"hello", b"acceptor"
    )
    assert made.hex() == VECTORS[suite]


@given(st.lists(st.integers(1, 3000), max_size=5), st.sampled_from([AES, CHACHA]))
def test_what_is_sealed_is_opened(sizes: list[int], suite: str) -> None:
    agreed = AGREED._replace(suite=suite)
    sealer, contents = Sealer(*agreed.key(of_dialler=True)), [random.Random(size).randbytes(size) for size in sizes]
    wire = b"".join(b"".join(sealer.seal([each[:7], each[7:]])) for each in contents)
    assert opened(wire, agreed) == (contents, None)


class Older:
    """A cipher as cryptography 49 has it."""

    def __init__(self, aead: Aead) -> None:
        self.encrypt, self.decrypt = aead.encrypt, aead.decrypt


@pytest.mark.parametrize("sizes", [[1, MAX_CONTENT, 7], [MAX_CONTENT] * 9])
def test_an_older_library_makes_and_reads_the_same(sizes: list[int]) -> None:
    aead, iv = AGREED.key(of_dialler=True)
    old: Any = Older(aead)
    contents = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    older, newer, opener, other = Sealer(old, iv), Sealer(aead, iv), Opener(old, iv), Opener(aead, iv)
    kept = []
    for content in contents:
        record = [bytes(each) for each in newer.seal([content[:5], content[5:]])]
        assert [bytes(each) for each in older.seal([content])] == record
        kept.append((opener.open(*record), other.open(*record)))
    assert [(bytes(one), bytes(another)) for one, another in kept] == [(each, each) for each in contents]


def test_a_record_that_is_not_sent_yet_keeps_its_memory() -> None:
    sealer = Sealer(*AGREED.key(of_dialler=True))
    contents = [bytes([number]) * MAX_CONTENT for number in range(12)]
    records = [sealer.seal([content]) for content in contents]
    assert opened(b"".join(b"".join(record) for record in records)) == (contents, None)


CHANGES = ("flip", "cut", "leave out", "repeat", "swap", "of the other direction", "of another link", "insert")


@given(st.integers(2, 5), st.sampled_from(CHANGES), st.integers(0, 1 << 30))
def test_what_is_changed_on_the_way_yields_no_byte(count: int, change: str, chance: int) -> None:
    """Whatever comes before the change is read; nothing of it or after it is."""
    rng = random.Random(chance)
    sealer = Sealer(*AGREED.key(of_dialler=True))
    contents = [rng.randbytes(rng.randrange(1, 100)) for _ in range(count)]
    sent = [b"".join(sealer.seal([each])) for each in contents]
    place = rng.randrange(count)
    wire = list(sent)
    if change == "flip":
        bit = rng.randrange(8 * len(wire[place]))
        wire[place] = (int.from_bytes(wire[place]) ^ 1 << bit).to_bytes(len(wire[place]))
    elif change == "cut":
        wire[place] = wire[place][: rng.randrange(len(wire[place]))]
    elif change == "leave out":
        place = rng.randrange(count - 1)
        del wire[place]
    elif change == "repeat":
        wire.insert(place + 1, wire[place])
        place += 1
    elif change == "swap":
        place = rng.randrange(count - 1)
        wire[place], wire[place + 1] = wire[place + 1], wire[place]
    elif change == "of the other direction":
        wire[place] = sealed(contents[place], before=place, of_dialler=False)
    elif change == "of another link":
        wire[place] = sealed(contents[place], AGREED._replace(finished=b"g" * 48), place)
    else:
        wire.insert(place, rng.randbytes(rng.randrange(OVERHEAD, 99)))
    read, error = opened(b"".join(wire))
    assert read == contents[:place]
    left = LENGTH_SIZE + int.from_bytes(b"".join(wire[place:])[:LENGTH_SIZE])
    is_short = len(b"".join(wire[place:])) < max(left, LENGTH_SIZE)
    assert error is not None or is_short  # a reader waits for the rest of what seems to be a longer record


@pytest.mark.parametrize("field", Agreement._fields)
def test_every_part_of_the_agreement_makes_other_keys(field: str) -> None:
    other = {"suite": CHACHA}.get(field, b"z" * len(getattr(AGREED, field)))
    record = sealed(b"hello", AGREED._replace(**{field: other}))
    contents, error = opened(record)
    assert contents == [] and error is not None and "changed, or is not the next one" in str(error)


def test_parts_of_the_agreement_cannot_be_moved_into_one_another() -> None:
    shorter = AGREED._replace(finished=b"f" * 47, asked=b"f" + b"a" * 196)
    assert opened(sealed(b"hello", shorter))[0] == []


@pytest.mark.parametrize("size", [0, 16, 17, MAX_SEALED + 1, (1 << 32) - 1])
def test_a_length_that_is_not_allowed_is_refused_before_anything_is_read(size: int) -> None:
    with pytest.raises(PeerError, match=f"a record of {size} bytes: 18 to {MAX_SEALED} are allowed"):
        sealed_size(size.to_bytes(4))


def test_the_longest_and_the_shortest_content() -> None:
    for content in (b"x", bytes(MAX_CONTENT)):
        record = sealed(content)
        assert sealed_size(record[:4]) == len(record) - 4 == len(content) + OVERHEAD - LENGTH_SIZE
        assert opened(record) == ([content], None)


@pytest.mark.parametrize("kind", [b"\x15", b"\x16", b"\0"])
def test_another_content_type_is_refused(kind: bytes) -> None:
    contents, error = opened(by_hand(AGREED, 0, b"hello", b"dialler", kind))
    assert contents == [] and f"a record of type {kind[0]}" in str(error)


def test_a_key_protects_so_many_bytes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "KEY_BYTES", 3 * (5 + OVERHEAD))
    sealer, opener = Sealer(*AGREED.key(of_dialler=True)), Opener(*AGREED.key(of_dialler=True))
    for _ in range(3):
        length, content = sealer.seal([b"hello"])
        assert opener.open(bytes(length), content) == b"hello"
    with pytest.raises(PeerError, match="the keys of the link have protected"):
        sealer.seal([b""])
    with pytest.raises(PeerError, match="the keys of the link have protected"):
        opener.open(bytes(length), content)


FRAMES = st.lists(
    st.one_of(
        st.builds(
            lambda size, at: Frame(Kind.DATA, 0, at, bytes(size % 251 for _ in range(size))),
            st.integers(1, 900),
            st.integers(0, MAX_DATA),
        ),
        st.sampled_from([Frame(Kind.PING, 1, 7), Frame(Kind.CLOSE), Frame(Kind.ACK, 3, 9)]),
    ),
    max_size=9,
)


@settings(max_examples=200)
@given(FRAMES, st.lists(st.integers(1, 700), min_size=1), st.booleans())
def test_frames_are_the_same_however_records_divide_them(frames: list[Frame], sizes: list[int], greets: bool) -> None:
    greeting = Greeting(Greets.NEW, Role.SENDS, 16, 1 << 20, bytes(16), bytes(32))
    wire = greeting.encode() * greets + b"".join(bytes(part) for frame in frames for part in frame.encode())
    reader, read, place, turn = FrameReader(greeted=not greets), [], 0, 0
    while place < len(wire):
        size = sizes[turn % len(sizes)]
        read += reader.cut(memoryview(wire[place : place + size]))
        place, turn = place + size, turn + 1
    assert reader.offset == len(wire) + (0 if greets else 196)
    assert read == [greeting] * greets + frames


def test_a_short_payload_does_not_hold_the_memory_of_its_record() -> None:
    small = b"".join(map(bytes, Frame(Kind.DATA, 0, 0, b"x").encode()))
    large = b"".join(map(bytes, Frame(Kind.DATA, 0, 0, bytes(1000)).encode()))
    for wire, is_held in ((small + large, (False, True)), (large + small, (True, False))):
        record = memoryview(bytes(wire))
        frames = list(FrameReader(greeted=True).cut(record))
        assert (
            tuple(memoryview(each.payload).obj is record.obj for each in frames if isinstance(each, Frame)) == is_held
        )
