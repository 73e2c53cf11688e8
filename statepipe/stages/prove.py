"""prove: follow a stream of any kind, and report at its end whether it is complete.

Plain TCP ends with a FIN, and a killed program's kernel sends the same. Only the stream itself can tell: QEMU's has
an end mark and a vmdesc, a statepipe stream has a trailer with a digest of every byte. Any other stream proves nothing,
and `Proof` says so. Nothing is changed or held back: the last byte has left before the verdict is known, so whoever
writes a file commits it only then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from statepipe.formats.metadata import META_MAGIC
from statepipe.formats.qemu.stream import QemuStream
from statepipe.formats.statefile import Checker
from statepipe.formats.zstdframe import Frame, FrameSplitter, Part
from statepipe.stage import Buffer, peek
from statepipe.stages.watch import Answer, watch

MIGRATION = b"QEVM"
CONTAINER = META_MAGIC.to_bytes(4, "little")
MARKS = MIGRATION, CONTAINER

REWRITTEN = 2
"""A stream is about that many times as long as the memory of a busy guest, whose pages are sent again."""


class Proof:
    """A stage that passes everything on, and raises IntegrityError or TruncatedError for an incomplete stream.

    `stream` or `checker` is the parser of the stream, once its kind is known. The stage is a Meter, `blind` if nothing
    can be proved. `answer` is passed to `watch`; it is given if the source is a QEMU that nobody else answers. `asked`
    is called once, as soon as that QEMU waits for answers.
    """

    def __init__(self, answer: Answer | None = None, asked: Callable[[], object] = lambda: None) -> None:
        self.stream: QemuStream | None = None
        self.checker: Checker | None = None
        self.blind = False
        self._answer, self._asked = answer, asked

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        head, whole = peek(upstream, lambda head: len(head) >= 4 or not any(mark.startswith(head) for mark in MARKS))
        if head.startswith(MIGRATION):
            self.stream = QemuStream()
            was_asked = False
            for buffer in watch(self.stream, self._answer)(whole):
                if self.return_path and not was_asked:
                    was_asked = True
                    self._asked()
                yield buffer
        elif head.startswith(CONTAINER):
            self.checker = Checker()
            yield from _follow(whole, self.checker)
        else:
            self.blind = True
            yield from whole

    def admit(self, wanted: int) -> int:
        return wanted

    def passed(self, count: int) -> None:
        """Do nothing: bytes that it does not see are not proved."""

    @property
    def vouches(self) -> bool:
        """Return whether every byte is proved: by the digest of a stream of ours."""
        return self.checker is not None

    @property
    def holds(self) -> bool:
        """Return whether the stream is proved complete, after it has ended without an error."""
        ours = self.checker is not None and self.checker.header is not None
        return ours or (self.stream is not None and self.stream.complete)

    def expected(self) -> int | None:
        """Return about how many bytes the stream has, by the guest's memory, which its beginning tells; None if it does
        not, or not yet."""
        header = self.checker.header if self.checker is not None else None
        ram = self.stream.ram_bytes if self.stream is not None else header and header.get("ram")
        return REWRITTEN * ram if ram else None

    @property
    def return_path(self) -> bool:
        """Return whether it is QEMU's and QEMU waits for an answer."""
        return self.stream is not None and self.stream.return_path


def _follow(upstream: Iterator[Buffer], checker: Checker) -> Iterator[Buffer]:
    """Pass a zstd stream on, with its frames checked but not decoded."""
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
