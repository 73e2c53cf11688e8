"""The grammar of a migration stream: from one section to the next.

A step is a method that takes (data, at, end) and returns its new position: `at` if more bytes are needed, and a
position beyond `end` if the rest of a page is in later buffers. RAM marks its own end (ram.py). Live sections other
than RAM are opaque: they end at a footer with their own number, followed by anything that can follow a section.
devices.py handles the devices at the end.

Source: QEMU migration/savevm.c, qemu_loadvm_state_main and qemu_savevm_state_{header,setup,iterate,complete_precopy}.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from struct import Struct

from statepipe.errors import IntegrityError
from statepipe.formats.beginning import SHOWN, beginning
from statepipe.formats.qemu.configuration import SUBSECTION, Configuration, name_at
from statepipe.formats.qemu.devices import DeviceTail
from statepipe.formats.qemu.pages import Outline, PageIndex, PageRecorder
from statepipe.formats.qemu.ram import RamPages
from statepipe.stage import Buffer

MAGIC = b"QEVM\0\0\0\x03"
EOF, START, PART, END, FULL, CONFIGURATION, COMMAND, FOOTER = 0, 1, 2, 3, 4, 7, 8, 0x7E
OPEN_RETURN_PATH, PING, POSTCOPY_ADVISE, POSTCOPY_LISTEN, POSTCOPY_RUN = 1, 2, 3, 4, 5
PACKAGED, ENABLE_COLO, SWITCHOVER_START = 7, 8, 11
# The commands of a fixed length; QEMU migration/savevm.c, mig_cmd_args.
COMMAND_LENGTHS = {OPEN_RETURN_PATH: 0, PING: 4, POSTCOPY_LISTEN: 0, POSTCOPY_RUN: 0, PACKAGED: 4, SWITCHOVER_START: 0}
MAX_EARLY = 10_000  # sections that begin before the devices: RAM, a bitmap a disk, and each virtio-mem
LAST_COMMAND = 0xFF  # 11 are known; a newer one is skipped by its length

_BE16, _BE32, _BE64 = Struct(">H"), Struct(">I"), Struct(">Q")


class Phase(enum.Enum):
    """Where in the stream the parser is."""

    HEADER = "header"
    SETUP = "setup"
    RAM = "ram"
    DEVICES = "devices"
    VMDESC = "vmdesc"
    END = "end"


class Sections:
    """Walks the sections and collects their facts. `origin` is the stream offset of the current buffer."""

    def __init__(self) -> None:
        self.origin = 0
        self.phase = Phase.HEADER
        self.configuration = Configuration()
        self.ram = RamPages()
        self.tail: DeviceTail | None = None
        self.early_devices: list[str] = []  # saved during setup (virtio-mem)
        self.pings: list[int] = []
        self.return_path = False
        self.postcopy = False
        self._demanded: set[str] = set()  # capabilities, besides those that `ram` and `configuration` show
        self.switchover: int | None = None
        self.end_mark: int | None = None
        self.proof: str | None = None
        self.recorder: PageRecorder | None = None
        self._head = 0  # the offset of what follows the configuration
        self._devices_at = 0  # the offset of the first device
        self._step: Callable[[Buffer, int, int], int] = self._magic
        self._live: dict[int, str] = {}  # sections that were started, by number
        self._kind = self._number = self._start = 0  # of the current section: its first byte, number and offset
        self._opaque_footer = re.compile(b"")
        self._footers: bool | None = None  # whether sections have them; the first section shows it
        self._ram_ended = False

    def follow(self, data: Buffer, at: int, end: int) -> int:
        """Parse as much of `data[at:end]` as possible; return the new position.

        Raises IntegrityError with the offset in the stream.
        """
        try:
            while at < end and not self.proof:
                step = self._step
                after = step(data, at, end)
                if after == at and step == self._step:
                    break
                at = after
        except IntegrityError as error:
            error.offset = self.origin + (error.offset or 0)
            raise
        return at

    @property
    def demanded(self) -> tuple[str, ...]:
        """The capabilities that a QEMU must have to load the stream, in order, as far as the stream has shown them."""
        shown = {"compress"} if self.ram.counts.compressed else set()
        return tuple(sorted(self._demanded | shown | set(self.configuration.capabilities)))

    # --- the head

    def _magic(self, data: Buffer, at: int, end: int) -> int:
        got = bytes(data[at : min(at + len(MAGIC), end)])
        if got != MAGIC[: len(got)]:
            head = bytes(data[at : min(at + SHOWN, end)])
            if head.startswith(MAGIC[:-1]) and len(head) >= len(MAGIC):
                raise IntegrityError(
                    f"unsupported version {head[7]} of QEMU's migration stream, expected {MAGIC[7]}", offset=at
                )
            raise IntegrityError(f"not a QEMU migration stream: it begins {beginning(head)}", offset=at)
        if len(got) < len(MAGIC):
            return at
        self._step = self._first
        return at + len(MAGIC)

    def _first(self, data: Buffer, at: int, end: int) -> int:
        if data[at] == CONFIGURATION:
            after = self.configuration.machine_at(data, at, end)
            if after > at:
                self._step = self._subsections
            return after
        self._begin_setup(at)
        return at

    def _subsections(self, data: Buffer, at: int, end: int) -> int:
        if data[at] == SUBSECTION:
            return self.configuration.subsection_at(data, at, end)
        self.ram.page_size = self.configuration.page_size or self.ram.page_size
        self.ram.shared = "x-ignore-shared" in self.configuration.capabilities
        self._begin_setup(at)
        return at

    def _begin_setup(self, at: int) -> None:
        self._step = self._section
        self.phase = Phase.SETUP
        self._head = self.origin + at

    # --- between sections

    def _section(self, data: Buffer, at: int, end: int) -> int:
        kind = data[at]
        if kind == COMMAND:
            return self._command(data, at, end)
        if kind in (PART, END):
            return self._live_section(data, at, end)
        if kind == FULL and self.phase is Phase.RAM:  # a background snapshot: its RAM has no END
            return self._begin_tail(at, b"\x7e" + _BE32.pack(self._number) if self._footers else b"")
        if kind in (START, FULL):
            return self._new_section(data, at, end)
        if kind == EOF and self.postcopy and self._ram_ended:  # its devices came before, in a package
            self.accept_end(self.origin + at)
            return at + 1
        raise IntegrityError(f"found the byte {kind:#04x}, expected the next section", offset=at)

    def _new_section(self, data: Buffer, at: int, end: int) -> int:
        name, after = name_at(data, at + 5, end)
        if not after or after + 8 > end:
            return at
        self._kind, self._number, self._start = data[at], _BE32.unpack_from(data, at + 1)[0], self.origin + at
        if len(self._live) + len(self.early_devices) >= MAX_EARLY:
            raise IntegrityError(f"more than {MAX_EARLY} sections before the devices", offset=at)
        if data[at] == FULL:
            self.early_devices.append(name)
        elif self._number in self._live:
            raise IntegrityError(f"section {self._number} begins twice", offset=at)
        else:
            self._live[self._number] = name
        self._enter(name, at)
        return after + 8

    def _live_section(self, data: Buffer, at: int, end: int) -> int:
        if at + 5 > end:
            return at
        self._kind, self._number, self._start = data[at], _BE32.unpack_from(data, at + 1)[0], self.origin + at
        name = self._live.get(self._number)
        if name is None:
            raise IntegrityError(f"a part of section {self._number}, which never began", offset=at)
        if data[at] == END:
            self._begin_switchover(at)
        if name == "ram":
            self.phase = Phase.RAM
            self._ram_ended = data[at] == END
            if self._ram_ended and not self.postcopy:
                self.ram.final_sync()
        self._enter(name, at)
        return at + 5

    def _enter(self, name: str, at: int) -> None:
        """Continue with the payload of the section called `name`."""
        if name == "ram":
            self.ram.at_end = False
            self._step = self._ram
            return
        if self._footers is False:
            raise IntegrityError(f"the section {name!r} has no footer, so its end cannot be found", offset=at)
        self._opaque_footer = re.compile(b"\x7e" + re.escape(_BE32.pack(self._number)))
        self._step = self._opaque

    # --- payloads

    def _ram(self, data: Buffer, at: int, end: int) -> int:
        self.ram.origin = self.origin
        after = self.ram.advance(data, at, end)
        if self.ram.at_end:
            self._step = self._ram_footer
        return after

    def _ram_footer(self, data: Buffer, at: int, end: int) -> int:
        if data[at] != FOOTER and self._footers is None and data[at] in (EOF, START, PART, END, FULL, COMMAND):
            self._footers = False
        if self._footers is False:
            return self._after_ram(at, b"")
        if at + 5 > end:
            return at
        footer = bytes(data[at : at + 5])
        if footer != b"\x7e" + _BE32.pack(self._number):
            raise IntegrityError(f"found {footer.hex(' ')}, expected the footer of section {self._number}", offset=at)
        self._footers = True
        return self._after_ram(at + 5, footer)

    def _after_ram(self, at: int, footer: bytes) -> int:
        if self._kind == START:
            self._record(self._kind, self._number, self._start, at)
        if self._ram_ended and not self.postcopy:
            return self._begin_tail(at, footer)
        self._step = self._section
        return at

    def _opaque(self, data: Buffer, at: int, end: int) -> int:
        for match in self._opaque_footer.finditer(data, at, end):
            follows = self._can_follow(data, match.end(), end)
            if follows is None:
                return match.start()
            if follows:
                self._footers = True
                self._step = self._section
                self._record(self._kind, self._number, self._start, match.end())
                return match.end()
        return max(at, end - 4)

    def _can_follow(self, data: Buffer, at: int, end: int) -> bool | None:
        """Return whether a section or a command begins at `at`; None if more bytes are needed."""
        kind = data[at] if at < end else None
        if kind in (PART, END):
            return None if at + 5 > end else _BE32.unpack_from(data, at + 1)[0] in self._live
        if kind in (START, FULL):
            name, after = name_at(data, at + 5, end)
            return name.isascii() and name.isprintable() and name != "" if after else None
        if kind == COMMAND:
            return None if at + 3 > end else 0 < _BE16.unpack_from(data, at + 1)[0] <= LAST_COMMAND
        return None if kind is None else kind == EOF and self.postcopy and self._ram_ended

    # --- commands

    def _command(self, data: Buffer, at: int, end: int) -> int:
        if at + 5 > end:
            return at
        command, length = _BE16.unpack_from(data, at + 1)[0], _BE16.unpack_from(data, at + 3)[0]
        if at + 5 + min(length, 16) > end:  # 16: the longest payload that is read
            return at
        if not 0 < command <= LAST_COMMAND or length != COMMAND_LENGTHS.get(command, length):
            raise IntegrityError(f"command {command} with {length} bytes", offset=at)
        after: int = at + 5 + length
        self._record(COMMAND, command, self.origin + at, after)
        if command == OPEN_RETURN_PATH:
            self.return_path = True
        elif command == PING:
            self.pings.append(_BE32.unpack_from(data, at + 5)[0])
        elif command == POSTCOPY_ADVISE:
            self._advise(data, at + 5, length)
        elif command == ENABLE_COLO:
            self._demanded.add("x-colo")
        elif command == SWITCHOVER_START:
            self._begin_switchover(at)
        elif command in (POSTCOPY_LISTEN, POSTCOPY_RUN, PACKAGED):
            self._begin_postcopy(at)
        return after + _BE32.unpack_from(data, at + 5)[0] if command == PACKAGED else after

    def _advise(self, data: Buffer, at: int, length: int) -> None:
        """Read POSTCOPY_ADVISE: the host page sizes combined with OR, and the guest's page size (empty: no RAM)."""
        if length != 16:
            return
        page_size = _BE64.unpack_from(data, at + 8)[0]
        if page_size.bit_count() != 1 or not 1 << 10 <= page_size <= 1 << 20:
            raise IntegrityError(f"a page of {page_size} bytes", offset=at + 8)
        self._demanded.add("postcopy-ram")
        self.ram.page_size = page_size
        self.ram.host_pages = _BE64.unpack_from(data, at)[0]

    def _begin_postcopy(self, at: int) -> None:
        if not self.postcopy:
            self.postcopy = self.ram.random_order = True
            self.ram.final_sync()
            self._begin_switchover(at)

    # --- the end

    def _begin_switchover(self, at: int) -> None:
        if self.switchover is None:
            self.switchover = self.origin + at

    def _begin_tail(self, at: int, footer: bytes) -> int:
        self._begin_switchover(at)
        self.phase = Phase.DEVICES
        self._devices_at = self.origin + at
        self.tail = DeviceTail(self.origin + at, footer, self.early_devices)
        self._step = self._devices
        return at

    def _devices(self, data: Buffer, at: int, end: int) -> int:
        assert self.tail is not None
        after = self.tail.feed(data, at, end)
        if self.tail.end_mark is not None:
            self.end_mark, self.proof, self.phase = self.tail.end_mark, "vmdesc", Phase.END
        return after

    def accept_end(self, mark: int) -> None:
        """Accept the end mark at offset `mark` as the end of a stream without vmdesc."""
        self.end_mark, self.proof, self.phase = mark, "end mark", Phase.END

    # --- the index of pages

    def _record(self, kind: int, number: int, start: int, end: int) -> None:
        """Report a section without pages, or a command, that begins at the offset `start`; `end` is in the buffer."""
        if self.recorder is not None:
            self.recorder.piece(kind, number, start, self.origin + end)

    def page_index(self) -> PageIndex:
        """Return what was recorded of a stream whose end was seen."""
        assert self.recorder is not None and self.end_mark is not None
        number = next((number for number, name in self._live.items() if name == "ram"), None)
        if self.postcopy:
            self.recorder.give_up("it went over to postcopy")
        elif self.ram.shared:
            self.recorder.give_up("memory that is shared is not in it (x-ignore-shared)")
        elif number is None:
            self.recorder.give_up("it has no section of RAM")
        devices = (self._devices_at, self.end_mark)
        blocks = tuple(self.ram.blocks.values())
        outline = Outline(self.ram.page_size, self._footers is not False, number or 0, self._head, devices, blocks)
        return self.recorder.finish(outline)
