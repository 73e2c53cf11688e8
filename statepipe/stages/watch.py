"""watch: follow a migration stream, end it at its own end, and answer QEMU's return path.

QEMU with a return path keeps the pipe open until it gets an answer, and a cancelled migration ends with the same end of
file as a finished one. So only the stream's own end counts: after the end mark and the vmdesc this stage ends the
stream, and an end of file before that is an error, which says how far the stream came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.qemu.returnpath import pong
from statepipe.formats.qemu.stream import Phase, QemuStream
from statepipe.stage import Buffer, Stage, gather
from statepipe.units import format_size


def alone(stream: QemuStream) -> Stage:
    """Return a stage behind `watch` that refuses a stream which a QEMU with default settings cannot load.

    It raises StatepipeError as soon as the stream shows that.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        for buffer in upstream:
            if demanded := stream.demanded:
                names = ", ".join(demanded)
                what = f"not a complete state: the stream was made with {names}"
                lacks = ", and the shared memory is not in it" if "x-ignore-shared" in demanded else ""
                what += f"; only a QEMU with the same settings can load it{lacks}"
                hint = f"turn {names} off in QEMU (migrate-set-capabilities) and save again; save --qmp does it itself"
                raise StatepipeError(what, hint=hint)
            yield buffer

    return stage


LATE = (Phase.DEVICES, Phase.VMDESC, Phase.END)
"""The phases from the first device on. A loading QEMU that has only the bytes before it waits for more."""

_SIGN_OF_LIFE = pong(0)
"""Sent while QEMU is silent. A cancelled QEMU waits, with guest and monitor stopped, for its return-path thread, which
notices the cancel only when a message arrives; without one, QEMU and we would wait for each other (10.0, exec:). A PONG
without a PING has no other effect there: migration.c, source_return_path_thread."""

Answer = Callable[[bytes], bool]
"""Sends return-path messages to QEMU; returns False if it has gone."""


def watch(stream: QemuStream, answer: Answer | None = None) -> Stage:
    """Return a stage that passes the bytes to the parser `stream` and ends at the stream's end.

    `answer` is given if the source is QEMU itself; it sends return-path messages. Such a stream ends before its source
    does. At a flush mark (the source was idle), a stream without vmdesc may end, because QEMU waits on the return path;
    otherwise QEMU gets a sign of life. Raises IntegrityError if the stream is damaged or continues after its end,
    TruncatedError if it is cut, StatepipeError for postcopy.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        for buffer in upstream:
            count = stream.feed(buffer)
            pings = stream.take_pings()
            if answer is not None and pings:
                answer(b"".join(map(pong, pings)))
            if stream.postcopy:
                what = "the migration switched to postcopy, which needs answers that a file cannot give"
                raise StatepipeError(what, hint="turn the capability postcopy-ram off and save again")
            yield buffer[:count] if len(buffer) else buffer
            if count < len(buffer):
                raise IntegrityError("the input continues after the end of the migration stream", offset=stream.offset)
            if answer is not None and stream.return_path:
                if stream.complete or (not len(buffer) and stream.could_end_here):
                    break
                if not len(buffer):
                    answer(_SIGN_OF_LIFE)
        try:
            stream.close()
        except TruncatedError as error:
            raise TruncatedError(f"{error} ({describe(stream)})", hint=_HINT, offset=error.offset) from error

    return stage


_HINT = "the migration was cancelled, QEMU ended, or the stream was cut on its way; nothing of it can be resumed"


def ends_at(stream: QemuStream, end_mark: int) -> Stage:
    """Return a stage behind `watch` that raises IntegrityError at its end unless the end mark is at that offset."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield from upstream
        demand_end(stream, end_mark)

    return stage


def demand_end(stream: QemuStream, end_mark: int) -> None:
    """Raises IntegrityError unless the end mark of a stream that was read is at that offset."""
    if stream.end_mark != end_mark:
        what = f"the stream's end mark is not where the trailer says, at byte {end_mark}"
        raise IntegrityError(what, offset=stream.end_mark)


def describe(stream: QemuStream) -> str:
    """Return how far a stream came: `120 MiB, 30712 pages, round 2`."""
    pages = stream.pages.normal + stream.pages.zero + stream.pages.xbzrle + stream.pages.compressed
    return f"{format_size(stream.offset)}, {pages} pages, round {stream.rounds}"


def hold(late: Callable[[int], bool], limit: int) -> Stage:
    """Return a stage that holds all buffers once `late(offset)` is true, until a clean end of the upstream.

    `offset` is the stream offset at the end of a buffer. QEMU runs a guest as soon as it has read the end of the
    stream, so a verdict that comes with the last byte is too late. Raises StatepipeError if it would have to hold more
    than `limit` bytes.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        held: list[Buffer] = []
        offset = size = 0
        for buffer in upstream:
            offset += len(buffer)
            if not late(offset):
                yield buffer
                continue
            gather(held, buffer)
            size += len(buffer)
            if size > limit:
                raise StatepipeError(f"the devices' state is larger than {format_size(limit)}", offset=offset)
        yield from held

    return stage
