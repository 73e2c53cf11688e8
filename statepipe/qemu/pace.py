"""Whether a guest's memory gets through: what it changes while it is sent has to be sent again, round after round."""

from __future__ import annotations

import time
from typing import Any

from statepipe.units import format_size

FIRST_ROUND = 4
"""The round from which a pace is judged: the first sends all, and the next ones what had changed meanwhile."""

HOPELESS = 0.9
"""The part of what is sent in a second that is changed in it, from which on no round is much shorter than the last."""

AGAIN = 60.0
"""Seconds until the same is told again; then four times as many."""

WAYS_OUT = "--offline, or --timeout with --on-timeout suspend, stops the guest for it; --auto-converge slows it down"


class Pace:
    """Takes QEMU's figures as they come, and has the words for a person where they lead to no end."""

    def __init__(self) -> None:
        self._sent: tuple[float, int] | None = None
        self._quiet_until, self._again = 0.0, AGAIN

    def judge(self, figures: dict[str, Any]) -> str | None:
        """What is to be said of query-migrate's answer, if anything."""
        now, ram = time.monotonic(), figures.get("ram", {})
        before, self._sent = self._sent, (now, ram.get("transferred", 0))
        changed = ram.get("dirty-pages-rate", 0) * ram.get("page-size", 0)
        if before is None or now <= before[0] or figures["status"] != "active" or not changed:
            return None
        taken = (self._sent[1] - before[1]) / (now - before[0])
        if ram["dirty-sync-count"] < FIRST_ROUND or changed < HOPELESS * taken or now < self._quiet_until:
            return None
        self._quiet_until, self._again = now + self._again, 4 * self._again
        return (
            f"round {ram['dirty-sync-count']}, {format_size(ram['transferred'])} sent: the guest changes "
            f"{format_size(changed)} of its memory a second, and {format_size(int(taken))} a second get through; "
            f"at this pace there is no end: {WAYS_OUT}"
        )


class StreamPace:
    """The same by the stream alone, of a save that QEMU has started by exec: and tells nothing of.

    What a round sends is what the guest had changed while the one before it was sent. So where rounds are no shorter
    than those before them, there is no end.
    """

    def __init__(self) -> None:
        self._round, self._from = 0, (0.0, 0)  # when the round began (time.monotonic), and at which byte
        self._before: int | None = None  # bytes of the last round that is complete
        self._quiet_until, self._again = 0.0, AGAIN

    def judge(self, now: float, number: int, offset: int) -> str | None:
        """What is to be said at a look: `number` is the round, `offset` the bytes so far."""
        if number == self._round:
            return None
        began, at = self._from
        sent, seconds, before = offset - at, now - began, self._before
        is_next = number == self._round + 1
        self._round, self._from = number, (now, offset)
        self._before = sent if is_next else None  # else several were shorter than a look
        if number <= FIRST_ROUND or not is_next or not before or sent < HOPELESS * before or now < self._quiet_until:
            return None
        self._quiet_until, self._again = now + self._again, 4 * self._again
        return (
            f"round {number}, {format_size(offset)} sent: the last round took {seconds:.1f} s for {format_size(sent)}, "
            f"and the one before it sent {format_size(before)}: the guest changes its memory as fast as it gets "
            f"through, and at this pace there is no end: {AT_MONITOR}"
        )


AT_MONITOR = (
    "give it more milliseconds to stand still, at QEMU's monitor: migrate_set_parameter downtime-limit 5000; or end it "
    "there (migrate_cancel), and save with --qmp SOCKET --offline"
)
