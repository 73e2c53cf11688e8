"""What is done to a guest for one stream of it, and how it is undone where that stream does not come to its end.

Here, as far as QEMU was seen to be as before; by the guardian, where we are killed or where QEMU does not answer us. It
hears each step before QEMU does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from statepipe.commands.guardian import Guardian
from statepipe.errors import QemuError, QemuGone, StatepipeError
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.runstates import LIVE, SENT
from statepipe.qemu.settings import are_restored


class Undoing:
    """Of the guest behind `monitor`, whose socket is `qmp`."""

    def __init__(self, guardian: Guardian, monitor: Monitor, qmp: str) -> None:
        self._guardian, self._monitor, self._qmp = guardian, monitor, qmp
        self._known: dict[str, Any] = {}

    def begin(self, was: str, before: Mapping[str, Any]) -> None:
        """QEMU's settings (settings.adjust gives `before`) are about to be changed, of a guest whose run state is
        `was`. Raises QemuError."""
        facts = {"qmp": self._qmp, "pid": self._monitor.pid, "runs": was in LIVE, "was": was, "before": before}
        self._note({"state": "SENDING", "earlier": self._monitor.migration()["status"]} | facts)

    def stops(self) -> None:
        """The guest is about to be stopped."""
        self._note({"stopped": True})

    def migrates(self) -> None:
        """QEMU is about to be told to migrate: what it says of a migration from now on is not an earlier one's."""
        self._note({"earlier": ""})

    def goes_on(self) -> None:
        """QEMU is to send by itself: it goes on without us."""
        self._note({"goes_on": True})

    def keep(self, snapshot: int) -> None:
        """`snapshot` is our end of a snapshot's stream, which must be read to its end."""
        self._guardian.note({}, {"snapshot": snapshot})

    def over(self) -> None:
        """There is nothing to undo any more, whatever comes."""
        self._known = {}
        self._guardian.note({"over": True})

    def _note(self, facts: dict[str, Any]) -> None:
        self._known |= facts
        self._guardian.note(facts)

    def is_done(self) -> bool:
        """Whether QEMU says that nothing is left to undo. Raises QemuError."""
        if not self._known:
            return True
        state = self._monitor.run_state()
        as_before = state in LIVE if self._known["runs"] else state == self._known["was"]
        return (as_before or state == SENT) and are_restored(self._monitor, self._known["before"])


@contextmanager
def undone(guardian: Guardian, monitor: Monitor, qmp: str) -> Iterator[Undoing]:
    """What fails within it in a way that was foreseen, who is within it undoes, and if QEMU is not seen to be as
    before, the guardian does once we have ended."""
    undoing = Undoing(guardian, monitor, qmp)
    try:
        yield undoing
    except QemuGone:
        guardian.settle()
        raise
    except StatepipeError as error:
        try:
            is_done = undoing.is_done()
        except QemuGone:
            is_done = True
        except QemuError:
            is_done = False
        if is_done:
            guardian.settle()
        else:
            guardian.leave()
            hint = f"what is not as before, statepipe's guardian (process {guardian.pid}) sets right once QEMU answers"
            error.hint = "; ".join(filter(None, [error.hint, hint]))
        raise
