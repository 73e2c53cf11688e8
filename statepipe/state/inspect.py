"""inspect: what a state file's metadata says; of a foreign stream, which has none, what its structure shows."""

from __future__ import annotations

from typing import Any

from statepipe.ends.fd import Nowhere
from statepipe.pipeline.pipeline import Pipeline
from statepipe.state.file import Keys, open_state
from statepipe.state.loading import Ends, foreign_state, read_ends


def inspect(path: str, keys: Keys) -> dict[str, Any]:
    """Return `file`, `size` (bytes), `format`, `header`, `trailer`; for a foreign stream, which is read whole, `stream`
    instead of the last two.

    Only the two ends of a state are decrypted. Raises StatepipeError.
    """
    with open_state(path, keys) as source:
        ends = read_ends(source)
        facts = {"file": source.name, "size": source.stored(), "format": name_format(ends, source.sealed)}
        if ends.is_state:
            return facts | {"header": ends.header, "trailer": ends.trailer}
        state = foreign_state(source, ends)
        assert state.stream is not None
        Pipeline(source, state.stages(), Nowhere()).pour()
        return facts | {"stream": state.stream.facts()}


def name_format(ends: Ends, sealed: str | None) -> str:
    """Return the name of the format of a file with these ends, encrypted as `sealed` says."""
    name = "statepipe state" if ends.is_state else f"migration stream, {ends.codec}"
    return f"{name}, encrypted ({sealed})" if sealed else name
