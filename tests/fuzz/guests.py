"""The doors for a guest's state: QEMU's stream, its return path, and state files, sealed or not."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import struct
import tempfile
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import zstandard
from blake3 import blake3

from statepipe.cli.report import inspected, verified
from statepipe.errors import StatepipeError
from statepipe.formats import domainxml, libvirtimage
from statepipe.formats.metadata import DOMAIN, HEADER, TRAILER
from statepipe.formats.qemu.pageframes import decode_index, difference, encode_index
from statepipe.formats.qemu.postcopy import Answers, Block
from statepipe.formats.qemu.stream import QemuStream
from statepipe.formats.workingset import build_working_set, parse_working_set
from statepipe.state.file import Keys
from statepipe.state.inspect import inspect
from statepipe.state.pagestore import open_pages
from statepipe.state.verify import verify_state
from tests import agefiles, statefiles
from tests import streams as made
from tests.fuzz.harness import Door
from tests.fuzz.mutation import LARGE, mutated, odd_json, portions

# --- QEMU's stream


def follow(data: bytes) -> None:
    """As `watch` does, and the pages are recorded; what was seen is told as JSON, and the index written and read."""
    stream = QemuStream()
    stream.record_pages()
    try:
        for part in portions(data):
            if stream.feed(part) < len(part):
                break
            stream.take_pings()
        stream.close()
    finally:
        json.dumps(stream.facts())
        assert stream.place and isinstance(stream.could_end_here, bool)
    index = stream.page_index()
    if index.outline.unserved is None:
        assert difference(index, decode_index(list(encode_index(index)), 0)) is None


@lru_cache
def real() -> list[bytes]:
    """The first bytes of a guest's stream as QEMU wrote it, where one is at hand: tests/unit/formats/test_stream.py."""
    folder = Path(os.environ.get("STATEPIPE_SAMPLES") or Path(__file__).parents[3] / "shared" / "samples")
    found = sorted(folder.glob("*.qevm.zst"))
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    beginnings = []
    for path in found:
        with path.open("rb") as file, reader.stream_reader(file) as plain:
            beginnings.append(plain.read(1 << 19))
    return beginnings


def make_stream(random: Random) -> bytes:
    built = b"".join(random.choice(_PARTS)(random) for _ in range(random.choice((1, 3, 10, 40))))
    good = random.choice((made.whole(), made.head() + built, made.setup() + built, _huge_blocks(random) + built))
    if real() and random.random() < 0.1:
        good = random.choice(real())
    if random.random() < 0.3:
        good += made.devices() + b"\0" + _vmdesc(random)
    return mutated(random, good, [made.whole()]) if random.random() < 0.7 else good


def _huge_blocks(random: Random) -> bytes:
    """Blocks of sizes that no host has, and a few pages in them."""
    length = random.choice((1 << 20, 1 << 40, 32 << 40))
    blocks = made.block_list((("pc.ram", length),))
    pages = [made.zero(0, "pc.ram"), *(made.zero(random.randrange(length // made.PAGE)) for _ in range(20))]
    return made.head() + made.ram_start(blocks) + made.ram(*pages)


def _vmdesc(random: Random) -> bytes:
    described = {"page_size": made.PAGE, "devices": [{"name": name, "fields": [1]} for name in made.DEVICES]}
    text = odd_json(random, described)
    return b"\x06" + struct.pack(">I", max(len(text) + random.choice((0, 0, 0, -1, 1)), 0)) + text


_PARTS: Any = (
    lambda random: made.ram(made.zero(random.randrange(70), "pc.ram"), made.ordinary(random.randrange(70))),
    lambda random: made.ram(made.record(random.choice(LARGE) & 0xFFF, random.randrange(1 << 20)), kind=3),
    lambda random: made.command(
        random.choice((1, 2, 3, 4, 5, 7, 11, 200)), random.randbytes(random.choice((0, 4, 16)))
    ),
    lambda random: made.device(random.choice(("timer", "", "x" * 255)), random.choice((0, 4)), random.randbytes(9)),
    lambda random: made.start("dirty-bitmap", random.choice((9, 10)), random.randbytes(20)),
    lambda random: made.globalstate(3, random.randbytes(8)),
    lambda random: made.ram_start(),
    lambda random: made.subsection(random.choice(("uuid", "target-page-bits", "x")), struct.pack(">I", 12)),
    lambda random: made.capabilities("x-ignore-shared", "mapped-ram"[: random.randrange(11)]),
    lambda random: made.devices() + b"\0" + made.vmdesc(*made.DEVICES),
    lambda random: made.footer(random.choice((2, 4))) + b"\0",
    lambda random: made.xbzrle(1) + made.compressed(2),
)


SPARSE = made.head() + made.ram_start(made.block_list((("pc.ram", 32 << 40),)))
"""The head of a guest of 32 TiB."""


def _ended(text: bytes) -> bytes:
    """A stream that ends in this vmdesc."""
    body = made.setup() + made.ram(made.LAST, kind=3) + made.devices()
    return body + b"\0\x06" + struct.pack(">I", len(text)) + text


def _filled(begin: bytes, unit: bytes, size: int) -> bytes:
    return begin + unit * ((size - len(begin)) // len(unit)) + b'0],"devices":[]}'


STREAMS = {
    "a page at the end of 32 TiB": lambda: SPARSE + made.ram(made.zero((32 << 40) // 4096 - 1, "pc.ram")),
    "pages here and there in 32 TiB": lambda: (
        SPARSE + made.ram(made.zero(0, "pc.ram"), *(made.zero(page << 12) for page in range(100_000)))
    ),
    "a vmdesc of empty lists": lambda: _ended(_filled(b'{"x":[', b"[],", 15 << 20)),
    "a vmdesc of empty lists, a long one": lambda: _ended(_filled(b'{"x":[', b"[],", 63 << 20)),
    "a vmdesc of short texts": lambda: _ended(_filled(b'{"x":[', b'"ab",      ', 15 << 20)),
    "a vmdesc of objects": lambda: _ended(_filled(b'{"x":[', b'{"":1},                  ', 15 << 20)),
    "a vmdesc with a letter of four bytes": lambda: _ended(b'{"x": "\xf0\x9f\x98\x80' + b"x" * (15 << 20) + b'"}'),
    "sections without end before the devices": lambda: (
        made.setup() + b"".join(made.start("x", number, b"", 1) for number in range(3, 300_000))
    ),
}


# --- an index of pages


def _index_of(stream: bytes) -> list[bytes]:
    """What is in the frames of the index of a whole stream."""
    followed = QemuStream()
    followed.record_pages()
    followed.feed(stream)
    return [zstandard.decompress(frame) for frame in encode_index(followed.page_index())]


OUTLINE, RUNS = _index_of(
    made.setup()
    + made.ram(made.LAST, *(made.zero(page) for page in range(5, 40, 2)), made.ordinary(3), made.zero(2, "pc.bios"))
    + made.ram(made.LAST, kind=3)
    + made.devices()
    + b"\0"
    + made.vmdesc(*made.DEVICES)
)


def read_index(data: bytes) -> None:
    """The frames of an index, each behind its length; one that is read is asked for each of its pages."""
    frames = []
    while data:
        size = int.from_bytes(data[:4], "big")
        frames.append(data[4 : 4 + size])
        data = data[4 + size :]
    index = decode_index(frames, 0)
    assert difference(index, decode_index(list(encode_index(index)), 0)) is None
    for run in index:
        assert index.find(run.block, run.page) == run == index.find(run.block, run.page + run.pages - 1)
    asked = index.stored_between(0, index.outline.devices[0])
    assert sum(run.pages for run in asked) == index.stored


def make_index(random: Random) -> bytes:
    """Frames whose contents are changed, or whose bytes are."""
    outline = odd_json(random, json.loads(OUTLINE)) if random.random() < 0.4 else OUTLINE
    frames = [outline, *[RUNS] * random.choice((0, 1, 1, 1, 2))]
    if random.random() < 0.6:
        frames = [mutated(random, frame) if random.random() < 0.5 else frame for frame in frames]
    packed = b"".join(len(it).to_bytes(4, "big") + it for it in map(zstandard.compress, frames))
    return mutated(random, packed) if random.random() < 0.3 else packed


# --- files

STREAM = statefiles.noisy_stream()
GOOD = statefiles.state_file(statefiles.cut(STREAM, 3), index=True)
PIECES = statefiles.layout(GOOD)
FRAMES = [(GOOD[piece.start : piece.end], piece.content) for piece in PIECES[1:-2]]


def _facts_of(piece: statefiles.Piece) -> Any:
    return json.loads(GOOD[piece.start + 8 + 26 : piece.end])


DISK = {"path": "/dev/null", "format": "raw", "size": 0, "mtime_ns": None, "samples_blake3": "ab" * 32}
HEAD = _facts_of(PIECES[0]) | {"name": "guest", "qemu": "10.0.2", "ram": 1 << 27, "stages": ["checksum"]}
TAIL = _facts_of(PIECES[-2]) | {"disks": [DISK, {"path": "/srv/x", "unknown": "gone"}]}


def meta(kind: bytes, text: bytes) -> bytes:
    """A metadata frame, its own checksum right whatever it says."""
    payload = b"statepipe" + kind + blake3(kind + text).digest(16) + text
    return struct.pack("<II", statefiles.META, len(payload)) + payload


def read_state(data: bytes) -> None:
    """Every way to read a state: load, inspect for people and for programs, verify-state, page by page."""
    _read(data, statefiles.NO_KEYS)


def _read(data: bytes, keys: Keys) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        path = Path(folder) / "state"
        path.write_bytes(data)
        statefiles.load(path, keys=keys)
        with contextlib.suppress(StatepipeError):
            facts = inspect(str(path), keys)
            json.dumps(facts)
            assert inspected(facts)
        with contextlib.suppress(StatepipeError):
            facts = verify_state(str(path), keys)
            json.dumps(facts)
            assert verified(facts)
        with contextlib.suppress(StatepipeError), open_pages(str(path), keys) as store:
            for number in range(min(store.frames, 50)):
                with contextlib.suppress(StatepipeError):
                    for run, data in store.pages(number):
                        assert len(data) == run.pages * store.index.stride - 8


def make_state(random: Random) -> bytes:
    """A good one with changes; or one whose facts are odd, and all of its sums right."""
    what = random.random()
    if what < 0.1:
        return make_image(random)
    if what < 0.35:
        return mutated(random, GOOD, [STREAM])
    if what < 0.45:
        return mutated(random, _table(random))
    head = HEAD if random.random() < 0.5 else json.loads(json.dumps(HEAD))
    first = meta(HEADER, odd_json(random, HEAD) if random.random() < 0.4 else json.dumps(head).encode())
    frames = [(first, 0), *_domains(random), *_odd_frames(random)]
    if random.random() < 0.6:
        return _sealed(random, frames, odd_json(random, TAIL))
    return statefiles.seal(frames, TAIL)


def make_image(random: Random) -> bytes:
    """A save image of libvirt's: its beginning is changed, or its numbers are odd, or what is behind it is changed."""
    state, number = random.choice(((STREAM, libvirtimage.RAW), (gzip.compress(STREAM), 1), (GOOD, libvirtimage.ZSTD)))
    begin = libvirtimage.beginning(statefiles.DOMAIN, number, spare=random.choice((0, 9, 5000)))
    if random.random() < 0.3:
        numbers = [random.choice((0, 1, 2, 5, 92, 150, 1 << 23, 1 << 31, random.getrandbits(32))) for _ in range(5)]
        at = random.randrange(5)
        order = random.choice("<>")
        begin = begin[: 16 + 4 * at] + struct.pack(f"{order}I", numbers[at]) + begin[20 + 4 * at :]
    elif random.random() < 0.5:
        begin = mutated(random, begin)
    return begin + (mutated(random, state) if random.random() < 0.4 else state)


def _domains(random: Random) -> list[tuple[bytes, int]]:
    """Most often none; else what libvirt knows of the guest, good or changed."""
    if random.random() < 0.6:
        return []
    plain = libvirtimage.beginning(statefiles.DOMAIN, spare=0, is_big_endian=False)
    plain = mutated(random, plain) if random.random() < 0.7 else plain
    packed = zstandard.compress(plain)
    return [(meta(DOMAIN, mutated(random, packed) if random.random() < 0.3 else packed), 0)]


def _odd_frames(random: Random) -> list[tuple[bytes, int]]:
    """Most often the good ones; else others, of another stream or of a size that they do not say."""
    if random.random() < 0.7:
        return FRAMES
    stream = make_stream(random)[: 1 << 20]
    packer = zstandard.ZstdCompressor(write_content_size=random.random() < 0.5, write_checksum=random.random() < 0.5)
    frames = [
        (packer.compress(stream[at : at + 5000]), len(stream[at : at + 5000])) for at in range(0, len(stream), 5000)
    ]
    return [*frames[:20], (struct.pack("<II", 0x184D2A50, 4) + b"more", 0)]


def _sealed(random: Random, frames: list[tuple[bytes, int]], text: bytes) -> bytes:
    """With the sums put in where the facts still are an object."""
    body = b"".join(frame for frame, _ in frames)
    digest = blake3(body).hexdigest().encode()
    text = text.replace(str(TAIL["file_blake3"]).encode(), digest)
    trailer = meta(TRAILER, text)
    entries = [(len(frame), content) for frame, content in [*frames, (trailer, 0)]]
    table = b"".join(struct.pack("<II", *entry) for entry in entries)
    table += struct.pack("<IBI", len(entries), 0, 0x8F92EAB1)
    return body + trailer + struct.pack("<II", statefiles.SEEK_TABLE, len(table)) + table


def _table(random: Random) -> bytes:
    """A file whose seek table says what is not so."""
    entries = [(random.choice(LARGE) % (1 << 32), random.choice((0, 1, 1 << 31))) for _ in range(random.randrange(40))]
    table = b"".join(struct.pack("<II", *entry) for entry in entries)
    table += struct.pack("<IBI", random.choice((len(entries), *LARGE)) % (1 << 32), 0, 0x8F92EAB1)
    return GOOD[: PIECES[-1].start] + struct.pack("<II", statefiles.SEEK_TABLE, len(table)) + table


# --- the return path

ANSWERING = {block.name: block for block in (Block("pc.ram", 1 << 20), Block("ram0", 8 << 20, 2 << 20))}


def hear(data: bytes) -> None:
    """What a destination in postcopy answers."""
    answers = Answers(ANSWERING)
    for part in portions(data):
        for answer in answers.feed(part):
            assert str(answer)


def make_answers(random: Random) -> bytes:
    mark = struct.pack(">Q", 0x0123456789ABCDEF)
    said = [
        struct.pack(">HHI", random.choice((1, 2, 6, 7)), 4, random.choice(LARGE) % (1 << 32)),
        struct.pack(">HHQIB", 3, 19, random.choice(LARGE), 4096, 6) + b"pc.ram",
        struct.pack(">HHQI", 4, 12, random.randrange(256) << 12, random.choice((4096, 8192))),
        struct.pack(">HHB", 5, 7, 6) + b"pc.ram" + struct.pack(">Q", 32) + bytes(32) + mark,
    ]
    data = b"".join(random.choices(said, k=random.randrange(1, 9)))
    return mutated(random, data) if random.random() < 0.6 else data


# --- a working set

HAVING = {"pc.ram": 1 << 18, "pc.bios": 64}
WORKING_SET = build_working_set("ab" * 32, [("pc.ram", [(3, 4), (192, 3), (4096, 1)]), ("pc.bios", [(0, 64)])])


def read_set(data: bytes) -> None:
    """One that is read has runs in order, inside their blocks, and is written again as it says."""
    found = parse_working_set(data, "ab" * 32, HAVING)
    for name, runs in found.items():
        edges = [edge for first, count in runs for edge in (first, first + count)]
        assert edges == sorted(edges) and all(count > 0 for _, count in runs)
        assert not edges or edges[-1] <= HAVING[name]
    again = build_working_set("ab" * 32, found.items())
    assert parse_working_set(again, "ab" * 32, HAVING) == {name: runs for name, runs in found.items() if runs}


def make_set(random: Random) -> bytes:
    if random.random() < 0.5:
        return odd_json(random, json.loads(WORKING_SET))
    return mutated(random, WORKING_SET)


# --- encrypted ones


def identities() -> list[Any]:
    from statepipe.stages.agekeys import parse_identities

    return list(parse_identities(agefiles.KEY_FILE.read_bytes(), "age.key", None))  # type: ignore[arg-type]


def no_openpgp() -> Any:
    raise StatepipeError("no OpenPGP here")


def read_sealed(data: bytes) -> None:
    """The same of an age file, armored or not."""
    with contextlib.redirect_stderr(io.StringIO()):
        _read(data, Keys(identities, no_openpgp))


def make_sealed(random: Random) -> bytes:
    state = make_state(random) if random.random() < 0.5 else GOOD
    sealed = agefiles.sealed(state[: 300 << 10])
    sealed = agefiles.armored(sealed) if random.random() < 0.3 else sealed
    return mutated(random, sealed) if random.random() < 0.6 else sealed


_XML = (
    b"<domain type='kvm'>\n<name>web1</name><uuid>9f0b0c5e-6b1c-4d8e-8f6e-0d7d1a2b3c4d</uuid>\n<devices>"
    b"<disk type='file' device='disk'><source file='/a.img'><seclabel model='dac'/></source>"
    b"<backingStore type='file'><source file='/b.img'/></backingStore><target dev='vda' bus='virtio'/></disk>"
    b"<disk type='block'><target dev='vdb'/><source dev='/dev/sda'/></disk></devices></domain>\n"
)
_ODD_XML = (
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"&b;",
    b"<?xml version='1.0' encoding='UTF-7'?>",
    b"<a " * 500,
    b"<disk>" * 500,
)


def read_domain(data: bytes) -> None:
    """What a domain's XML tells: who it is, and its disks."""
    who, its = domainxml.identity(data), domainxml.disks(data)
    assert its is not None or who == domainxml.Identity()
    assert all(isinstance(part, str) and part for pair in (its or {}).items() for part in pair)


def make_domain(random: Random) -> bytes:
    return mutated(random, _XML, _ODD_XML)


DOORS = {
    "streams": Door(follow, make_stream, STREAMS),
    "indexes": Door(read_index, make_index),
    "states": Door(read_state, make_state),
    "sealed-states": Door(read_sealed, make_sealed),
    "requests-for-pages": Door(hear, make_answers),
    "working-sets": Door(read_set, make_set),
    "domains": Door(read_domain, make_domain),
}
