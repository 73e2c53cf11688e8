"""The end of a migration stream: device sections, the end mark, and the description of the devices.

    04 be32 id, u8 len, name, be32 instance, be32 version, state ..., 7e be32 id       a device, and the next
    00                                                                                 the end mark
    06 be32 len, JSON                                                                  vmdesc

A device section has no length and only the device knows its state, so sections cannot be walked. But the end
can be proved: an end mark after a section's footer, then a vmdesc of which exactly `len` bytes come, which is
JSON, and which lists devices that were all seen here, in that order. State is the guest's to choose, so what
looks like an end may be none: a candidate that fails is dropped and the search goes on.

Sources: QEMU migration/savevm.c, qemu_savevm_state_complete_precopy_non_iterable, vmstate_save.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from struct import Struct

from statepipe.stage import Buffer

# A bare PC's vmdesc has 100 KB, 3 KB a device. It bounds what is held in memory for a candidate.
MAX_VMDESC = 32 << 20
# More than any machine has devices. Guest-chosen bytes can make up sections, and this bounds their list; a list
# that is full proves nothing more, so then a vmdesc counts without it: a guest must not stop its own saving.
MAX_SECTIONS = 100_000
_GLOBALSTATE = 4 + 100  # size, then the run state padded with NUL (QEMU migration/global_state.c)

# One byte is consumed and the rest looked ahead at, so that made-up matches never hide a true one behind them.
_SECTION = re.compile(rb"\x7e(?=.{4}\x04(.{4})([\x01-\xff]))", re.DOTALL)
_SECTION_BARE = re.compile(rb"\x04(?=(\x00.{3})([\x01-\xff]))", re.DOTALL)
_END = re.compile(rb"\x7e(?=.{4}\x00\x06(.{4})\{)", re.DOTALL)
_END_BARE = re.compile(rb"\x00(?=\x06(.{4})\{)", re.DOTALL)
_BE32 = Struct(">I")

PARSED = 1 << 20
"""Bytes of a vmdesc that is parsed as a whole: Python makes up to 25 times as many of it. In a longer one, of hundreds
of devices, the beginnings of the devices are looked for as QEMU writes them (migration/savevm.c)."""
_DEVICE = re.compile(rb'\{"name": ?"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})", ?"instance_id": ?\d')


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What may be the end: offsets of its end mark, of its JSON, and of the first byte after."""

    mark: int
    text: int
    end: int


class DeviceTail:
    """Searches the end in the bytes after RAM. Offsets are those of the whole stream."""

    def __init__(self, offset: int, footer: bytes, names: Iterable[str]) -> None:
        """`footer` is the one just before `offset` (empty: a machine without them, before 2.4); `names` are
        device sections that came before RAM."""
        self.bare = not footer
        self.end_mark: int | None = None
        self.run_state: str | None = None
        self.names = list(names)
        self._lead = len(footer)  # bytes of a match that belong to the section before
        self._ids: set[bytes] = {footer[1:]}
        self._window = bytearray(footer)
        self._base = offset - len(footer)
        self._candidate: _Candidate | None = None
        self._clean = 0  # up to here the candidate's text has no NUL
        self._looked = self._base  # candidates that begin before this were seen
        self._scanned = self._base  # sections that begin before this are in the list

    @property
    def pending(self) -> bool:
        """Whether a vmdesc may be on its way."""
        return self._candidate is not None

    @property
    def ends_in_mark(self) -> bool:
        """Whether the bytes so far end in the footer of a section seen, and then 00."""
        last = bytes(self._window[-6:])
        return not self.bare and len(last) == 6 and last[0] == 0x7E and last[5] == 0 and last[1:5] in self._ids

    def feed(self, data: Buffer, at: int, end: int) -> int:
        """Take `data[at:end]`; returns where the stream ends in it, or `end` if it goes on."""
        start = self._base + len(self._window)
        self._window += data[at:end]
        finish = self._search_end()
        if finish is not None:
            return at + finish - start
        self._find_sections(self._base + len(self._window))
        self._forget()
        return end

    def _search_end(self) -> int | None:
        """Try candidates in their order; the stream's end if one holds.

        One at a time is enough: a candidate begins with a NUL, so the JSON of the one before ends earlier.
        """
        pattern = _END_BARE if self.bare else _END
        for match in pattern.finditer(self._window, self._looked - self._base):
            finish = self._judge()
            if finish is not None:
                return finish
            mark, length = self._base + match.start() + self._lead, _BE32.unpack(match[1])[0]
            self._candidate = _Candidate(mark, mark + 6, mark + 6 + length) if length <= MAX_VMDESC else None
            self._clean = mark + 6
        # A match looks at lead + 7 bytes, so one that starts among the last lead + 6 is still to come.
        self._looked = max(self._looked, self._base + len(self._window) - self._lead - 6)
        return self._judge()

    def _judge(self) -> int | None:
        """Try the candidate; its end if it is the stream's, else None, and no candidate left if it cannot be."""
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
        devices = self._described(text)
        if not devices:
            return None
        self.names, self.end_mark = devices, candidate.mark
        return candidate.end

    def _described(self, text: bytes) -> list[str]:
        """The names of the devices that a vmdesc lists; none if `text` is not one, or not of this stream."""
        if not text.endswith(b"}"):
            return []
        names = _names_in(text) if len(text) > PARSED else _names_parsed(text)
        seen, overflow = iter(self.names), len(self.names) == MAX_SECTIONS
        return names if overflow or all(name in seen for name in names) else []

    def _find_sections(self, limit: int) -> None:
        """Note the sections whose headers lie before the stream offset `limit`."""
        pattern = _SECTION_BARE if self.bare else _SECTION
        stop = limit - self._base
        for match in pattern.finditer(self._window, self._scanned - self._base, stop):
            if not self._section(match.start() + self._lead, match[1], match[2][0], stop):
                self._scanned = self._base + match.start()
                return
        self._scanned = max(self._scanned, limit - self._lead - 5)

    def _section(self, at: int, number: bytes, length: int, stop: int) -> bool:
        """Note the section that may begin at `at` in the window; False if its header is cut at `stop`."""
        state = at + 6 + length + 8
        name = bytes(self._window[at + 6 : min(at + 6 + length, stop)])
        if not name.isascii() or not name.decode("ascii").isprintable():
            return True
        need = state + (_GLOBALSTATE if name == b"globalstate" else 0)
        if need > stop:
            return False
        self._add(name.decode("ascii"), number)
        if name == b"globalstate" and self.run_state is None:
            self.run_state = self._window[state + 4 : need].split(b"\0")[0].decode("ascii", "replace")
        return True

    def _add(self, name: str, number: bytes) -> None:
        if len(self.names) < MAX_SECTIONS:
            self.names.append(name)
            self._ids.add(number)

    def _forget(self) -> None:
        """Drop what neither a candidate nor a header that is cut can still need."""
        text = self._candidate.text if self._candidate else self._looked
        keep = min(text, self._looked, self._scanned, self._base + len(self._window) - 6)
        if keep - self._base > 1 << 16:
            del self._window[: keep - self._base]
            self._base = keep


def _names_parsed(text: bytes) -> list[str]:
    """The devices in a vmdesc; none if it is not one."""
    try:
        names = [device["name"] for device in json.loads(text)["devices"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return names if all(isinstance(name, str) for name in names) else []


def _names_in(text: bytes) -> list[str]:
    """The same of one that is too long to be parsed."""
    return [match[1].decode("ascii") for match in islice(_DEVICE.finditer(text), MAX_SECTIONS)]
