"""The body of an answer, which a store may send byte by byte: never silent, and never at its end."""

from __future__ import annotations

import time
from collections.abc import Callable

from statepipe.objectstore.failures import unfit

SILENCES, SLOWEST = 3, 2048
"""Times the seconds of silence, and bytes a second besides, for one piece of an answer: less is none of a store's."""


def read_up_to(read1: Callable[[int], bytes], size: int, silence: float, doing: str) -> bytes:
    """Return the next `size` bytes, fewer at the end. `read1` returns some, at most as many as it is asked for.

    Raises Transient if they come one by one, and what `read1` raises.
    """
    pieces: list[bytes] = []
    count, began = 0, time.monotonic()
    while count < size and (piece := read1(size - count)):
        pieces.append(piece)
        count += len(piece)
        if time.monotonic() - began > SILENCES * silence + count / SLOWEST:
            raise unfit(f"sent {count} bytes in {time.monotonic() - began:.0f} s, and no end", doing)
    return b"".join(pieces)
