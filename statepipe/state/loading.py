"""What loading a state has in common, however it reaches QEMU: open it, ask what it proves, hold the end back.

A file of ours is read at both ends first: without its trailer there is no state, and a disk that changed since the
save refuses it, before a byte is let out; of the disks that it names, only those are looked at which QEMU has. Then it
is decoded, every frame checked before it leaves, and everything from QEMU's end mark on is held until the digest of the
whole agrees. A stream of other making (raw, or in any codec) is loaded too, followed by the parser instead; what cannot
be proved of it is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.beginning import HEAD
from statepipe.formats.qemu.stream import Phase, QemuStream
from statepipe.formats.statefile import (
    HEADER,
    LEAST_FRAME,
    META_LIMIT,
    META_MAGIC,
    SEEK_ENTRY_SIZE,
    SEEK_FOOTER_SIZE,
    SEEK_TABLE_LIMIT,
    TRAILER,
    Facts,
    Meta,
    check_state_trailer,
    check_version,
    decode_meta,
    seek_table_size,
    sum_seek_table,
)
from statepipe.pipeline.pipeline import NamedStage
from statepipe.qemu.commandline import starts_qemu
from statepipe.qemu.disks import Disk
from statepipe.qemu.guard import Said, Warn, judge, named, unknown
from statepipe.qemu.guest import changed_words, changes
from statepipe.qemu.images import Images
from statepipe.qemu.runstates import RUNNING
from statepipe.stages.checksum import verify
from statepipe.stages.codec import RAW, decompress
from statepipe.stages.watch import LATE, ends_at, hold, watch
from statepipe.state.file import StateFile, demand_stream

HOLD_LIMIT = 256 << 20
"""Bytes of device state held back at the most: a bare PC has 100 KB, a big GPU some tens of MB."""


@dataclass(frozen=True, slots=True)
class Ends:
    """What both ends of a file say: header and trailer if it is ours, else the codec of a foreign stream."""

    codec: str
    header: Facts | None = None
    trailer: Facts | None = None

    @property
    def is_state(self) -> bool:
        """Whether it is a state file of ours."""
        return self.trailer is not None and self.header is not None and self.header.get("kind") == "state"


def read_ends(source: StateFile) -> Ends:
    """Look at both ends of the file without moving its position.

    Raises TruncatedError for a file of ours without its trailer, IntegrityError for one that is damaged there or
    in no format we know, StatepipeError for one of a later version.
    """
    header = _meta_at(source, 0)
    if header is not None and header.kind == HEADER:
        check_version(header.facts)
    trailer = _find_trailer(source)
    if header is None and trailer is None:
        return Ends(_foreign(source))
    if header is None or header.kind != HEADER:
        raise IntegrityError("the beginning of the file is damaged: its header is missing", offset=0)
    if trailer is None:
        hint = "the file was cut short, is still being copied, or something was added to it: it cannot be trusted"
        raise TruncatedError("the trailer is missing: without it there is no state", hint=hint, offset=source.size())
    ends = Ends("zstd", header.facts, trailer.facts)
    if ends.is_state:
        check_state_trailer(trailer.facts, source.size())
    return ends


def _foreign(source: StateFile) -> str:
    return demand_stream(source.name, source.tail(0, HEAD))


def _meta_at(source: StateFile, offset: int, size: int | None = None) -> Meta | None:
    """The metadata frame of ours at `offset`, if there is one."""
    head = source.tail(offset, 8)
    length = int.from_bytes(head[4:8], "little")
    if int.from_bytes(head[:4], "little") != META_MAGIC or length > META_LIMIT or size not in (None, length + 8):
        return None
    payload = source.tail(offset + 8, length)
    return decode_meta(payload, offset) if len(payload) == length else None


def _find_trailer(source: StateFile) -> Meta | None:
    """The frame before the seek table, if that is a trailer. Raises IntegrityError if bytes were lost or added."""
    end = source.size()
    size = seek_table_size(source.tail(max(end - SEEK_FOOTER_SIZE, 0), SEEK_FOOTER_SIZE))
    if size is None or size > min(SEEK_TABLE_LIMIT, end) or not _has_room(size, end - size):
        return None
    total, last = sum_seek_table(_table_parts(source, end - size, size))
    if last is None or last[1] or last[0] > end - size:
        return None
    meta = _meta_at(source, end - size - last[0], last[0])
    if meta is None or meta.kind != TRAILER:
        return None
    if (listed := total + size) != end:
        raise IntegrityError(f"the file has {end} bytes, its seek table lists {listed}", offset=end - size)
    return meta


def _has_room(table: int, rest: int) -> bool:
    """Whether the `rest` bytes of a file can be all the frames that a table of so many bytes lists."""
    return (table - SEEK_FOOTER_SIZE) // SEEK_ENTRY_SIZE * LEAST_FRAME <= rest + LEAST_FRAME


TABLE_READ = 128 << 10
"""Bytes of a seek table that are in memory at a time: whole entries."""


def _table_parts(source: StateFile, start: int, size: int) -> Iterator[bytes]:
    """The entries of the table's frame of `size` bytes at `start`, some at a time. Raises IntegrityError."""
    at, stop = start + LEAST_FRAME, start + size - SEEK_FOOTER_SIZE
    while at < stop:
        part = source.tail(at, min(TABLE_READ, stop - at))
        if len(part) % SEEK_ENTRY_SIZE or not part:
            raise IntegrityError("the file became shorter while it was read", offset=at)
        yield part
        at += len(part)


@dataclass(frozen=True, slots=True)
class State:
    """A state ready to be loaded: where it comes from, through which stages, and what is not proved of it.

    Its disks are still to be looked at, once it is known which QEMU it is for: `refuse_changed_disks`.
    """

    source: StateFile
    stages: list[NamedStage]
    doubts: str | None
    ends: Ends
    stream: QemuStream | None

    @property
    def run_state(self) -> str | None:
        """The guest's run state when it was saved, or before, if it was stopped for that; of a foreign stream it is
        known once it has flowed."""
        if self.ends.trailer is not None:
            return RUNNING if self.ends.trailer.get("stopped_for_it") else self.ends.trailer.get("run_state")
        return self.stream.run_state if self.stream else None

    @property
    def is_live(self) -> bool:
        """Whether the guest ran on while it was saved."""
        return bool((self.ends.header or {}).get("live"))

    @property
    def disks(self) -> list[Disk]:
        """What it says of the guest's disks; a foreign stream says nothing."""
        return self.ends.trailer.get("disks") or [] if self.ends.is_state and self.ends.trailer else []

    def refuse_other_machine(self, now: str) -> None:
        """Raises StatepipeError for a QEMU whose machine is of another type than the guest's. On another board all
        devices are elsewhere, so this is looked at before they are, and QEMU takes no such guest by any word."""
        told = (facts.get("machine") for facts in (self.ends.header, self.ends.trailer) if facts)
        saved = next((machine for machine in told if machine), None)
        if saved is not None and saved != now:
            raise StatepipeError(
                f"this QEMU's machine is {now}, and the guest's was {saved}",
                hint=f"start QEMU with -machine {saved}; -machine help lists those that it has",
            )

    def refuse_changed_disks(self, its: Images | None, said: Said, warn: Warn) -> None:
        """Raises StatepipeError for disks that changed since the save, that QEMU has not, or has elsewhere, unless
        `said` has another word on them.

        `its` are the images that QEMU has, None where no QEMU is to be seen.
        """
        judge(self.disks, its, said.of(self.disks), warn, live=self.is_live)

    def refuse_changed_before(self, command: Sequence[str], said: Said) -> None:
        """The same of the disks that a QEMU's command line names: then it need not be started."""
        word = said.of(self.disks)
        if starts_qemu(command):
            judge(named(self.disks, command, word), None, word, lambda text: None, live=self.is_live)

    def refuse_other_hardware(self, now: Facts | None, command: Sequence[str] | None, said: Said, warn: Warn) -> None:
        """Raises StatepipeError for what the guest had at the save and would miss, unless `said` takes it as it is.

        `now` is the hardware of the QEMU that is to have it (hardware.py), and its RAM; `command` its command line,
        which must do where QEMU told one side no more.
        """
        header = self.ends.header or {}
        found: list[tuple[str, str]] = []
        if "hardware" in header and now is not None:
            found = list(changes(header["hardware"] | {"ram": header.get("ram")}, now))
        elif "command" in header and command:
            found = list(changed_words(header["command"], command))
        for part, text in found:
            if part in said.forced:
                warn(f"{text}: taken as it is, as --force says")
        if left := [(part, text) for part, text in found if part not in said.forced]:
            hint = "start QEMU with the guest's own command line, and plug in what was plugged in while it ran"
            forcing = " ".join(f"--force {part}" for part, _ in left)
            raise StatepipeError(
                f"this QEMU's machine is not the guest's: {'; '.join(text for _, text in left)}",
                hint=f"{hint}; or overrule with {forcing}",
            )


def prepare(source: StateFile) -> State:
    """Check what can be checked of an open file by itself, before its bytes flow.

    Raises StatepipeError: damage at either end.
    """
    ends = read_ends(source)
    if not ends.is_state or ends.trailer is None:
        return foreign_state(source, ends)
    return State(source, _own_stages(ends.trailer), unknown(ends.trailer.get("disks")), ends, None)


def _own_stages(trailer: Facts) -> list[NamedStage]:
    """What the trailer says of the end mark holds for a whole file; in one that is not, QEMU may meet one before."""
    stream, end_mark = QemuStream(), int(trailer["end_mark"])

    def late(offset: int) -> bool:
        return offset > end_mark or stream.phase in (Phase.VMDESC, Phase.END) or stream.could_end_here

    return [
        ("decompress", decompress()),
        ("verify", verify(trailer["blake3"], "blake3")),
        ("watch", watch(stream)),
        ("watch", ends_at(stream, end_mark)),
        ("hold", hold(late, HOLD_LIMIT)),
    ]


def foreign_state(source: StateFile, ends: Ends) -> State:
    """The parser must see the end of the stream before QEMU does."""
    stream = QemuStream()
    stages: list[NamedStage] = [] if ends.codec == RAW else [("decompress", decompress())]
    stages += [("watch", watch(stream)), ("hold", hold(lambda offset: stream.phase in LATE, HOLD_LIMIT))]
    unproved = "its disks are" if ends.trailer else "its pages and its disks are"
    what = f"{source.name} is a {ends.codec} stream, not a state file"
    doubts = f"{what}: its structure is checked, but that {unproved} unchanged cannot be proved"
    return State(source, stages, doubts, ends, stream)
