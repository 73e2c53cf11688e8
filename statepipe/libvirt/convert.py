"""convert: from libvirt's save image to a state file, and back.

A new state file is written as `save` writes one: parsed to QEMU's end mark, with an index and digests. A new image gets
its name as a state file does, only when it is whole: after what it is made from was read and verified to its end.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from statepipe.ends.output import Output, new_output
from statepipe.ends.rehearsal import Replaceable
from statepipe.ends.source import FileSource
from statepipe.errors import StatepipeError, UsageError
from statepipe.formats.domainxml import identity
from statepipe.formats.libvirtimage import RAW, TEXT_LIMIT, ZSTD, Domain, beginning, looks_like_image
from statepipe.formats.qemu.stream import QemuStream
from statepipe.pipeline.pipeline import NamedStage, Pipeline
from statepipe.pipeline.signals import forget_late, held
from statepipe.qemu.disks import Disk
from statepipe.qemu.guard import Said, unknown
from statepipe.qemu.runstates import RAN_AT_SAVE
from statepipe.stages.packing import Packing
from statepipe.stages.watch import alone, demand_end
from statepipe.state.file import Keys, looks_saved, open_state
from statepipe.state.loading import Ends, State, prepare
from statepipe.state.older import refuse_other_guest
from statepipe.state.saveimage import SaveImage
from statepipe.state.saving import Plan, save_stream
from statepipe.state.source import StateFile, damage_named
from statepipe.state.verify import plain, proving

IMAGES = {"raw": RAW, "zstd": ZSTD}
"""The formats in which an image can be written. Every libvirt restores the first; 9.0 does not know the second."""


class Conversion(NamedTuple):
    """How to convert: `image` is the format of a save image, None for a state file.

    `packing`, `words` and `seal` are as for `save`. `xml` replaces libvirt's XML. `overwrite` allows to replace a file
    that is no saved state.
    """

    packing: Packing
    words: Sequence[NamedStage]
    seal: Sequence[NamedStage]
    image: int | None
    xml: bytes | None
    overwrite: bool


class Converted(NamedTuple):
    """The domain, bytes of its stream and of the new file, and what whoever loads it cannot tell of its disks."""

    domain: Domain
    bytes: int
    size: int
    doubts: str | None


def convert(path: str, target: str, keys: Keys, how: Conversion) -> Converted:
    """Convert the file at `path` to a new one at `target`. Raises StatepipeError; then `target` is as it was."""
    with open_state(path, keys) as source:
        state = prepare(source)
        domain = _domain(state, how)
        had_name = source.has_name() and os.path.realpath(path) != os.path.realpath(target)
        replaceable = _replaceable(how)
        with new_output(target, replaceable=replaceable, overwrite=replaceable is None) as sink:
            refuse_other_guest(sink, *identity(domain.xml))
            with damage_named(source.name):
                done = (_write_raw if how.image == RAW else _write_state)(state, domain, how, sink)
        if had_name and not source.has_name():
            gone = (
                f"{source.name} was removed while it was read: if libvirt runs the guest from it, do not load {target}"
            )
            done = done._replace(doubts="; ".join(filter(None, (gone, done.doubts))))
        return done


def read_xml(path: str) -> bytes:
    """Return a domain's XML from a file. Raises StatepipeError if it is not one."""
    with FileSource(path) as file:
        xml = file.tail(0, TEXT_LIMIT)
    if len(xml) >= TEXT_LIMIT or identity(xml).name is None:
        what = "is too long" if len(xml) >= TEXT_LIMIT else "has no name of a domain"
        hint = "give a domain's XML, as virsh dumpxml --migratable or virsh save-image-dumpxml print it"
        raise StatepipeError(f"{path} is not the XML of a domain: it {what}", hint=hint)
    return xml


def _changed(state: State) -> str | None:
    """Return what libvirt would not notice: disks that are no longer as they were at the save."""
    try:
        state.refuse_changed_disks(None, Said(), lambda text: None)
    except StatepipeError as error:
        return f"virsh restore compares no disks, and load would refuse this state: {error}"
    return None


def _replaceable(how: Conversion) -> Replaceable | None:
    if how.overwrite:
        return None
    if how.image is None:
        return looks_saved
    return lambda head: looks_saved(head) or looks_like_image(head)


def _domain(state: State, how: Conversion) -> Domain:
    """Return what libvirt is to know of the guest. Raises UsageError, and StatepipeError if nothing says it."""
    name, ends = state.source.name, state.ends
    saving = f"make a state file with: statepipe save NEW < {name}"
    if how.image is None and not ends.is_image:
        kind = "a state file already" if ends.is_state else "no save image of libvirt's"
        raise UsageError(f"{name} is {kind}", hint="--to-image writes a save image" if ends.is_state else saving)
    if ends.domain is not None:
        return ends.domain if how.xml is None else ends.domain._replace(xml=_same(how.xml, ends.domain.xml, name))
    if not ends.is_state:
        raise StatepipeError(f"{name} is a stream without facts about its guest", hint=f"first {saving}")
    if how.xml is None:
        raise StatepipeError(
            f"{name} does not say how libvirt defines the guest: it was not saved through libvirt",
            hint="give the domain's XML with --xml FILE (virsh dumpxml --migratable NAME); or load it without libvirt: "
            "statepipe load FILE -- qemu-system-…",
        )
    return Domain(how.xml, b"", state.run_state in RAN_AT_SAVE)


def _same(new: bytes, saved: bytes, name: str) -> bytes:
    """Return the new XML, which libvirt would take for the saved guest. Raises UsageError if its UUID is another."""
    ours, theirs = identity(new), identity(saved)
    if ours.uuid and theirs.uuid and ours.uuid.lower() != theirs.uuid.lower():
        what = f"the XML is of another domain, {ours.name} ({ours.uuid}): {name} has {theirs.name} ({theirs.uuid})"
        raise UsageError(what, hint="change the XML that inspect --json shows, and keep its uuid")
    return new


def _write_raw(state: State, domain: Domain, how: Conversion, sink: Output) -> Converted:
    """Write an image whose stream is not compressed."""
    stream = QemuStream()
    sink.write(beginning(domain, RAW))
    Pipeline(state.source, [*proving(state.ends, stream, [("alone", alone(stream))]), *how.words], sink).pour()
    sink.sync()
    with held():
        sink.commit()
        forget_late()
    return Converted(domain, stream.offset, sink.bytes, _changed(state))


def _write_state(state: State, domain: Domain, how: Conversion, sink: Output) -> Converted:
    """Write a state file, behind the beginning of an image if one is wanted."""
    if how.image is not None:
        sink.write(beginning(domain, how.image))
    disks = (state.ends.trailer or {}).get("disks") if state.ends.is_state else None
    stream = QemuStream()
    plan = _plan(state.source, state.ends, domain, disks, how, stream)
    saved = save_stream(plan, state.source, sink, None, lambda: None, stream=stream)
    doubts = unknown(disks) if how.image is None else _changed(state)
    return Converted(domain, saved.stream.offset, saved.size, doubts)


def _plan(
    source: StateFile, ends: Ends, domain: Domain, disks: list[Disk] | None, how: Conversion, stream: QemuStream
) -> Plan:
    """Return how the state is saved: with the facts that the file has of its guest."""
    known = dict(ends.header or {}) if ends.is_state else _told(source, domain)
    guest = {key: value for key, value in known.items() if key not in ("statepipe", "kind", "writer", "stages")}
    inside = None if how.image is not None else domain

    def last() -> dict[str, Any]:
        if not ends.is_state or ends.trailer is None:
            return {}
        demand_end(stream, ends.trailer["end_mark"])
        was_stopped = ends.trailer.get("stopped_for_it") and not ends.is_image  # an image's header says if it ran
        return {"stopped_for_it": True} if was_stopped else {}

    return Plan(how.packing, how.words, how.seal, guest, lambda: disks, last, inside, plain(ends))


def _told(source: StateFile, domain: Domain) -> dict[str, Any]:
    """Return what an image of libvirt's tells of its guest, with the time at which libvirt had written it."""
    told: dict[str, Any] = {**identity(domain.xml)._asdict(), "live": False}
    told["run_state_before"] = "running" if domain.was_running else "paused"
    file = source.file if isinstance(source, SaveImage) else source
    if isinstance(file, FileSource):
        told["time"] = max(int(os.fstat(file.fd).st_mtime), 0)
    return told
