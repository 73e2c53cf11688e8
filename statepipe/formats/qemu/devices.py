"""The end of a migration stream: device sections, the end mark, and the description of the devices.

    04 be32 id, u8 len, name, be32 instance, be32 version, state ..., 7e be32 id       a device, and the next
    00                                                                                 the end mark
    06 be32 len, JSON                                                                  vmdesc

A device section has no length and only the device knows its state, so sections cannot be walked. But the end can be
proved: an end mark after a section's footer, then a vmdesc of exactly `len` bytes, which lists devices that were all
seen in this stream, in that order. The guest controls the bytes of its state and can imitate an end, so
a candidate that fails is dropped and the search continues.

Sources: QEMU migration/savevm.c, qemu_savevm_state_complete_precopy_non_iterable, vmstate_save.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import islice
from struct import Struct

from statepipe.stage import Buffer
from statepipe.typed import NamedTuple

# A minimal PC's vmdesc has 100 KB, 3 KB a device. This limits the memory that a candidate can use.
MAX_VMDESC = 32 << 20
# More devices than any machine has. Bytes that the guest controls can imitate sections, and this limits their list.
# A full list proves nothing, so a vmdesc is then accepted without it: a guest must not be able to prevent its saving.
MAX_SECTIONS = 100_000
_GLOBALSTATE = 4 + 100  # size, then the run state padded with NUL (QEMU migration/global_state.c)

# A match consumes one byte and looks ahead at the rest, so that a false match never hides a true one.
_SECTION = re.compile(rb"\x7e(?=.{4}\x04(.{4})([\x01-\xff]))", re.DOTALL)
_SECTION_BARE = re.compile(rb"\x04(?=(\x00.{3})([\x01-\xff]))", re.DOTALL)
_END = re.compile(rb"\x7e(?=.{4}\x00\x06(.{4})\{)", re.DOTALL)
_END_BARE = re.compile(rb"\x00(?=\x06(.{4})\{)", re.DOTALL)
_BE32 = Struct(">I")

# The text that begins a device (QEMU migration/savevm.c). To search for it takes 0.3 ms for 100 KB, while a guest that
# moves stands still; json.loads takes 1 ms, and 4 if the processor has done something else before.
_DEVICE = re.compile(rb'\{"name": ?"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})", ?"instance_id": ?\d')

PARSED = 1 << 20
"""Bytes of a vmdesc that is parsed whole if not all of its devices were found so, for which Python needs up to 25 times
as much memory."""


class _Candidate(NamedTuple):
    """A possible end: offsets of its end mark, of its JSON, and of the first byte after."""

    mark: int
    text: int
    end: int


class DeviceTail:
    """Searches the bytes after RAM for the end. Offsets are those in the whole stream."""

    def __init__(self, offset: int, footer: bytes, names: Iterable[str]) -> None:
        """`footer` is the one just before `offset` (empty: machines before 2.4 have no footers); `names` are the device
        sections that came before RAM."""
        self.bare = not footer
        self.end_mark: int | None = None
        self.run_state: str | None = None
        self.names = list(names)
        self._lead = len(footer)  # bytes of a match that belong to the section before
        self._ids: set[bytes] = {footer[1:]}
        self._window = bytearray(footer)
        self._base = offset - len(footer)
        self._candidate: _Candidate | None = None
        self._clean = 0  # the candidate's text has no NUL up to here
        self._looked = self._base  # candidates that begin before this were seen
        self._scanned = self._base  # sections that begin before this are in the list

    @property
    def pending(self) -> bool:
        """Whether a vmdesc may have begun."""
        return self._candidate is not None

    @property
    def ends_in_mark(self) -> bool:
        """Whether the bytes so far end with the footer of a known section and then 00."""
        last = bytes(self._window[-6:])
        return not self.bare and len(last) == 6 and last[0] == 0x7E and last[5] == 0 and last[1:5] in self._ids

    def feed(self, data: Buffer, at: int, end: int) -> int:
        """Take `data[at:end]`; return the position where the stream ends, or `end` if it continues."""
        start = self._base + len(self._window)
        self._window += data[at:end]
        finish = self._search_end()
        if finish is not None:
            return at + finish - start
        self._find_sections(self._base + len(self._window))
        # Drop bytes that neither a candidate nor an incomplete header needs.
        text = self._candidate.text if self._candidate else self._looked
        keep = min(text, self._looked, self._scanned, self._base + len(self._window) - 6)
        if keep - self._base > 1 << 16:
            del self._window[: keep - self._base]
            self._base = keep
        return end

    def _search_end(self) -> int | None:
        """Test candidates in order; return the stream's end if one is proved, else None.

        One candidate at a time is enough: it begins with a NUL, so the JSON of the previous one ends before it.
        """
        pattern = _END_BARE if self.bare else _END
        for match in pattern.finditer(self._window, self._looked - self._base):
            finish = self._judge()
            if finish is not None:
                return finish
            mark, length = self._base + match.start() + self._lead, _BE32.unpack(match[1])[0]
            self._candidate = _Candidate(mark, mark + 6, mark + 6 + length) if length <= MAX_VMDESC else None
            self._clean = mark + 6
        # A match needs lead + 7 bytes, so one that starts in the last lead + 6 can only be found later.
        self._looked = max(self._looked, self._base + len(self._window) - self._lead - 6)
        return self._judge()

    def _judge(self) -> int | None:
        """Test the candidate; return its end if it ends the stream, else None. Drops a candidate that failed."""
        candidate, available = self._candidate, self._base + len(self._window)
        if candidate is None:
            return None
        stop = min(candidate.end, available)
        if self._window.find(0, self._clean - self._base, stop - self._base) >= 0:
            self._candidate = None
            return None
        self._clean = stop
        if candidate.end > available:
            return None
        self._candidate = None
        self._find_sections(candidate.end)
        with memoryview(self._window) as window:
            text = bytes(window[candidate.text - self._base : candidate.end - self._base])
        devices = _devices_in(text)
        seen, overflow = iter(self.names), len(self.names) == MAX_SECTIONS
        if not devices or not (overflow or all(name in seen for name in devices)):  # not the vmdesc of this stream
            return None
        self.names, self.end_mark = devices, candidate.mark
        return candidate.end

    def _find_sections(self, limit: int) -> None:
        """Record the possible sections whose headers are before the stream offset `limit`."""
        pattern = _SECTION_BARE if self.bare else _SECTION
        stop = limit - self._base
        for match in pattern.finditer(self._window, self._scanned - self._base, stop):
            at, number = match.start() + self._lead + 6, match[1]
            state = at + match[2][0] + 8
            name = bytes(self._window[at : min(state - 8, stop)])
            if not name.isascii() or not name.decode("ascii").isprintable():
                continue
            need = state + (_GLOBALSTATE if name == b"globalstate" else 0)
            if need > stop:  # the header is incomplete
                self._scanned = self._base + match.start()
                return
            if len(self.names) < MAX_SECTIONS:
                self.names.append(name.decode("ascii"))
                self._ids.add(number)
            if name == b"globalstate" and self.run_state is None:
                self.run_state = self._window[state + 4 : need].split(b"\0")[0].decode("ascii", "replace")
        self._scanned = max(self._scanned, limit - self._lead - 5)


def _devices_in(text: bytes) -> list[str]:
    """Return the devices that a vmdesc lists; empty if `text` is not a vmdesc."""
    if not text.endswith(b"}"):
        return []
    found = [match[1].decode("ascii") for match in islice(_DEVICE.finditer(text), MAX_SECTIONS)]
    is_list = bool(found) and text.endswith(b"]}") and b'"devices"' in text
    if (is_list and text.count(b'"instance_id"') == len(found)) or len(text) > PARSED:
        return found
    try:
        names = [device["name"] for device in json.loads(text)["devices"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return names if all(isinstance(name, str) for name in names) else []
