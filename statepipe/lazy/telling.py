"""The options of a lazy load, and the functions that it calls to report what happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from statepipe.pipeline.signals import ignore
from statepipe.telling import Tell
from statepipe.typed import NamedTuple


class Summary(NamedTuple):
    """The figures of a complete lazy load: bytes of the pages that were sent, and those sent before the guest ran; the
    number of requests, the seconds of their median and longest wait, and the seconds since the guest was there."""

    bytes: int
    first: int
    asked: int
    median: float
    longest: float
    seconds: float


class LazyOptions(NamedTuple):
    """Whether all of the file is verified before QEMU is reached; how many bytes a second of memory that the guest does
    not wait for are sent at most; and for how many seconds the working set is learned, if it is. `words` are those of
    a command line that name the keys of an encrypted state, and that rate."""

    verify_first: bool = False
    rate: int | None = None
    learn: float | None = None
    words: Sequence[str] = ()


class LazyTelling(NamedTuple):
    """Messages of a lazy load. `here` gets the run state that QEMU reported and the command that continues the load;
    `complete` gets the figures at the end. `settled`: QEMU answered, and no signal undoes the load from then on.
    `learned` gets the path of the working set, the bytes of its pages, and whether it was limited to these.
    `nothing_left` gets the run state: there was nothing to continue, as QEMU has all memory."""

    warn: Tell
    here: Callable[[str, str], None]
    complete: Callable[[Summary], None]
    learned: Callable[[str, int, bool], None]
    nothing_left: Callable[[str], None]
    settled: Callable[[], None] = ignore
