"""How a stream becomes a file of ours: zstd at one level, or at levels that adapt, as compress's parameters say.

`compress` makes a stage of it at once. `save` keeps it until the stream's header is known, and writes its word there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from statepipe.errors import UsageError
from statepipe.formats.statefile import Facts
from statepipe.stage import Stage
from statepipe.stages.codec import ZSTD, parse_codec
from statepipe.units import number_in

Pack = Callable[[Facts, Callable[[], Facts]], Stage]
"""Makes the stage that puts a stream, as zstd, between a header and a trailer."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a state file is compressed: the word for it, and what makes the stage."""

    word: str
    pack: Pack


def fixed(level: int) -> Packing:
    """zstd at one level."""

    def pack(header: Facts, trailer: Callable[[], Facts]) -> Stage:
        from statepipe.stages import zstd

        return zstd.pack(level, header, trailer)

    return Packing(f"compress:{ZSTD.name}:{level}", pack)


AUTO = "auto"
"""In a level's place: chosen frame by frame."""

AUTO_LEVELS = range(-7, 20)
"""Above 19 levels differ by windows that frames of 1 MiB have no use for."""


def adaptive(limits: Mapping[str, str | None], clock: Callable[[], float]) -> Packing:
    """zstd at levels from `limits["min"]` to `limits["max"]` that change from frame to frame. Raises UsageError."""
    low, high = _limit(limits, "min"), _limit(limits, "max")
    if low is not None and high is not None and low > high:
        raise UsageError(f"--min {low} is above --max {high}")
    lowest = AUTO_LEVELS[0] if low is None else low

    def pack(header: Facts, trailer: Callable[[], Facts]) -> Stage:
        from statepipe.stages import adapt

        return adapt.pack(lowest, high, clock, header, trailer)

    return Packing(f"compress:{ZSTD.name}:{AUTO}", pack)


def _limit(limits: Mapping[str, str | None], name: str) -> int | None:
    text = limits[name]
    if text is None:
        return None
    if not (level := number_in(text, AUTO_LEVELS[0], AUTO_LEVELS[-1])):
        raise UsageError(f"--{name} '{text[:40]}' is no level", hint="levels are -7 to -1 and 1 to 19")
    return level


def is_auto(values: Mapping[str, Any]) -> bool:
    """Whether compress's parameters ask for levels that adapt. Raises UsageError where they contradict each other."""
    codec = values["codec"] or ZSTD.name
    auto = values["adapt"] or codec in (AUTO, f"{ZSTD.name}:{AUTO}")
    if values["adapt"] and codec not in (AUTO, ZSTD.name, f"{ZSTD.name}:{AUTO}"):
        raise UsageError(f"--adapt chooses zstd's level itself, and '{codec}' is given", hint="leave one of them out")
    if not auto and (values["min"], values["max"]) != (None, None):
        raise UsageError("--min and --max are limits for zstd:auto", hint="write zstd:auto")
    return bool(auto)


def level_of_one_frame(values: Mapping[str, Any]) -> int:
    """zstd's level with --one-frame. Raises UsageError where something else is told that does not go with it."""
    if is_auto(values):
        raise UsageError("--one-frame and zstd:auto do not go together", hint="give a level, as in zstd:3")
    codec, level = parse_codec(values["codec"] or ZSTD.name)
    if codec is not ZSTD:
        raise UsageError(f"--one-frame is for zstd, not for {codec.name}", hint="lz4 is one frame as it is")
    return level


def packing(values: Mapping[str, Any], clock: Callable[[], float]) -> Packing:
    """How compress's parameters say a state file is to be compressed. Raises UsageError for another codec than zstd."""
    if values["one_frame"]:
        raise UsageError("a state file is many frames: that is how it is read in parts", hint="leave out --one-frame")
    if is_auto(values):
        return adaptive(values, clock)
    codec, level = parse_codec(values["codec"] or ZSTD.name)
    if codec is not ZSTD:
        hint = "a state file is zstd: write compress:zstd:LEVEL"
        raise UsageError(f"save does not compress with {codec.name}", hint=hint)
    return fixed(level)
