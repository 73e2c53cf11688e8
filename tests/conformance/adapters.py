"""What the suite must know of a filter to try it: the arguments it needs, what goes in, what undoes it.

A new filter's test is one line in ADAPTERS, and one more for each way of it that is worth trying (`compress:gzip`).
"""

from __future__ import annotations

import atexit
import bz2
import gzip
import hashlib
import io
import lzma
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lz4.frame
import zstandard

from statepipe.cli.filtertable import find
from statepipe.cli.grammar import parse
from statepipe.stage import Buffer, Stage, close
from tests import agefiles, gpghome
from tests.world import world

SCRATCH = tempfile.TemporaryDirectory(prefix="statepipe-test-")
"""Files that filters make."""
atexit.register(SCRATCH.cleanup)

Bytes = Callable[[bytes], bytes]


def same(data: bytes) -> bytes:
    return data


def nothing(data: bytes) -> list[str]:
    return []


def frames(data: bytes) -> bytes:
    """A zstd file of many frames, as pzstd and we write them, by none of our code."""
    packer = zstandard.ZstdCompressor(write_checksum=True)
    cut = [data[at : at + 300_000] for at in range(0, len(data), 300_000)]
    return b"".join(packer.compress(part) for part in cut or [b""])


def unzstd(data: bytes) -> bytes:
    """Every frame of `data` decoded, metadata skipped; what was cut off its end is not missed."""
    plain = b""
    while data:
        if data[1:4] == b"\x2a\x4d\x18":
            data = data[8 + int.from_bytes(data[4:8], "little") :]
            continue
        decoder = zstandard.ZstdDecompressor().decompressobj()
        plain += decoder.decompress(data)
        data = decoder.unused_data
    return plain


def written(out: bytes) -> bytes:
    """What `put` wrote, of which nothing comes out."""
    assert out == b""
    path = Path(SCRATCH.name) / "object"
    data = path.read_bytes() if path.exists() else b""
    path.unlink(missing_ok=True)
    return data


def to_read(data: bytes) -> list[str]:
    """What `get` reads, whatever comes in."""
    path = Path(SCRATCH.name) / "read"
    path.write_bytes(data)
    return [f"file://{path}"]


def joined(pack: Bytes) -> Bytes:
    """Streams, members or frames one after another, by none of our code."""

    def feed(data: bytes) -> bytes:
        return b"".join(pack(data[at : at + 300_000]) for at in range(0, len(data) or 1, 300_000))

    return feed


def unlz4(data: bytes) -> bytes:
    """What there is of every frame of `data`, by the library's own reader."""
    plain = b""
    while data:
        decoder = lz4.frame.LZ4FrameDecompressor()
        plain += decoder.decompress(data)
        data = decoder.unused_data or b""
    return plain


@dataclass(frozen=True, slots=True)
class Adapter:
    """`feed` makes the filter's input of plain data, `undo` plain data of its output.

    `arguments` are those of the command line, given the plain data. `speaks`: it writes to standard error of itself.
    `block`: the plain bytes it works on at once, if that is more than a mebibyte. `runs`: it has a process of its own.
    `slow`: a mebibyte of noise takes it a tenth of a second and more.
    """

    arguments: Callable[[bytes], list[str]] = nothing
    feed: Bytes = same
    undo: Bytes = same
    speaks: bool = False
    holds_back: bool = False
    block: int = 1 << 20
    runs: bool = False
    slow: bool = False


def compress(codec: str, undo: Bytes, block: int = 1 << 20, slow: bool = False) -> Adapter:
    return Adapter(arguments=lambda data: [codec], undo=undo, block=block, slow=slow)


ADAPTERS = {
    "compress": Adapter(undo=unzstd),
    "compress:zstd:auto": compress("zstd:auto", unzstd),
    "compress:zstd:one-frame": Adapter(arguments=lambda data: ["--one-frame"], undo=unzstd),
    "compress:gzip": compress("gzip", gzip.decompress),
    "compress:gzip:6": compress("gzip:6", gzip.decompress),
    "compress:bzip2": compress("bzip2", bz2.decompress, slow=True),
    "compress:xz": compress("xz:0", lzma.decompress, block=4 << 20, slow=True),
    "compress:lz4": compress("lz4", unlz4),
    "decompress": Adapter(feed=frames),
    "decompress:gzip": Adapter(feed=joined(gzip.compress)),
    "decompress:bzip2": Adapter(feed=joined(bz2.compress), slow=True),
    "decompress:xz": Adapter(feed=joined(lambda data: lzma.compress(data, preset=0)), slow=True),
    "decompress:lz4": Adapter(feed=joined(lz4.frame.compress)),
    "encrypt": Adapter(arguments=lambda data: ["-r", agefiles.RECIPIENT], undo=agefiles.opened, holds_back=True),
    "decrypt": Adapter(arguments=lambda data: ["-i", str(agefiles.KEY_FILE)], feed=agefiles.sealed, holds_back=True),
    "encrypt:armor": Adapter(
        arguments=lambda data: ["-a", agefiles.RECIPIENT],
        undo=lambda data: agefiles.opened(agefiles.dearmored(data)),
        holds_back=True,
    ),
    "decrypt:armor": Adapter(
        arguments=lambda data: ["-i", str(agefiles.KEY_FILE)],
        feed=lambda data: agefiles.armored(agefiles.sealed(data)),
        holds_back=True,
        block=3 << 19,  # text is a third longer
    ),
    "checksum": Adapter(speaks=True),
    "verify": Adapter(arguments=lambda data: [hashlib.sha256(data).hexdigest()], holds_back=True),
    "throttle": Adapter(arguments=lambda data: ["8G"]),
    "progress": Adapter(speaks=True),
    "tee": Adapter(arguments=lambda data: [f"{SCRATCH.name}/copy"]),
    "tee:warn": Adapter(arguments=lambda data: ["--on-error", "warn", f"{SCRATCH.name}/another"]),
    "put": Adapter(
        arguments=lambda data: [f"file://{SCRATCH.name}/object"], undo=written, speaks=True, holds_back=True
    ),
    "get": Adapter(arguments=to_read, holds_back=True),
    "external": Adapter(arguments=lambda data: ["--", "cat"], holds_back=True, runs=True),
    "external:shell": Adapter(arguments=lambda data: ["--shell", "cat | cat"], holds_back=True, runs=True),
}

if gpghome.PRESENT:
    os.environ["GNUPGHOME"] = str(gpghome.home())
    ADAPTERS |= {
        "encrypt:gpg": Adapter(
            arguments=lambda data: ["gpg:alice"], undo=gpghome.decrypted, holds_back=True, runs=True
        ),
        "decrypt:gpg": Adapter(feed=gpghome.encrypted, holds_back=True, runs=True),
    }


def thinned(noise: bytes) -> bytes:
    """As long, but of each page a few bytes alone are noise: what a slow codec is through with soon."""
    return b"".join(noise[at : at + 256].ljust(min(4096, len(noise) - at), b"\0") for at in range(0, len(noise), 4096))


def filter_of(name: str) -> str:
    """The filter that an adapter's name begins with."""
    return name.partition(":")[0]


def build(name: str, data: bytes) -> Stage:
    """The filter's stage for plain `data`, as the command line would make it."""
    row = find(filter_of(name))
    return row.build(dict(parsed(row.name, *ADAPTERS[name].arguments(data))), world())


@cache
def parsed(name: str, *arguments: str) -> dict[str, Any]:
    """The values of a filter's command line: made once, as some tests build the same stage thousands of times."""
    return parse(find(name), arguments)


def filtered(data: bytes, name: str, *arguments: str) -> tuple[bytes, str]:
    """What the filter with these arguments makes of `data`, and what it says."""
    said = io.StringIO()
    row = find(name)
    flow = row.build(parse(row, arguments), world(said))(cut(data, [256 << 10]))
    out = b"".join(flow)
    close(flow)
    return out, said.getvalue()


def through(name: str, data: bytes, buffers: Iterable[Buffer]) -> bytes:
    """What comes out of the filter for these buffers of its input; each is looked at again when all have come."""
    flow = build(name, data)(iter(buffers))
    out = [(buffer, bytes(buffer)) for buffer in flow]
    close(flow)
    assert all(buffer == then for buffer, then in out), "a buffer was written again after it was yielded"
    return b"".join(then for _, then in out)


def cut(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """`data` in pieces of these sizes, round and round; a size of 0 is a flush mark."""
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        yield data[position : position + size]
        position, turn = position + size, turn + 1
