"""Whose state the file holds that a save is about to replace: that of another guest stays.

Names are mistyped, and one guest's only state would be gone. So a save refuses if both guests are known and differ: by
their UUIDs, or by their names where one has no UUID. What cannot be read without a key says nothing of its guest.
"""

from __future__ import annotations

from contextlib import suppress

from statepipe.ends.file import FileSink
from statepipe.ends.output import Output
from statepipe.ends.source import FileSource
from statepipe.errors import IntegrityError, StatepipeError
from statepipe.formats.beginning import HEAD
from statepipe.formats.domainxml import Identity, identity
from statepipe.formats.libvirtimage import HEADER_SIZE, looks_like_image, parse_header, split_data
from statepipe.typed import Any


def refuse_other_guest(sink: Output, name: str | None, uuid: str | None) -> None:
    """Raises UsageError if `sink` is to replace the state of another guest than the one with this name and UUID; None
    for what is not known. A sink that may replace any file, or that is a descriptor, passes."""
    ours = Identity(name or None, _known(uuid))

    def refused(file: FileSource) -> str | None:
        try:
            theirs = guest_in(file)
        except StatepipeError as error:  # a save image of a later libvirt
            return f"whose state it is cannot be read: {error}"
        if not differ(ours, theirs):
            return None
        return f"it is the state of another guest, {_shown(theirs)}, and this one is {_shown(ours)}"

    if isinstance(sink, FileSink):
        sink.refuse_older(refused)


def differ(one: Identity, other: Identity) -> bool:
    """Return whether these are two guests for certain. A guest that got another name keeps its UUID."""
    if one.uuid and other.uuid:
        return one.uuid != other.uuid
    return bool(one.name and other.name and one.name != other.name)


def guest_in(file: FileSource) -> Identity:
    """Return whose state is in a file: a state file, or a save image of libvirt's. Nothing is known of any other, nor
    of one that is damaged where it says so. Raises StatepipeError for a save image of a version that is not known."""
    told: dict[str, Any] = {}
    if looks_like_image(file.tail(0, HEAD)):
        with suppress(IntegrityError):
            header = parse_header(file.tail(0, HEADER_SIZE))
            told = identity(split_data(header, file.tail(HEADER_SIZE, header.data_len)).xml)._asdict()
    else:
        from statepipe.state.loading import header_of  # most saves replace no file

        told = header_of(file) or {}
    return Identity(told.get("name"), _known(told.get("uuid")))


def _known(uuid: str | None) -> str | None:
    """Return a UUID as QEMU writes it; None for one of zeros, which is none."""
    return uuid.lower() if uuid and uuid.strip("0-") else None


def _shown(who: Identity) -> str:
    return f"{who.name} ({who.uuid})" if who.name and who.uuid else str(who.name or who.uuid)
