"""verify-state: read a state file whole, as load would, and believe nothing that is not proved."""

from __future__ import annotations

from typing import Any

from statepipe.ends.fd import Nowhere
from statepipe.formats.qemu.stream import QemuStream
from statepipe.pipeline.pipeline import NamedStage, Pipeline
from statepipe.stages.checksum import verify
from statepipe.stages.codec import RAW, decompress
from statepipe.stages.watch import alone, ends_at, watch
from statepipe.state.file import Keys, open_state
from statepipe.state.inspect import name_format
from statepipe.state.loading import Ends, read_ends


def verify_state(path: str, keys: Keys) -> dict[str, Any]:
    """`file`, `size`, `bytes` of the stream, `format`, `digest` (whether one was there to compare).

    The digests are compared, every frame is decoded, and the stream parsed to its end. Raises IntegrityError or
    TruncatedError with the offset, StatepipeError if the file cannot be read, or is no state by itself.
    """
    with open_state(path, keys) as source:
        ends = read_ends(source)
        stream = QemuStream()
        stages: list[NamedStage] = [*_decoders(ends), ("watch", watch(stream)), ("alone", alone(stream))]
        if ends.is_state and ends.trailer is not None:
            stages.append(("watch", ends_at(stream, ends.trailer["end_mark"])))
        Pipeline(source, stages, Nowhere()).pour()
        facts = {
            "file": source.name,
            "size": source.stored(),
            "format": name_format(ends, source.sealed),
            "bytes": stream.offset,
        }
        return facts | {"digest": ends.trailer is not None, "proof": stream.proof}


def _decoders(ends: Ends) -> list[NamedStage]:
    if ends.codec == RAW:
        return []
    stages: list[NamedStage] = [("decompress", decompress())]
    if ends.is_state and ends.trailer is not None:
        stages.append(("verify", verify(ends.trailer["blake3"], "blake3")))
    return stages
