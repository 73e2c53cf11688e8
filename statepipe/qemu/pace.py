"""Detect a guest that changes its memory faster than it is sent. QEMU sends changed memory again, round after round."""

from __future__ import annotations

import time

from statepipe.typed import Any
from statepipe.units import format_size

FIRST_ROUND = 4
"""The round from which the pace is judged: the first sends everything, the next ones what changed meanwhile."""

HOPELESS = 0.9
"""The ratio of memory changed to memory sent per second from which on no round is much shorter than the one before."""

AGAIN = 60.0
"""Seconds until the same warning is repeated; then four times as many, and so on."""

WAYS_OUT = "--offline, or --timeout with --on-timeout suspend, stops the guest for it; --auto-converge slows it down"

AT_MONITOR = (
    "allow a longer downtime (in ms) at QEMU's monitor: migrate_set_parameter downtime-limit 5000; or cancel it there "
    "(migrate_cancel), and save with --qmp SOCKET --offline"
)


class Pace:
    """Receives QEMU's figures during a migration, and returns a warning if it will not end."""

    def __init__(self) -> None:
        self._sent: tuple[float, int] | None = None
        self._quiet_until, self._again = 0.0, AGAIN

    def judge(self, figures: dict[str, Any]) -> str | None:
        """Return the warning that follows from query-migrate's answer, if any."""
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
            f"{format_size(changed)} of memory per second, but only {format_size(int(taken))} per second are sent; "
            f"at this pace the migration never ends: {WAYS_OUT}"
        )


class StreamPace:
    """Does the same for a save that QEMU started by exec:, by the stream alone.

    A round sends what the guest changed during the round before. If rounds do not become shorter, there is no end.
    """

    def __init__(self) -> None:
        self._round, self._from = 0, (0.0, 0)  # when the round began (time.monotonic), and at which byte
        self._before: int | None = None  # bytes of the last complete round
        self._quiet_until, self._again = 0.0, AGAIN

    def judge(self, now: float, number: int, offset: int) -> str | None:
        """Return the warning that follows at this moment, if any: `number` is the round, `offset` the bytes so far."""
        if number == self._round:
            return None
        began, at = self._from
        sent, seconds, before = offset - at, now - began, self._before
        is_next = number == self._round + 1
        self._round, self._from = number, (now, offset)
        self._before = sent if is_next else None  # else several rounds passed since the last call
        if number <= FIRST_ROUND or not is_next or not before or sent < HOPELESS * before or now < self._quiet_until:
            return None
        self._quiet_until, self._again = now + self._again, 4 * self._again
        return (
            f"round {number}, {format_size(offset)} sent: the last round took {seconds:.1f} s for {format_size(sent)}, "
            f"the one before sent {format_size(before)}: the guest changes its memory as fast as it is sent, and at "
            f"this pace the save never ends: {AT_MONITOR}"
        )
