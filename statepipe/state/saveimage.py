"""A save image of libvirt's, read in place: the state in it as if it were a file of its own.

Offsets count from where the state begins, behind libvirt's header and its XML.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.domainxml import identity
from statepipe.formats.libvirtimage import (
    FORMATS,
    HEADER_SIZE,
    LZOP,
    SPARSE,
    Domain,
    ImageHeader,
    parse_header,
    split_data,
)
from statepipe.stage import Buffer
from statepipe.state.source import StateFile
from statepipe.typed import Self
from statepipe.units import format_size


class SaveImage:
    """The state in an open image; `bytes` counts what was read of it. `file` is the image, which closes with it."""

    def __init__(self, file: StateFile, header: ImageHeader, domain: Domain) -> None:
        self.name, self.sealed = file.name, file.sealed
        self.bytes = 0
        self.file, self.header, self.domain = file, header, domain
        self._skip = header.payload_at

    def __iter__(self) -> Iterator[Buffer]:
        return self

    def __next__(self) -> Buffer:
        while True:
            buffer = next(self.file)
            cut = min(self._skip, len(buffer))
            self._skip -= cut
            if cut and cut == len(buffer):
                continue
            buffer = memoryview(buffer)[cut:] if cut else buffer
            self.bytes += len(buffer)
            return buffer

    @property
    def expected(self) -> int:
        """Bytes from here to the end, for whoever shows the progress."""
        return self.size() - self.bytes

    def cancel(self) -> None:
        self.file.cancel()

    def tail(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset` of the state, or fewer at its end. Raises StatepipeError."""
        return self.file.tail(self.header.payload_at + offset, size)

    def size(self) -> int:
        """Bytes of the state in the image."""
        return max(self.file.size() - self.header.payload_at, 0)

    def stored(self) -> int:
        """Bytes of the image on the disk."""
        return self.file.stored()

    def has_name(self) -> bool:
        """Return False once the image was removed."""
        return self.file.has_name()

    @property
    def beside(self) -> str | None:
        """The path to which the names of files that belong to it are added."""
        return self.file.beside

    def doubt(self, offset: int, size: int) -> bool:
        """Note that these bytes are not what was written; return whether to read them again may help."""
        return self.file.doubt(self.header.payload_at + offset, size)

    def give_up(self) -> None:
        """Have threads that wait for bytes raise Cancelled."""
        self.file.give_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)


def open_image(file: StateFile) -> SaveImage:
    """Return the state in an open file that begins as a save image does.

    Raises TruncatedError for an image that libvirt has not finished, StatepipeError for one in a format that cannot be
    read here, IntegrityError for a damaged one.
    """
    try:
        header = parse_header(file.tail(0, HEADER_SIZE))
        if header.is_partial:
            raise _unfinished(file, header)
        _refuse_format(file.name, header)
        domain = split_data(header, file.tail(HEADER_SIZE, header.data_len))
        if file.size() <= header.payload_at:
            raise TruncatedError("libvirt's save image ends before the guest's state", offset=header.payload_at)
    except StatepipeError as error:
        error.args = (f"{file.name}: {error}",)
        raise
    return SaveImage(file, header, domain)


def _unfinished(file: StateFile, header: ImageHeader) -> TruncatedError:
    """Return the error for an image that libvirt still writes, or has left behind: whose it is, if that is there."""
    with suppress(IntegrityError):  # the XML is not written yet
        name = identity(split_data(header, file.tail(HEADER_SIZE, header.data_len)).xml).name
        of = f" of the domain {name}" if name else ""
        state = shlex.join(["virsh", "domstate", "--reason", name or "NAME"])
        hint = (
            f"if {state} says saving, or a snapshot is being made, wait until that ends; else this save has failed, "
            "and the file is worthless"
        )
        what = f"libvirt has not finished this save image{of}, which has {format_size(file.size())} so far"
        return TruncatedError(what, hint=hint)
    return TruncatedError("libvirt has just begun this save image", hint="wait until virsh save or managedsave ends")


def _refuse_format(name: str, header: ImageHeader) -> None:
    again = "restore it with virsh restore, and save it again with another save_image_format in libvirt's qemu.conf"
    if header.format == SPARSE:
        why = "its memory is not in QEMU's stream, but at fixed places in the file (mapped-ram)"
        raise StatepipeError(f"a save image in libvirt's format sparse cannot be read: {why}", hint=again)
    if header.format == LZOP:
        words = f"tail -c +{header.payload_at + 1} IMAGE | lzop -dc | statepipe save NEW > /dev/null"
        hint = f"{again}; or make a state file without libvirt's XML: {words}"
        raise StatepipeError("a save image in libvirt's format lzop cannot be read: no lzop is built in", hint=hint)


def demand_format(image: SaveImage, codec: str) -> None:
    """Raises IntegrityError unless the state in the image is compressed as the image's header says."""
    told = FORMATS[image.header.format]
    if told != codec:
        what = f"{image.name}: the save image's header says {told}, and its state is {codec}"
        raise IntegrityError(what, offset=0)
