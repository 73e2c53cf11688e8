"""inspect: what a file says of itself, or, of a stream that says nothing of itself, what its structure shows."""

from __future__ import annotations

from typing import Any

from statepipe.ends.fd import Nowhere
from statepipe.pipeline.pipeline import Pipeline
from statepipe.state.file import Keys, open_state
from statepipe.state.loading import Ends, foreign_state, read_ends


def inspect(path: str, keys: Keys) -> dict[str, Any]:
    """`file`, `size` (bytes), `format`, `header`, `trailer`; for a foreign stream, read whole, `stream` instead.

    Of an encrypted state no more is opened than its two ends.
    Raises StatepipeError as opening and reading do.
    """
    with open_state(path, keys) as source:
        ends = read_ends(source)
        facts = {"file": source.name, "size": source.stored(), "format": name_format(ends, source.sealed)}
        if ends.is_state:
            return facts | {"header": ends.header, "trailer": ends.trailer}
        state = foreign_state(source, ends)
        assert state.stream is not None
        Pipeline(source, state.stages, Nowhere()).pour()
        return facts | {"stream": state.stream.facts()}


def name_format(ends: Ends, sealed: str | None) -> str:
    """What to call a file of these ends, encrypted as `sealed` says."""
    name = "statepipe state" if ends.is_state else f"migration stream, {ends.codec}"
    return f"{name}, encrypted ({sealed})" if sealed else name
