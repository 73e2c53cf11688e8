"""What every load has in common, however the state reaches QEMU: check both ends, verify, hold the end back.

A state file is read at both ends first: without its trailer there is no state, and a disk that changed since the save
is an error before any byte leaves. Of the disks that it names, only those that QEMU has are looked at. Then it is
decoded, every frame is checked before it leaves, and everything from QEMU's end mark on is held back until the digest
of the whole agrees. Other migration streams (raw, or in any codec) are loaded too: the parser follows them, and we warn
of what cannot be proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.beginning import HEAD
from statepipe.formats.libvirtimage import Domain
from statepipe.formats.metadata import (
    DOMAIN,
    HEADER,
    META_LIMIT,
    META_MAGIC,
    TRAILER,
    Facts,
    Meta,
    check_state_trailer,
    check_version,
    decode_meta,
    is_disguised,
)
from statepipe.formats.seektable import (
    LEAST_FRAME,
    SEEK_ENTRY_SIZE,
    SEEK_FOOTER_SIZE,
    SEEK_TABLE_LIMIT,
    seek_table_size,
    sum_seek_table,
)
from statepipe.formats.zstdframe import FRAME_MAGIC, SKIPPABLE_FIRST, SKIPPABLE_LAST
from statepipe.qemu.commandline import starts_qemu
from statepipe.qemu.disks import Disk
from statepipe.qemu.guard import Said, Warn, judge, named, unknown
from statepipe.qemu.guest import changed_words, changes
from statepipe.qemu.images import Images
from statepipe.qemu.runstates import PAUSED, RUNNING
from statepipe.stages.codec import RAW, ZSTD, decompress
from statepipe.state.file import demand_stream
from statepipe.state.saveimage import SaveImage, demand_format
from statepipe.state.source import StateFile, damage_named
from statepipe.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # what reads a whole stream takes 10 ms, which a lazy load need not pay
    from statepipe.formats.qemu.stream import QemuStream
    from statepipe.pipeline.pipeline import NamedStage

HOLD_LIMIT = 256 << 20
"""Most bytes of device state that are held back: a bare PC has 100 KB, a big GPU some tens of MB."""


class Ends(NamedTuple):
    """Both ends of a file: header and trailer if statepipe wrote it, else the codec of a foreign stream.

    `trailer_at` is the offset of the trailer's frame. `domain` is what libvirt knows of the guest, if libvirt ran it.
    `is_image` says that the file is a save image of libvirt's, with the rest in it.
    """

    codec: str
    header: Facts | None = None
    trailer: Facts | None = None
    trailer_at: int = 0
    domain: Domain | None = None
    is_image: bool = False

    @property
    def is_state(self) -> bool:
        """Whether it is a state file."""
        return self.trailer is not None and self.header is not None and self.header.get("kind") == "state"


def read_ends(source: StateFile) -> Ends:
    """Read both ends of the file without moving its position; of a save image of libvirt's, of the state in it.

    Raises TruncatedError for a file of ours without its trailer, IntegrityError for one that is damaged there or of an
    unknown format, StatepipeError for one of a later version.
    """
    with damage_named(source.name):
        ends = _read_ends(source)
    if not isinstance(source, SaveImage):
        return ends
    demand_format(source, ends.codec)
    return ends._replace(domain=source.domain, is_image=True)


def _read_ends(source: StateFile) -> Ends:
    header = _meta_at(source, 0)
    if header is not None and header.kind == HEADER:
        check_version(header.facts)
    trailer, trailer_at = _find_trailer(source)
    if header is None and trailer is None:
        return Ends(demand_stream(source.name, source.tail(0, HEAD)))
    if header is None or header.kind != HEADER:
        raise IntegrityError("the beginning of the file is damaged: its header is missing", offset=0)
    if trailer is None:
        hint = "the file was cut short, is still being copied, or something was added to it: it cannot be trusted"
        raise TruncatedError(f"{source.name} is incomplete: the trailer is missing", hint=hint, offset=source.size())
    ends = Ends("zstd", header.facts, trailer.facts, trailer_at, _domain(source))
    if ends.is_state:
        check_state_trailer(trailer.facts, source.size())
    return ends


def header_of(source: StateFile) -> Facts | None:
    """Return what the header at the beginning says, without a look at the rest; None if there is none that is whole."""
    try:
        meta = _meta_at(source, 0)
    except IntegrityError:
        return None
    return meta.facts if meta is not None and meta.kind == HEADER else None


def _domain(source: StateFile) -> Domain | None:
    """Return what is in the frame behind the header, if that describes a domain.

    Raises IntegrityError for damage there. This frame is read before the digest of the file is known, so a damaged
    description must not look like none.
    """
    at = LEAST_FRAME + int.from_bytes(source.tail(4, 4), "little")
    meta = _meta_at(source, at)
    if meta is None:
        _demand_another_frame(source, at)
    if meta is None or meta.kind != DOMAIN:
        return None
    from statepipe.formats.domainframe import decode_domain  # few files have one

    return decode_domain(meta.body, at)


def _demand_another_frame(source: StateFile, at: int) -> None:
    """Raises IntegrityError if what is at `at` is no frame that a reader skips or decodes, but damage."""
    head = source.tail(at, LEAST_FRAME)
    magic, length = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
    if magic == FRAME_MAGIC:
        return
    if not SKIPPABLE_FIRST <= magic <= SKIPPABLE_LAST or at + LEAST_FRAME + length > source.size():
        raise IntegrityError("what follows the header is damaged: it is no frame", offset=at)
    if length > META_LIMIT:
        if magic == META_MAGIC:
            raise IntegrityError("metadata larger than statepipe writes", offset=at)
    elif is_disguised(source.tail(at + LEAST_FRAME, length)):
        raise IntegrityError("the metadata behind the header are damaged: their magic number or tag", offset=at)


def _meta_at(source: StateFile, offset: int, size: int | None = None) -> Meta | None:
    """Return the metadata frame at `offset`, if there is one of ours."""
    head = source.tail(offset, 8)
    length = int.from_bytes(head[4:8], "little")
    if int.from_bytes(head[:4], "little") != META_MAGIC or length > META_LIMIT or size not in (None, length + 8):
        return None
    payload = source.tail(offset + 8, length)
    return decode_meta(payload, offset) if len(payload) == length else None


def _find_trailer(source: StateFile) -> tuple[Meta | None, int]:
    """Return the frame before the seek table if it is a trailer, and its offset.

    Raises IntegrityError if bytes were lost or added.
    """
    end = source.size()
    size = seek_table_size(source.tail(max(end - SEEK_FOOTER_SIZE, 0), SEEK_FOOTER_SIZE))
    if size is None or size > min(SEEK_TABLE_LIMIT, end):
        return None, 0
    if (size - SEEK_FOOTER_SIZE) // SEEK_ENTRY_SIZE * LEAST_FRAME > end - size + LEAST_FRAME:
        return None, 0  # the rest of the file has no room for so many frames
    total, last = sum_seek_table(table_parts(source, end - size, size))
    if last is None or last[1] or last[0] > end - size:
        return None, 0
    at = end - size - last[0]
    meta = _meta_at(source, at, last[0])
    if meta is None or meta.kind != TRAILER:
        return None, 0
    if (listed := total + size) != end:
        raise IntegrityError(f"the file has {end} bytes, its seek table lists {listed}", offset=end - size)
    return meta, at


TABLE_READ = 128 << 10
"""Bytes of a seek table that are in memory at once: whole entries."""


def table_parts(source: StateFile, start: int, size: int) -> Iterator[bytes]:
    """Yield the entries of the table's frame of `size` bytes at `start`, some at a time. Raises IntegrityError."""
    at, stop = start + LEAST_FRAME, start + size - SEEK_FOOTER_SIZE
    while at < stop:
        part = source.tail(at, min(TABLE_READ, stop - at))
        if len(part) % SEEK_ENTRY_SIZE or not part:
            raise IntegrityError("the file became shorter while it was read", offset=at)
        yield part
        at += len(part)


class State(NamedTuple):
    """A state ready to be loaded: its source, and what is not proved of it. `stream` follows a foreign stream.

    Its disks are checked later, when it is known which QEMU it is for: `refuse_changed_disks`.
    """

    source: StateFile
    doubts: str | None
    ends: Ends
    stream: QemuStream | None

    def stages(self) -> list[NamedStage]:
        """Return new stages, which decode the source, verify it, and hold its end back."""
        if self.ends.is_state and self.ends.trailer is not None:
            return _own_stages(self.ends.trailer)
        assert self.stream is not None
        return _foreign_stages(self.stream, self.ends.codec)

    @property
    def run_state(self) -> str | None:
        """The guest's run state when it was saved, or before if it was stopped for the save; of a foreign stream it is
        known after it has been read."""
        if self.ends.is_image and self.ends.domain is not None:  # libvirt stops the guest first
            return RUNNING if self.ends.domain.was_running else PAUSED
        if self.ends.is_state and self.ends.trailer is not None:
            return RUNNING if self.ends.trailer.get("stopped_for_it") else self.ends.trailer.get("run_state")
        return self.stream.run_state if self.stream else None

    @property
    def unserved(self) -> str | None:
        """Why the file cannot be read at an offset, or has no pages that can; None as far as both ends tell."""
        source, ends = self.source, self.ends
        if source.sealed not in (None, "age"):
            return f"it is encrypted ({source.sealed}), and can only be read from its beginning"
        if ends.codec not in (RAW, ZSTD.name):
            return f"it is compressed with {ends.codec}, and can only be read from its beginning"
        return self._index.get("unserved")

    @property
    def is_indexed(self) -> bool:
        """Whether the file says where its pages are: else all of it is read to find them."""
        return self.unserved is None and "frames" in self._index

    @property
    def digest(self) -> str:
        """The BLAKE3 of the stream, as the trailer says; empty if it says nothing."""
        trailer = self.ends.trailer if self.ends.is_state else None
        return "" if trailer is None else str(trailer["blake3"])

    @property
    def _index(self) -> Facts:
        """What the trailer says of the index; empty if it says nothing."""
        return (self.ends.trailer or {}).get("index") or {} if self.ends.is_state else {}

    @property
    def domain(self) -> Domain | None:
        """What libvirt knows of the guest, if libvirt ran it when it was saved."""
        return self.ends.domain

    @property
    def is_live(self) -> bool:
        """Whether the guest ran on while it was saved."""
        return bool((self.ends.header or {}).get("live"))

    @property
    def disks(self) -> list[Disk]:
        """The guest's disks as the trailer describes them; a foreign stream describes none."""
        return self.ends.trailer.get("disks") or [] if self.ends.is_state and self.ends.trailer else []

    def refuse_other_machine(self, now: str) -> None:
        """Raises StatepipeError if this QEMU's machine type is not the guest's. QEMU never loads such a guest, and all
        its devices are elsewhere, so this is checked before them."""
        told = (facts.get("machine") for facts in (self.ends.header, self.ends.trailer) if facts)
        saved = next((machine for machine in told if machine), None)
        if saved is not None and saved != now:
            raise StatepipeError(
                f"this QEMU's machine is {now}, and the guest's was {saved}",
                hint=f"start QEMU with -machine {saved}; -machine help lists the supported ones",
            )

    def refuse_changed_disks(self, its: Images | None, said: Said, warn: Warn) -> None:
        """Raises StatepipeError for disks that changed since the save, or that QEMU has not or has elsewhere, unless
        `said` allows it. `its` are the images that QEMU has, None if no QEMU is seen."""
        judge(self.disks, its, said.of(self.disks), warn, live=self.is_live)

    def refuse_changed_before(self, command: Sequence[str], said: Said) -> None:
        """Check the disks that a QEMU's command line names, so that it need not be started for an error."""
        word = said.of(self.disks)
        if starts_qemu(command):
            judge(named(self.disks, command, word), None, word, lambda text: None, live=self.is_live)

    def refuse_other_hardware(self, now: Facts | None, command: Sequence[str] | None, said: Said, warn: Warn) -> None:
        """Raises StatepipeError for hardware that the guest had at the save and would miss, unless `said` forces it.

        `now` is the hardware of the QEMU that loads it (qemu/guest.py), and its RAM; `command` its command line, which
        is compared if one side has no more than that.
        """
        header = self.ends.header or {}
        found: list[tuple[str, str]] = []
        if "hardware" in header and now is not None:
            found = list(changes(header["hardware"] | {"ram": header.get("ram")}, now))
        elif "command" in header and command:
            found = list(changed_words(header["command"], command))
        for part, text in found:
            if part in said.forced:
                warn(f"{text}: loaded all the same, because of --force")
        if left := [(part, text) for part, text in found if part not in said.forced]:
            hint = "start QEMU with the guest's own command line, and plug in what was plugged in while it ran"
            forcing = " ".join(f"--force {part}" for part, _ in left)
            raise StatepipeError(
                f"this QEMU's machine is not the guest's: {'; '.join(text for _, text in left)}",
                hint=f"{hint}; or override with {forcing}",
            )


def prepare(source: StateFile) -> State:
    """Check both ends of an open file, before its stream is read. Raises StatepipeError."""
    ends = read_ends(source)
    if not ends.is_state or ends.trailer is None:
        return foreign_state(source, ends)
    return State(source, unknown(ends.trailer.get("disks")), ends, None)


def _own_stages(trailer: Facts) -> list[NamedStage]:
    """Return the stages of a state file. The trailer's end mark is that of a whole file; in a damaged one, QEMU may
    find another before it."""
    from statepipe.formats.qemu.stream import Phase, QemuStream
    from statepipe.stages.checksum import verify
    from statepipe.stages.watch import ends_at, hold, watch

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
    """Return the state of a foreign stream, whose end the parser must see before QEMU does."""
    from statepipe.formats.qemu.stream import QemuStream

    unproved = "its disks are" if ends.trailer else "its pages and its disks are"
    kind = "save image of libvirt's" if ends.is_image else f"{ends.codec} stream"
    what = f"{source.name} is a {kind}, not a state file"
    doubts = f"{what}: its structure is checked, but that {unproved} unchanged cannot be proved"
    return State(source, doubts, ends, QemuStream())


def _foreign_stages(stream: QemuStream, codec: str) -> list[NamedStage]:
    from statepipe.stages.watch import LATE, hold, watch

    stages: list[NamedStage] = [] if codec == RAW else [("decompress", decompress())]
    return [*stages, ("watch", watch(stream)), ("hold", hold(lambda offset: stream.phase in LATE, HOLD_LIMIT))]
