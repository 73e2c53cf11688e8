"""What saving a guest has in common, however QEMU hands us its stream: the stages, the facts, the verdict.

The order that makes the verdict true: the stream is parsed to its own end, then the disks' fingerprints are taken
(QEMU has let go of the images before it writes its end mark), then the trailer is written, the file fsynced and
named, and only then is QEMU told `SHUT 0`. On any failure before that it is told `SHUT 1`, and the guest runs on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from statepipe import __version__
from statepipe.ends.fd import FdSource
from statepipe.ends.output import Output
from statepipe.errors import IntegrityError, QemuGone, QemuSilent, StatepipeError
from statepipe.formats.qemu.pageframes import encode_index
from statepipe.formats.qemu.returnpath import shut
from statepipe.formats.qemu.stream import QemuStream
from statepipe.formats.statefile import Indexed
from statepipe.pipeline.pipeline import NamedStage, Pipeline
from statepipe.pipeline.signals import forget_late, held
from statepipe.qemu.disks import Disk
from statepipe.stage import Buffer, Over, Stage
from statepipe.stages.checksum import Digest
from statepipe.stages.packing import Packing
from statepipe.stages.watch import Answer, alone, watch

IDLE = 1000
"""Milliseconds without a byte after which a stream without vmdesc that could end is taken to have ended."""


@dataclass(frozen=True)
class Plan:
    """What to save, beside the stream: `words` are stages for the plain stream, `seal` those that encrypt the file.

    `guest` goes into the header. `disks` is called once the stream has ended and gives the disks' fingerprints, or
    None if they are not known; `last` gives what else is known by then.
    """

    packing: Packing
    words: Sequence[NamedStage] = ()
    seal: Sequence[NamedStage] = ()
    guest: dict[str, Any] = field(default_factory=dict)
    disks: Callable[[], list[Disk] | None] = lambda: None
    last: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True, slots=True)
class Saved:
    """A stream that is saved, the bytes of its file, and what its trailer says of the disks (None: not known)."""

    stream: QemuStream
    size: int
    disks: list[Disk] | None


def demand_lasting(temporary: Sequence[str]) -> None:
    """Raises StatepipeError for images without a name: what is in them ends with QEMU, and a state needs its disks."""
    if temporary:
        raise StatepipeError(
            "what the guest writes to its disks is lost when its QEMU ends (-snapshot, snapshot=on): "
            + ", ".join(temporary),
            hint="a state saved now could never be loaded: start the guest without it; or keep what was written, with "
            "block-commit and block-job-complete in QEMU, and save then",
        )


def save_stream(
    plan: Plan,
    source: FdSource,
    sink: Output,
    answer: Answer | None,
    approve: Callable[[], None],
    leave: Callable[[], object] = lambda: None,
    stream: QemuStream | None = None,
) -> Saved:
    """Save the stream from `source` to `sink`; return once the file has its name and QEMU was answered.

    Without `answer` no QEMU can be told anything: the stream then ends with its source, whatever it opened.
    `approve` is asked after the commit, within the same hold on signals: it raises if QEMU's verdict is no, and
    then the file is taken away again. Only a QEMU that went away without a verdict leaves the file: the guest may
    now be in it alone. `leave` comes last, within that hold. `stream` follows what comes; the caller's, for who looks
    at it. Raises what any stage, the disk, `approve` or `leave` raises.
    """
    stream = QemuStream() if stream is None else stream
    stream.record_pages()
    last: dict[str, Any] = {}
    is_saved = False

    def trailer() -> dict[str, Any]:
        last.update(stream.facts(), disks=plan.disks(), **plan.last())
        return last

    try:
        watcher = watch(stream, answer)
        if answer is None:
            watcher = _deserted(stream, watcher)
        stages = [("watch", watcher), ("alone", alone(stream)), *_stages(plan, trailer, lambda: indexed(stream))]
        Pipeline(source, stages, sink).pour()
        if answer is not None:
            _refuse_more(stream, source)
        sink.sync()
        with held():
            sink.commit()
            _conclude(sink, stream, answer, approve)
            is_saved = True
            try:
                leave()
            finally:  # also where the guest could not be left as asked: that is what is told, and no signal
                forget_late()
    except BaseException as error:
        if is_saved:
            raise
        try:
            _reply(stream, answer, shut(1))
        except StatepipeError as another:
            _add(error, f"QEMU may still wait for an answer, which could not be sent: {another}")
        raise
    return Saved(stream, sink.bytes, last["disks"])


def indexed(stream: QemuStream) -> Indexed:
    """The index of a stream that has ended, whose pages were recorded, as the file holds it."""
    index = stream.page_index()
    if index.outline.unserved:
        return Indexed({"unserved": index.outline.unserved})
    return Indexed({"runs": index.runs, "stored": index.stored, "zero": index.zero}, encode_index(index))


def _stages(plan: Plan, trailer: Callable[[], dict[str, Any]], index: Callable[[], Indexed | None]) -> list[NamedStage]:
    """Those behind watch, which stands first: what it calls the end is the end for every other stage."""
    header = {"kind": "state", "time": int(time.time()), "writer": f"statepipe {__version__}", **plan.guest}
    header["stages"] = [name for name, _ in plan.words] + [plan.packing.word]
    header["stages"] += [name for name, _ in plan.seal]
    digest = Digest("blake3")
    packer = plan.packing.pack(header, lambda: {**trailer(), "blake3": digest.value}, index)
    return [*plan.words, ("digest", digest), ("compress", packer), *plan.seal]


def _refuse_more(stream: QemuStream, source: FdSource) -> None:
    """With a return path QEMU waits in silence now; if it does not, what was taken for the end was none."""
    if stream.return_path and not source.is_quiet():
        raise IntegrityError(
            "QEMU sent more, or closed its end, after the end of its stream",
            hint=_RECORDED,
            stage="watch",
            offset=stream.offset,
        )


_RECORDED = (
    "the migration was cancelled, or QEMU ended, at the last moment; "
    "of a stream that comes from a file, send standard output to /dev/null: nobody waits for an answer there"
)

MUTE = 5
"""Times IDLE that the source may go on in silence behind the end of a stream that no QEMU can be answered."""


def _deserted(stream: QemuStream, watcher: Stage) -> Stage:
    """The same watcher, for a stream whose return path leads nowhere: if QEMU itself waits there, the save fails.

    It would wait for ever, or take our end for a failure while the file says otherwise.
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
                    hint="leave standard output to QEMU, or switch its capability return-path off",
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


def _add(error: BaseException, advice: str) -> None:
    """To the hint of the failure that is told."""
    if isinstance(error, StatepipeError):
        error.advise(advice)


def _reply(stream: QemuStream, answer: Answer | None, message: bytes) -> bool:
    """Tell QEMU, if it asked to be told; False if it is gone."""
    return answer is None or not stream.return_path or answer(message)
