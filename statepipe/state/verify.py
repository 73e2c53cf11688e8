"""verify-state: read a state file whole, as load would, and believe nothing that is not proved."""

from __future__ import annotations

from collections.abc import Sequence

from statepipe.ends.fd import Nowhere
from statepipe.errors import IntegrityError
from statepipe.formats.qemu.pageframes import difference
from statepipe.formats.qemu.pages import PageIndex
from statepipe.formats.qemu.stream import QemuStream
from statepipe.pipeline.pipeline import NamedStage, Pipeline
from statepipe.stages.checksum import verify
from statepipe.stages.codec import RAW, decompress
from statepipe.stages.watch import alone, ends_at, watch
from statepipe.state.file import Keys, open_state
from statepipe.state.inspect import name_format
from statepipe.state.loading import Ends, read_ends
from statepipe.state.pageindex import read_index
from statepipe.state.source import StateFile, damage_named
from statepipe.typed import Any


def verify_state(path: str, keys: Keys) -> dict[str, Any]:
    """`file`, `size`, `bytes` of the stream, `format`, `digest` (whether one was there to compare), `raw`
    (whether the stream is not compressed, so that nothing shows a changed bit in its pages).

    The digests are compared, every frame is decoded, the stream is parsed to its end, and its pages are where the index
    says, if the file has one. Raises IntegrityError or TruncatedError with the offset, StatepipeError if the file
    cannot be read, or is no state by itself.
    """
    with open_state(path, keys) as source:
        ends = read_ends(source)
        stream = QemuStream()
        with damage_named(source.name):
            index = read_index(source, ends)
            if index is not None:
                stream.record_pages()
            read_whole(source, ends, stream, behind=[("alone", alone(stream))])
            if index is not None:
                demand_equal(index, stream.page_index())
        facts = {
            "file": source.name,
            "size": source.stored(),
            "format": name_format(ends, source.sealed),
            "bytes": stream.offset,
        }
        told = {"digest": ends.trailer is not None, "proof": stream.proof, "index": index is not None}
        return facts | told | {"raw": ends.codec == RAW}


def read_whole(
    source: StateFile,
    ends: Ends,
    stream: QemuStream,
    *,
    before: Sequence[NamedStage] = (),
    behind: Sequence[NamedStage] = (),
) -> None:
    """Read an open file from its beginning to its end, and prove what can be proved of it; `stream` follows.

    `before` are stages on the file's bytes, `behind` are stages behind the parser. Raises IntegrityError and
    TruncatedError.
    """
    Pipeline(source, [*before, *proving(ends, stream, behind)], Nowhere()).pour()


def proving(ends: Ends, stream: QemuStream, behind: Sequence[NamedStage] = ()) -> list[NamedStage]:
    """Return new stages that decode a file with these ends and prove what can be proved of it; `stream` follows.

    `behind` are stages behind the parser.
    """
    stages = [*plain(ends), ("watch", watch(stream)), *behind]
    if ends.is_state and ends.trailer is not None:
        stages.append(("watch", ends_at(stream, ends.trailer["end_mark"])))
    return stages


def plain(ends: Ends) -> list[NamedStage]:
    """Return new stages that decode a file with these ends, and compare the digest of the stream if it has one."""
    stages: list[NamedStage] = [] if ends.codec == RAW else [("decompress", decompress())]
    if ends.is_state and ends.trailer is not None:
        stages.append(("verify", verify(ends.trailer["blake3"], "blake3")))
    return stages


def demand_equal(index: PageIndex, seen: PageIndex) -> None:
    """Raises IntegrityError where the index of the file differs from what was seen in the stream."""
    if found := difference(index, seen):
        what, place = found
        raise IntegrityError(
            f"the page index does not describe the stream: it is wrong about {what}",
            hint="the stream is whole; write a new file of it: zstd -dc FILE | statepipe save ANOTHER > /dev/null",
            stage="index",
            offset=place,
        )
