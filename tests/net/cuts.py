"""Ways to cut a stream that crosses between two hosts, and to mend it."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.test_pair import pair
from tests.net.crossing import MIB, Crossing, Keys

ADDRESSES = itertools.cycle(f"192.0.2.{number}" for number in range(100, 200))

TABLE = "STATEPIPE_FAULTS_TABLE"
"""Names the file that the figures are written to; `make faults` shows it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What is done to a crossing, and what undoes it."""

    name: str
    begin: Callable[[Crossing], object]
    mend: Callable[[Crossing], object]


def _lose_long_packets(it: Crossing) -> None:
    it.hosts[1].rules("meta length > 1200 drop")


CUTS = {
    each.name: each
    for each in (
        Cut("reset", lambda it: it.hosts[1].refuse(it.port), lambda it: it.hosts[1].rules()),
        Cut("black hole", lambda it: it.hosts[1].swallow(), lambda it: it.hosts[1].rules()),
        Cut("black hole for answers", lambda it: it.hosts[0].swallow(), lambda it: it.hosts[0].rules()),
        Cut("cable", lambda it: it.hosts[1].cut(), lambda it: it.hosts[1].mend()),
        Cut("address", lambda it: None, lambda it: it.hosts[0].change_address(next(ADDRESSES))),
        Cut("long packets lost", _lose_long_packets, lambda it: it.hosts[1].rules()),
        Cut(
            "sender stopped",
            lambda it: it.sender.send_signal(signal.SIGSTOP),
            lambda it: it.sender.send_signal(signal.SIGCONT),
        ),
        Cut(
            "receiver stopped",
            lambda it: it.receiver.send_signal(signal.SIGSTOP),
            lambda it: it.receiver.send_signal(signal.SIGCONT),
        ),
    )
}
"""By name. With `address` it is mended by the cut itself."""


def paired(folder: Path) -> Keys:
    """Settings of two hosts that know each other, as `pair` leaves them."""
    pair(folder / "receiver", folder / "sender")
    return folder / "sender", folder / "receiver"


def note(text: str) -> None:
    """A line for the table that stands at the end of a run of `make faults`."""
    if path := os.environ.get(TABLE):
        with open(path, "a") as table:
            table.write(f"session: {text}\n")


def note_cut(what: str, seconds: float, resumed: float, resent: int | None = None) -> None:
    """How long a cut lasted, when the stream went on after it, and how many bytes went again."""
    again = "" if resent is None else f"  {resent / MIB:7.2f} MiB again"
    note(f"{what:32} {seconds:5.1f} s  going on after {resumed:6.3f} s{again}")
