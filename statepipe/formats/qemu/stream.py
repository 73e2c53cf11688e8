"""QEMU's migration stream, parsed as it flows, without copying a page and without any I/O.

    51 45 56 4d 00 00 00 03                     magic and version                            HEADER
    07 machine, subsections                     configuration (machines since 2.4)
    01 "ram" ... 7e                             the RAM blocks; other live sections begin    SETUP
    02 "ram" ... 7e                             rounds of pages                              RAM
    03 "ram" ... 7e                             the last pages, the guest is stopped
    04 "name" ... 7e                            one section a device                         DEVICES
    00 06 len JSON                              the end mark and the vmdesc                  VMDESC, END

Commands (08) can come between sections. A background snapshot has no 03 for RAM; a machine before 2.4 has neither
configuration nor footers (7e); with `suppress-vmdesc` the end mark is the only sign of the end; after postcopy the
devices come in a package before the last pages, and no vmdesc follows.

This module takes buffers as they arrive and collects the facts; the grammar is in sections.py.
"""

from __future__ import annotations

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.qemu.pages import PageIndex, PageRecorder
from statepipe.formats.qemu.ram import PageCounts, RamBlock
from statepipe.formats.qemu.sections import Phase, Sections
from statepipe.stage import Buffer

__all__ = ["PageCounts", "Phase", "QemuStream", "RamBlock"]

# More than any header that must be complete before it is parsed: a list of 32 capabilities has at most 8 KiB.
LOOK_AHEAD = 16 << 10


class QemuStream:
    """Parses one migration stream: `feed` it all bytes, then `close` it. The attributes are the facts seen so far.

    After an error the parser must not be used again.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._sections = Sections()
        self._cut = b""  # the beginning of a header whose rest is in the next buffer
        self._beyond = 0  # bytes of the next buffers that belong to the page being skipped

    def feed(self, data: Buffer) -> int:
        """Parse the next bytes; return how many of them belong to the stream.

        These are all of them, unless the end mark and vmdesc are completed inside `data`; after that, 0.
        Raises IntegrityError with the offset in the stream for bytes that QEMU does not write.
        """
        if self.complete:
            return 0
        size = len(data)
        at = self._join(data) if self._cut else self._beyond
        if not self._cut and not self.complete:
            self._sections.origin = self.offset
            at = self._sections.follow(data, at, size)
            self._cut = b"" if self.complete else bytes(data[at:])
        self._beyond = max(at - size, 0)
        taken = at if self.complete else size
        self.offset += taken
        return taken

    def _join(self, data: Buffer) -> int:
        """Parse an incomplete header with as much of `data` as it may need; return the position in `data`."""
        before = len(self._cut)
        head = self._cut + bytes(data[:LOOK_AHEAD])
        self._sections.origin = self.offset - before
        at = self._sections.follow(head, 0, len(head))
        if at < before and not self.complete:
            if len(data) > LOOK_AHEAD:
                raise IntegrityError("a header longer than QEMU writes", offset=self._sections.origin)
            self._cut = head[at:]
            return len(data)
        self._cut = b""
        return at - before

    def close(self) -> None:
        """Report the end of the input. Accepts a stream without vmdesc if it ends with a footer and the end mark.

        Raises TruncatedError unless the stream is complete.
        """
        if self.complete:
            return
        if not self.could_end_here:
            where = f"in the {self.phase.value} phase, at byte {self.offset}, in round {self.rounds}"
            message, hint = f"the migration stream stops before its end, {where}", self._hint()
            raise TruncatedError(message, offset=self.offset, hint=hint)
        self._sections.accept_end(self.offset - 1)

    def _hint(self) -> str | None:
        tail = self._sections.tail
        bare = tail is not None and tail.bare
        return (
            "use a machine type of 2.3 or later: older ones write nothing that proves the end of the stream"
            if bare
            else None
        )

    def record_pages(self) -> None:
        """Record from now on where each page is, for `page_index`. To be called before the first byte."""
        self._sections.recorder = self._sections.ram.recorder = PageRecorder()

    def page_index(self) -> PageIndex:
        """Return where each page of a complete stream is, if `record_pages` was called."""
        return self._sections.page_index()

    def take_pings(self) -> list[int]:
        """Return the values of the PING commands since the last call. Each needs a PONG on the return path."""
        pings, self._sections.pings = self._sections.pings, []
        return pings

    @property
    def complete(self) -> bool:
        """Whether the end mark and the whole vmdesc were seen, or `close` accepted the end mark alone."""
        return self._sections.proof is not None

    @property
    def could_end_here(self) -> bool:
        """Whether a stream without vmdesc (suppress-vmdesc) could end here: after a footer and 00."""
        tail = self._sections.tail
        return self.phase is Phase.DEVICES and tail is not None and tail.ends_in_mark

    @property
    def proof(self) -> str | None:
        """What proved the end, once complete: "vmdesc", or the weaker "end mark"."""
        return self._sections.proof

    @property
    def phase(self) -> Phase:
        """The phase. VMDESC is a guess: the phase returns to DEVICES if the bytes were not a vmdesc."""
        phase, tail = self._sections.phase, self._sections.tail
        return Phase.VMDESC if phase is Phase.DEVICES and tail is not None and tail.pending else phase

    @property
    def machine(self) -> str | None:
        """The machine type, such as "pc-i440fx-7.2"; None for machines before 2.4."""
        return self._sections.configuration.machine

    @property
    def uuid(self) -> str | None:
        """The guest's UUID, which QEMU writes with the capability validate-uuid; else None."""
        return self._sections.configuration.uuid

    @property
    def page_size(self) -> int:
        """Bytes in a page of the guest; 4096 unless the stream or the machine type says otherwise."""
        return self._sections.ram.page_size

    @property
    def blocks(self) -> dict[str, RamBlock]:
        """The RAM blocks by name, in the stream's order."""
        return self._sections.ram.blocks

    @property
    def ram_bytes(self) -> int:
        """The total length of all RAM blocks in bytes."""
        return self._sections.ram.total

    @property
    def pages(self) -> PageCounts:
        """How many pages were sent, by encoding."""
        return self._sections.ram.counts

    @property
    def place(self) -> tuple[str, int]:
        """The name of the RAM block and the page in it that were sent last."""
        return self._sections.ram.place

    @property
    def rounds(self) -> int:
        """How many times QEMU read the dirty bitmap, as far as the order of pages shows it (ram.py)."""
        return self._sections.ram.rounds

    @property
    def switchover(self) -> int | None:
        """The offset where the final phase begins, in which the guest is stopped."""
        return self._sections.switchover

    @property
    def end_mark(self) -> int | None:
        """The offset of the end mark, once complete."""
        return self._sections.end_mark

    @property
    def return_path(self) -> bool:
        """Whether QEMU opened the return path: it waits for a SHUT there."""
        return self._sections.return_path

    @property
    def postcopy(self) -> bool:
        """Whether the guest switched to the destination before its RAM was complete there."""
        return self._sections.postcopy

    @property
    def demanded(self) -> tuple[str, ...]:
        """The capabilities that a QEMU must have to load the stream. A QEMU has none of them by default, and does not
        have the memory that x-ignore-shared leaves out."""
        return self._sections.demanded

    @property
    def devices(self) -> tuple[str, ...]:
        """The device sections in the order of the vmdesc; before it arrives, those found so far."""
        tail = self._sections.tail
        return tuple(tail.names if tail else self._sections.early_devices)

    @property
    def run_state(self) -> str | None:
        """The guest's run state when its devices were saved, such as "running"; None for machines before 2.4."""
        return self._sections.tail.run_state if self._sections.tail else None

    def facts(self) -> dict[str, object]:
        """All of the above, ready for JSON."""
        names = ("machine", "uuid", "page_size", "ram_bytes", "rounds", "switchover", "end_mark")
        more = ("run_state", "return_path", "postcopy", "proof")
        return {
            **{name: getattr(self, name) for name in names + more},
            "phase": self.phase.value,
            "blocks": [block._asdict() for block in self.blocks.values()],
            "pages": self.pages.by_name(),
            "devices": list(self.devices),
            "bytes": self.offset,
        }
