"""What a file that is no honest state may make statepipe take of memory, as it is refused."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

from tests.statefiles import SEEK_TABLE, seal
from tests.unit.formats.test_statefile_shapes import FRAMES, HEADER, STREAM, TRAILER, meta

LIMIT = 200 << 20

READ = """
import re, sys
from statepipe.cli.main import main
try:
    main(sys.argv[1:])
finally:
    peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]
    print(f"peak {int(peak) << 10}", file=sys.stderr)
"""


def peak(*arguments: object, stdin: Path | None = None) -> int:
    """The most memory, in bytes, that statepipe took; it must have refused the file."""
    with open(stdin or "/dev/null", "rb") as given:
        done = subprocess.run(
            [sys.executable, "-P", "-c", READ, *map(str, arguments)],
            stdin=given,
            capture_output=True,
            timeout=120,
        )
    said = done.stderr.decode(errors="replace")
    assert "error: " in said and "Traceback" not in said, said
    return int(said.rpartition("peak ")[2])


def heavy_json(kind: bytes) -> bytes:
    """The JSON that Python makes most of."""
    facts = b'{"statepipe": 1, "kind": "state", "more": [%s1]}'
    return meta(kind, facts % (b"{}," * ((15 << 20) // 3)))


def test_heavy_metadata_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(seal([(heavy_json(b"H"), 0), *FRAMES], TRAILER))
    assert peak("load", path) < LIMIT
    assert peak("decompress", stdin=path) < LIMIT


def table_file(path: Path, entries: int) -> None:
    """Nothing but a header, many empty frames that are not there, a trailer and a table that lists them."""
    header, trailer = meta(b"H", json.dumps(HEADER).encode()), meta(b"T", json.dumps(TRAILER).encode())
    size = 8 + 8 * entries + 9
    with path.open("wb") as file:
        file.write(header)
        file.truncate(8 * entries)  # a hole: room for so many frames
        file.seek(8 * entries)
        file.write(trailer + struct.pack("<II", SEEK_TABLE, size - 8))
        at = file.tell()
        file.truncate(at + 8 * (entries - 1))
        file.seek(at + 8 * (entries - 1))
        file.write(struct.pack("<II", len(trailer), 0) + struct.pack("<IBI", entries, 0, 0x8F92EAB1))


def test_a_large_seek_table_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "state"
    table_file(path, (63 << 20) // 8)
    assert peak("load", path) < LIMIT


def test_a_large_seek_table_in_a_pipe_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    size = 63 << 20
    with path.open("wb") as file:
        file.write(meta(b"H", json.dumps(HEADER).encode()) + struct.pack("<II", SEEK_TABLE, size))
        file.truncate(file.tell() + size)
    assert peak("decompress", stdin=path) < LIMIT


def test_a_vmdesc_that_is_heavy_costs_little(tmp_path: Path) -> None:
    """A raw stream is read by its own structure, and its end is JSON."""
    at = STREAM.rindex(b"\0\x06\0\0") + 2
    described = b'{"devices": [' + b"[]," * ((30 << 20) // 3) + b"1]}"
    path = tmp_path / "raw"
    path.write_bytes(STREAM[:at] + struct.pack(">I", len(described)) + described)
    assert re.match(rb"QEVM", path.read_bytes())
    assert peak("inspect", path) < LIMIT
