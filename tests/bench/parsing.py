"""How fast the stream parser is, in a process of its own: `python -m tests.bench.parsing [STREAM]`.

Prints JSON: bytes a CPU second over ordinary pages in a row, and over STREAM. Buffers are in memory before the clock
starts, in the size that statepipe reads.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from statepipe.formats.qemu.stream import QemuStream
from statepipe.wakeups import READ_SIZE
from tests.bench.stream import PAGE, closing_part, opening, ram_section, record

PAGES = 16384
TOTAL = 6_000_000_000
"""Bytes to parse for one figure: about half a second."""


def ordinary_pages() -> bytes:
    """A valid stream of PAGES different pages."""
    pages = b"".join(record(n, n.to_bytes(4, "big") * (PAGE // 4), first=n == 0) for n in range(PAGES))
    return opening(PAGES * PAGE) + ram_section(pages) + closing_part()


def rate(data: bytes) -> float:
    """Bytes parsed in a CPU second."""
    buffers = [data[at : at + READ_SIZE] for at in range(0, len(data), READ_SIZE)]
    times = max(1, TOTAL // len(data))
    spent = sum(_parse(buffers) for _ in range(times))
    return times * len(data) / spent


def _parse(buffers: Sequence[bytes]) -> float:
    before = time.process_time()
    stream = QemuStream()
    for buffer in buffers:
        stream.feed(buffer)
    stream.close()
    return time.process_time() - before


def main() -> None:
    """Measure and print."""
    figures = {"ordinary": rate(ordinary_pages())}
    if sys.argv[1:]:
        figures["sample"] = rate(Path(sys.argv[1]).read_bytes())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
