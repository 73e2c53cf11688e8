"""How a stream is compressed: a codec at a level, or zstd at levels that follow the sink, as compress's options say.

`Choice.stage` is the stage of `compress`. `Choice.packing` is for a state file, whose header is known only later, and
holds the word that says how it was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from statepipe.errors import UsageError
from statepipe.formats.statefile import Facts
from statepipe.stage import Stage
from statepipe.stages.codec import ZSTD, Codec, parse_codec
from statepipe.units import number_in

Pack = Callable[[Facts, Callable[[], Facts]], Stage]
"""Makes the stage that puts a stream, as zstd, between a header and a trailer."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a state file is compressed: the word for it, and what makes the stage."""

    word: str
    pack: Pack


AUTO = "auto"
"""In a level's place: chosen frame by frame."""

AUTO_LEVELS = range(-7, 20)
"""Above 19 levels differ by windows that frames of 1 MiB have no use for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A codec and its level; no level for zstd between `lowest` and `highest`, chosen from frame to frame."""

    codec: Codec
    level: int | None
    lowest: int = AUTO_LEVELS[0]
    highest: int | None = None
    one_frame: bool = False

    def stage(self, clock: Callable[[], float]) -> Stage:
        """The stage of `compress`; `clock` gives monotonic seconds."""
        if self.one_frame and self.level is not None:
            from statepipe.stages.zstd import in_one_frame

            return in_one_frame(self.level)
        if self.level is None:
            return self._pack(clock)({"kind": "stream"}, lambda: {})
        return self.codec.module.compress(self.level)

    def packing(self, clock: Callable[[], float]) -> Packing:
        """The same for a state file. Raises UsageError for anything but zstd in many frames."""
        if self.one_frame:
            raise UsageError(
                "a state file is many frames: that is how it is read in parts", hint="leave out --one-frame"
            )
        if self.codec is not ZSTD:
            hint = "a state file is zstd: write compress:zstd:LEVEL"
            raise UsageError(f"save does not compress with {self.codec.name}", hint=hint)
        level = AUTO if self.level is None else self.level
        return Packing(f"compress:{ZSTD.name}:{level}", self._pack(clock))

    def _pack(self, clock: Callable[[], float]) -> Pack:
        def pack(header: Facts, trailer: Callable[[], Facts]) -> Stage:
            if self.level is None:
                from statepipe.stages import adapt

                return adapt.pack(self.lowest, self.highest, clock, header, trailer)
            from statepipe.stages import zstd

            return zstd.pack(self.level, header, trailer)

        return pack


def choose(
    codec: str | None = None,
    *,
    adapt: bool = False,
    min: int | str | None = None,
    max: int | str | None = None,
    one_frame: bool = False,
) -> Choice:
    """Read compress's options. Raises UsageError for what does not exist or contradicts itself."""
    codec = codec or ZSTD.name
    auto = codec in (AUTO, f"{ZSTD.name}:{AUTO}")
    if adapt and not auto and codec != ZSTD.name:
        raise UsageError(f"--adapt chooses zstd's level itself, and '{codec}' is given", hint="leave one of them out")
    if auto or adapt:
        if one_frame:
            raise UsageError("--one-frame and zstd:auto do not go together", hint="give a level, as in zstd:3")
        return _adaptive(_limit(min, "min"), _limit(max, "max"))
    if (min, max) != (None, None):
        raise UsageError("--min and --max are limits for zstd:auto", hint="write zstd:auto")
    found, level = parse_codec(codec)
    if one_frame and found is not ZSTD:
        raise UsageError(f"--one-frame is for zstd, not for {found.name}", hint="lz4 is one frame as it is")
    return Choice(found, level, one_frame=one_frame)


def _adaptive(low: int | None, high: int | None) -> Choice:
    if low is not None and high is not None and low > high:
        raise UsageError(f"--min {low} is above --max {high}")
    return Choice(ZSTD, None, AUTO_LEVELS[0] if low is None else low, high)


def _limit(given: int | str | None, name: str) -> int | None:
    if given is None:
        return None
    text = str(given)
    if not (level := number_in(text, AUTO_LEVELS[0], AUTO_LEVELS[-1])):
        raise UsageError(f"--{name} '{text[:40]}' is no level", hint="levels are -7 to -1 and 1 to 19")
    return level
