"""watch: follow the migration stream on its way past, end it at its own end, answer its questions.

QEMU with a return path keeps the pipe open until it has been answered, and a cancelled migration ends in the same
plain end of file as a finished one. So the end that counts is the stream's own: after the end mark and the vmdesc
this stage ends the stream, and an end of file before that is an error that says how far it came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.qemu.returnpath import pong
from statepipe.formats.qemu.stream import Phase, QemuStream
from statepipe.stage import Buffer, Stage, gather
from statepipe.units import format_size


def alone(stream: QemuStream) -> Stage:
    """A stage behind `watch` that lets nothing pass which no QEMU loads as it is started, and so is no state by itself.

    Raises StatepipeError as soon as the stream shows it.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        for buffer in upstream:
            if demanded := stream.demanded:
                raise _no_state(", ".join(demanded), lacks_memory="x-ignore-shared" in demanded)
            yield buffer

    return stage


def _no_state(names: str, *, lacks_memory: bool) -> StatepipeError:
    lacks = ", and the memory that is shared is not in it" if lacks_memory else ""
    return StatepipeError(
        f"no whole state: the stream was made with {names}; only a QEMU that is set alike loads it{lacks}",
        hint=f"in QEMU, turn {names} off (migrate-set-capabilities) and save again; save --qmp does so by itself",
    )


LATE = (Phase.DEVICES, Phase.VMDESC, Phase.END)
"""From the first device on; what comes before it leaves a loading QEMU waiting for more."""

_SIGN_OF_LIFE = pong(0)
"""Sent while QEMU is silent. A QEMU that was cancelled waits, guest and monitor stopped, for its return path's reader,
which sees the cancel only when a message comes; without one, QEMU would wait for us and we for its end (10.0, exec:).
A PONG that answers no PING changes nothing else there: migration.c, source_return_path_thread."""

Answer = Callable[[bytes], bool]
"""Sends return-path messages to QEMU; False if it is gone."""


def watch(stream: QemuStream, answer: Answer | None = None) -> Stage:
    """A stage that feeds what passes to `stream` and ends where the stream ends.

    `answer`, given where QEMU itself is above, gets the return-path messages to send back at once; such a stream
    ends before its source does. A flush mark (the source was idle for a while) is what lets one without vmdesc
    end while QEMU waits on the return path; else it is answered with a sign of life, for QEMU 10, when cancelled,
    waits for its return-path reader while we wait for it. Raises IntegrityError where the stream breaks or goes on
    after its end, TruncatedError where it stops short.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        for buffer in upstream:
            count = stream.feed(buffer)
            _answer_pings(stream, answer)
            _refuse_postcopy(stream)
            yield buffer[:count] if len(buffer) else buffer
            if count < len(buffer):
                raise _goes_on(stream)
            if answer is not None and stream.return_path:
                if _has_ended(stream, buffer):
                    break
                if not len(buffer):
                    answer(_SIGN_OF_LIFE)
        _close(stream)

    return stage


def ends_at(stream: QemuStream, end_mark: int) -> Stage:
    """A stage behind `watch` that ends only if the stream's end mark is at the offset `end_mark`.

    Raises IntegrityError.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield from upstream
        if stream.end_mark != end_mark:
            raise IntegrityError(
                f"the stream's end mark is not where the trailer says, at byte {end_mark}", offset=stream.end_mark
            )

    return stage


def _has_ended(stream: QemuStream, buffer: Buffer) -> bool:
    return stream.complete or (not len(buffer) and stream.could_end_here)


def _answer_pings(stream: QemuStream, answer: Answer | None) -> None:
    pings = stream.take_pings()
    if answer is not None and pings:
        answer(b"".join(map(pong, pings)))


def _refuse_postcopy(stream: QemuStream) -> None:
    if stream.postcopy:
        raise StatepipeError(
            "the migration went over to postcopy, which a file cannot answer",
            hint="turn the capability postcopy-ram off and save again",
        )


def _goes_on(stream: QemuStream) -> IntegrityError:
    return IntegrityError("the input goes on after the end of the migration stream", offset=stream.offset)


def _close(stream: QemuStream) -> None:
    """Accept the end, or say how far it came in the words of a person watching."""
    try:
        stream.close()
    except TruncatedError as error:
        raise TruncatedError(f"{error} ({describe(stream)})", hint=_HINT, offset=error.offset) from error


_HINT = "the migration was cancelled, QEMU ended, or the stream was cut on its way; nothing of it can be resumed"


def describe(stream: QemuStream) -> str:
    """How far a stream came: `120 MiB, 30712 pages, round 2`."""
    pages = stream.pages.normal + stream.pages.zero + stream.pages.xbzrle + stream.pages.compressed
    return f"{format_size(stream.offset)}, {pages} pages, round {stream.rounds}"


def hold(late: Callable[[int], bool], limit: int) -> Stage:
    """A stage that lets nothing out once `late(offset)` says so, until the stream above has ended cleanly.

    `offset` is the stream offset of a buffer's end. QEMU runs a guest as soon as it has read the end of the
    stream, so a verdict that comes with the last byte is too late. Raises StatepipeError when more than `limit`
    bytes would have to be held.
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
