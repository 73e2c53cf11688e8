"""What every save has in common, however the stream arrives: the stages, the metadata, the answer to QEMU.

The order of steps makes the answer true: the stream is parsed to its own end; then the disks' fingerprints are taken,
as QEMU has released the images before it writes its end mark; then the trailer is written, the file is synced and gets
its name; and only then QEMU receives `SHUT 0`. After any failure before that it receives `SHUT 1`, and the guest runs
on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from statepipe import __version__
from statepipe.ends.fd import FdSource
from statepipe.ends.output import Measuring, Output
from statepipe.errors import IntegrityError, QemuGone, QemuSilent, StatepipeError
from statepipe.formats.libvirtimage import Domain
from statepipe.formats.qemu.pageframes import encode_index
from statepipe.formats.qemu.returnpath import shut
from statepipe.formats.qemu.stream import QemuStream
from statepipe.formats.statefile import Indexed
from statepipe.pipeline.pipeline import NamedStage, Pipeline, Source
from statepipe.pipeline.signals import forget_late, held
from statepipe.qemu.disks import Disk
from statepipe.qemu.runstates import RUNNING
from statepipe.stage import Buffer, Over, Stage
from statepipe.stages.checksum import Digest
from statepipe.stages.packing import Packing
from statepipe.stages.prove import REWRITTEN
from statepipe.stages.watch import Answer, alone, watch
from statepipe.typed import Any, NamedTuple

IDLE = 1000
"""Milliseconds without a byte after which a stream without vmdesc counts as ended, if it could end there."""


class Plan(NamedTuple):
    """What to save with the stream: `words` are stages for the plain stream, `seal` those that encrypt the file.

    `before` are stages that make the plain stream of what the source has.
    `guest` is written to the header. `disks` is called after the end of the stream and returns the disks' fingerprints,
    None if they are not known; `last` returns what else is known then. `domain` is what libvirt knows of the guest.
    """

    packing: Packing
    words: Sequence[NamedStage] = ()
    seal: Sequence[NamedStage] = ()
    guest: Mapping[str, Any] = MappingProxyType({})
    disks: Callable[[], list[Disk] | None] = lambda: None
    last: Callable[[], dict[str, Any]] = dict
    domain: Domain | None = None
    before: Sequence[NamedStage] = ()


class Saved(NamedTuple):
    """A saved stream, the bytes of its file, and the disks in its trailer (None: not known)."""

    stream: QemuStream
    size: int
    disks: list[Disk] | None


def demand_lasting(temporary: Sequence[str]) -> None:
    """Raises StatepipeError for images without a name: they are gone when QEMU ends, and a state needs its disks.

    A name that is not UTF-8 has no place in QEMU's answer: then no file has the name that is there.
    """
    if unclear := [path for path in temporary if "\ufffd" in path]:
        what = f"the disks cannot be found, as QEMU does not report their names unchanged: {', '.join(unclear)}"
        raise StatepipeError(what, hint="give them names in UTF-8, and start the guest with these")
    if temporary:
        raise StatepipeError(
            "what the guest writes to its disks is lost when its QEMU ends (-snapshot, snapshot=on): "
            + ", ".join(temporary),
            hint="a state saved now could never be loaded: start the guest without these options, or first keep what "
            "it wrote, with block-commit and block-job-complete at QEMU's monitor",
        )


def save_stream(
    plan: Plan,
    source: Source,
    sink: Output,
    answer: Answer | None,
    approve: Callable[[], None],
    leave: Callable[[], object] = lambda: None,
    stream: QemuStream | None = None,
    ready: Callable[[], object] = lambda: None,
) -> Saved:
    """Save the stream from `source` to `sink`; return once the file has its name and QEMU was answered.

    Without `answer`, QEMU cannot be answered: the stream then ends with its source, even if it opened a return path.
    `ready` is called when all is on the disk, just before the file gets its name: it raises if that must not be.
    `approve` is called after the commit, while signals are held: it raises if QEMU reports a failure, and then the file
    is removed again. If QEMU went away without a report, the file stays: it may be the only place of the guest. `leave`
    is called last, also while signals are held. `stream` parses the bytes; the caller may follow it. Raises what any
    stage, the disk, `ready`, `approve` or `leave` raises.
    """
    stream = QemuStream() if stream is None else stream
    stream.record_pages()
    if isinstance(sink, Measuring):
        sink.measure = lambda: REWRITTEN * stream.ram_bytes or None
    last: dict[str, Any] = {}
    is_saved = False

    def trailer() -> dict[str, Any]:
        last.update(_facts(plan, stream))
        return last

    try:
        Pipeline(source, _stages(plan, stream, answer, trailer), sink).pour()
        if answer is not None and isinstance(source, FdSource):
            _refuse_more(stream, source)
        sink.sync()
        ready()
        with held():
            sink.commit()
            _conclude(sink, stream, answer, approve)
            is_saved = True
            try:
                leave()
            finally:  # if the guest cannot be left as asked, report that error rather than a signal
                forget_late()
    except BaseException as error:
        if is_saved:
            raise
        try:
            _reply(stream, answer, shut(1))
        except StatepipeError as another:
            words = f"QEMU may still wait for an answer, which could not be sent: {another}"
            if isinstance(error, StatepipeError):
                error.advise(words)
            else:
                error.add_note(words)
        raise
    return Saved(stream, sink.bytes, last["disks"])


def _facts(plan: Plan, stream: QemuStream) -> dict[str, Any]:
    """Return what the trailer says of a stream that has ended."""
    facts = {**stream.facts(), "disks": plan.disks(), **plan.last()}
    if plan.domain is not None and plan.domain.was_running and stream.run_state != RUNNING:
        facts["stopped_for_it"] = True  # by libvirt, before it began
    return facts


def indexed(stream: QemuStream) -> Indexed:
    """Return the index, as it is in the file, of a stream that has ended and whose pages were recorded."""
    index = stream.page_index()
    if index.outline.unserved:
        return Indexed({"unserved": index.outline.unserved})
    return Indexed({"runs": index.runs, "stored": index.stored, "zero": index.zero}, encode_index(index))


def _stages(
    plan: Plan, stream: QemuStream, answer: Answer | None, trailer: Callable[[], dict[str, Any]]
) -> list[NamedStage]:
    """Return all stages. The end of the stream that watch sees is the end for those behind it."""
    watcher = watch(stream, answer)
    if answer is None:
        watcher = _deserted(stream, watcher)
    header = {"kind": "state", "time": int(time.time()), "writer": f"statepipe {__version__}", **plan.guest}
    header["stages"] = [name for name, _ in plan.words] + [plan.packing.word]
    header["stages"] += [name for name, _ in plan.seal]
    digest = Digest("blake3")
    packer = plan.packing.pack(
        header, lambda: {**trailer(), "blake3": digest.value}, lambda: indexed(stream), plan.domain
    )
    parsing: list[NamedStage] = [*plan.before, ("watch", watcher), ("alone", alone(stream))]
    return [*parsing, *plan.words, ("digest", digest), ("compress", packer), *plan.seal]


def _refuse_more(stream: QemuStream, source: FdSource) -> None:
    """Raises IntegrityError if QEMU does not wait in silence: then the end of the stream was not its end."""
    if stream.return_path and not source.is_quiet():
        raise IntegrityError(
            "QEMU sent more, or closed its end, after the end of its stream",
            hint=_RECORDED,
            stage="watch",
            offset=stream.offset,
        )


_RECORDED = (
    "the migration was cancelled, or QEMU ended, at the last moment; "
    "if the stream comes from a file, send standard output to /dev/null, as nobody waits for an answer"
)

MUTE = 5
"""Times IDLE that the source may stay open in silence after the end of a stream, if QEMU cannot be answered."""


def _deserted(stream: QemuStream, watcher: Stage) -> Stage:
    """Return the watcher for a stream that cannot be answered: if QEMU itself waits on the return path, the save fails.

    QEMU would wait for ever, or report a failure for our end although the file is complete.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        return watcher(Over(upstream, listening(upstream)))

    def listening(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        mute = 0
        for buffer in upstream:
            ended = stream.return_path and (stream.complete or stream.could_end_here)
            mute = mute + 1 if ended and not len(buffer) else 0
            if mute > MUTE:
                raise StatepipeError(
                    "QEMU waits for an answer on its return path, and standard output is not that path",
                    hint="do not redirect standard output, or switch QEMU's capability return-path off",
                    stage="watch",
                )
            yield buffer

    return stage


def _conclude(sink: Output, stream: QemuStream, answer: Answer | None, approve: Callable[[], None]) -> None:
    try:
        if not _reply(stream, answer, shut(0)):
            raise QemuGone("QEMU went away before it could be told that its state is saved")
        approve()
    except (QemuGone, QemuSilent) as error:
        error.hint = f"{sink.name} holds the whole state; if QEMU still runs the guest, remove the file"
        raise
    except BaseException:
        sink.withdraw()
        raise


def _reply(stream: QemuStream, answer: Answer | None, message: bytes) -> bool:
    """Answer QEMU if the stream opened a return path. Return False if QEMU is gone."""
    return answer is None or not stream.return_path or answer(message)
