"""prove: follow what passes, whatever it is, and say at its end whether that was the end.

Plain TCP ends with a FIN, and a killed program's kernel sends the same. Only the stream itself can tell: QEMU's has
an end mark and a vmdesc, a statepipe stream has a trailer with a digest of every byte. Where neither is there,
nothing is proved, and `Proof` says so. Nothing is changed; nothing is held back either: the last byte has left when
the verdict comes, so whoever writes a file commits it only then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from statepipe.formats.qemu.stream import QemuStream
from statepipe.formats.statefile import META_MAGIC, Checker
from statepipe.formats.zstdframe import Frame, FrameSplitter, Part
from statepipe.stage import Buffer, Stage, peek
from statepipe.stages.watch import Answer, watch

MIGRATION = b"QEVM"
CONTAINER = META_MAGIC.to_bytes(4, "little")


@dataclass
class Proof:
    """What the stream turned out to be, filled as it flows. `stream` is QEMU's, if it is one."""

    stream: QemuStream | None = None
    checker: Checker | None = None

    @property
    def holds(self) -> bool:
        """Once the stream has ended without an error: whether that proves it whole."""
        ours = self.checker is not None and self.checker.header is not None
        return ours or (self.stream is not None and self.stream.complete)

    @property
    def return_path(self) -> bool:
        """Whether it is QEMU's and its QEMU waits for an answer."""
        return self.stream is not None and self.stream.return_path


def prove(proof: Proof, answer: Answer | None = None) -> Stage:
    """A stage that passes everything on and ends with IntegrityError or TruncatedError where it can be seen cut.

    `answer`, given where a QEMU is above and nobody else answers it, is what `watch` takes.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        head, whole = peek(upstream, lambda head: not is_undecided(head))
        if head.startswith(MIGRATION):
            proof.stream = QemuStream()
            yield from watch(proof.stream, answer)(whole)
        elif head.startswith(CONTAINER):
            proof.checker = Checker()
            yield from _follow(whole, proof.checker)
        else:
            yield from whole

    return stage


def is_undecided(head: bytes) -> bool:
    """Whether a stream that begins so could still be one that proves itself, and not yet be known as one."""
    return len(head) < 4 and any(mark.startswith(head) for mark in (MIGRATION, CONTAINER))


def proves_itself(head: bytes) -> bool:
    """Whether a stream that begins so is followed to its end."""
    return head.startswith((MIGRATION, CONTAINER))


def _follow(upstream: Iterator[Buffer], checker: Checker) -> Iterator[Buffer]:
    """Pass a zstd stream on, frame by frame past the checker, undecoded."""
    from statepipe.stages.zstd import check_skippable

    splitter = FrameSplitter()
    total = 0
    for buffer in upstream:
        total += len(buffer)
        for piece in splitter.feed(buffer):
            if isinstance(piece, Frame):
                checker.frame(piece.data, piece.content_size or 0, piece.offset)
            elif isinstance(piece, Part):
                checker.large(piece.offset)
            else:
                check_skippable(piece, checker)
        yield buffer
    splitter.close()
    checker.close(total)
