"""The index of pages that a state file holds, read where it lies and held against what the trailer says of it."""

from __future__ import annotations

from statepipe.errors import IntegrityError
from statepipe.formats.metadata import IN_FRAMES, Facts
from statepipe.formats.qemu.pageframes import decode_index
from statepipe.formats.qemu.pages import PageIndex
from statepipe.formats.statefile import index_contents
from statepipe.shapes import Misshapen, check
from statepipe.state.loading import Ends
from statepipe.state.source import StateFile

INDEX_LIMIT = 40 << 20
"""Bytes of an index's frames at most: MAX_RUNS runs that do not compress have 37 MiB. A usual index has a few KiB."""


def index_facts(ends: Ends) -> Facts | None:
    """What the trailer says of the index in the file, if the file holds one. Raises IntegrityError."""
    facts: Facts | None = (ends.trailer or {}).get("index")
    if not ends.is_state or facts is None or "frames" not in facts:
        return None
    try:
        check(facts, IN_FRAMES)
    except Misshapen as error:
        raise IntegrityError(f"the trailer of the file is damaged: {error}", offset=ends.trailer_at) from error
    return facts


def read_index(source: StateFile, ends: Ends) -> PageIndex | None:
    """The index in an open file, if it holds one, and nothing else is read. Raises IntegrityError."""
    facts = index_facts(ends)
    if facts is None or ends.trailer is None:
        return None
    at = ends.trailer_at - facts["size"]
    if at < 0 or facts["size"] > INDEX_LIMIT:
        raise IntegrityError(f"the trailer announces a page index of {facts['size']} bytes", offset=ends.trailer_at)
    index = decode_index(index_contents(source.tail(at, facts["size"]), facts, at), at)
    counts = {"runs": index.runs, "stored": index.stored, "zero": index.zero}
    if any(facts[name] != count for name, count in counts.items()):
        raise IntegrityError("the page index has other numbers of pages than the trailer announces", offset=at)
    if index.outline.devices[1] != ends.trailer["end_mark"]:
        raise IntegrityError("the page index and the trailer disagree on the place of the end mark", offset=at)
    return index
