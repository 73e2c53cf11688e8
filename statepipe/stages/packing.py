"""How a stream is compressed, from `compress`'s options: a codec at a level, or zstd at levels that follow the sink.

`Compression.stage` makes the stage of `compress`. `Compression.packing` is for a state file, whose header is known only
later.
"""

from __future__ import annotations

from collections.abc import Callable

from statepipe.errors import UsageError
from statepipe.formats.libvirtimage import Domain
from statepipe.formats.metadata import Facts
from statepipe.formats.statefile import Indexed
from statepipe.stage import Stage
from statepipe.stages.codec import ZSTD, Codec, parse_codec
from statepipe.typed import NamedTuple
from statepipe.units import number_in

Pack = Callable[[Facts, Callable[[], Facts], Callable[[], Indexed | None], Domain | None], Stage]
"""Makes a stage that writes a stream as zstd between a header and a trailer, with an index of pages before it, and
what libvirt knows of the guest behind the header."""


class Packing(NamedTuple):
    """How a state file is compressed: the word that its header has, and the function that makes the stage."""

    word: str
    pack: Pack


AUTO = "auto"
"""Instead of a level: it is chosen frame by frame."""

AUTO_LEVELS = range(-7, 20)
"""Levels above 19 only have larger windows, which frames of 1 MiB cannot use."""


class Compression(NamedTuple):
    """A codec and its level; None for zstd at levels between `lowest` and `highest`, chosen frame by frame."""

    codec: Codec
    level: int | None
    lowest: int = AUTO_LEVELS[0]
    highest: int | None = None
    one_frame: bool = False

    def stage(self, clock: Callable[[], float]) -> Stage:
        """Return the stage of `compress`; `clock` returns monotonic seconds."""
        if self.one_frame and self.level is not None:
            from statepipe.stages.zstd import in_one_frame

            return in_one_frame(self.level)
        if self.level is None:
            return self._pack(clock)({"kind": "stream"}, lambda: {}, lambda: None, None)
        return self.codec.module.compress(self.level)

    def packing(self, clock: Callable[[], float]) -> Packing:
        """Return how to compress a state file. Raises UsageError for anything but zstd in many frames."""
        if self.one_frame:
            what = "a state file cannot be one frame, because parts of it are read alone"
            raise UsageError(what, hint="leave out --one-frame")
        if self.codec is not ZSTD:
            hint = "a state file is always zstd: use compress:zstd:LEVEL"
            raise UsageError(f"save cannot compress with {self.codec.name}", hint=hint)
        level = AUTO if self.level is None else self.level
        return Packing(f"compress:{ZSTD.name}:{level}", self._pack(clock))

    def _pack(self, clock: Callable[[], float]) -> Pack:
        def pack(
            header: Facts, trailer: Callable[[], Facts], index: Callable[[], Indexed | None], domain: Domain | None
        ) -> Stage:
            if self.level is None:
                from statepipe.stages import adapt

                return adapt.pack(self.lowest, self.highest, clock, header, trailer, index, domain)
            from statepipe.stages import zstd

            return zstd.pack(self.level, header, trailer, index, domain)

        return pack


def choose(
    codec: str | None = None,
    *,
    adapt: bool = False,
    min: int | str | None = None,
    max: int | str | None = None,
    one_frame: bool = False,
) -> Compression:
    """Return the compression that these options of `compress` mean. Raises UsageError for invalid combinations."""
    codec = codec or ZSTD.name
    auto = codec in (AUTO, f"{ZSTD.name}:{AUTO}")
    if adapt and not auto and codec != ZSTD.name:
        what = f"--adapt chooses zstd's level, so it cannot be combined with '{codec}'"
        raise UsageError(what, hint="leave one of them out")
    if auto or adapt:
        if one_frame:
            raise UsageError("--one-frame and zstd:auto cannot be combined", hint="give a level, as in zstd:3")
        low, high = _limit(min, "min"), _limit(max, "max")
        if low is not None and high is not None and low > high:
            raise UsageError(f"--min {low} is above --max {high}")
        return Compression(ZSTD, None, AUTO_LEVELS[0] if low is None else low, high)
    if (min, max) != (None, None):
        raise UsageError("--min and --max only limit the levels of zstd:auto", hint="use zstd:auto")
    found, level = parse_codec(codec)
    if one_frame and found is not ZSTD:
        raise UsageError(f"--one-frame is for zstd, not for {found.name}", hint="leave it out; lz4 is always one frame")
    return Compression(found, level, one_frame=one_frame)


def _limit(given: int | str | None, name: str) -> int | None:
    if given is None:
        return None
    text = str(given)
    if not (level := number_in(text, AUTO_LEVELS[0], AUTO_LEVELS[-1])):
        raise UsageError(f"--{name} '{text[:40]}' is not a level", hint="levels are -7 to -1 and 1 to 19")
    return level
