"""What a lazy load leaves in QEMU for the statepipe that continues it.

QEMU does not know which file its pages come from. So the load leaves an object in QEMU whose name contains a digest of
the state: `load --resume` refuses another state, which would mix the memory of two guests. A second object says that
the guest is to run: it was saved running and QEMU was not yet told to run it, or it was stopped for a damaged page. A
third one holds QEMU's migration settings as they were, so that they are restored at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from statepipe.errors import QemuGone, QemuRefused, QemuSilent
from statepipe.qemu.late_pages import MARK
from statepipe.shapes import Misshapen, fields, flag, parse, table, text
from statepipe.state.pagestore import PageStore
from statepipe.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it takes 25 ms, in which a QEMU can start
    from statepipe.qemu.monitor import Monitor

TO_RUN = "statepipe-to-run"

BEFORE = "statepipe-settings"

_SETTINGS = fields({"capabilities": table(flag, most=100), "parameters": table(text(), most=100)})

LONGEST = 64 << 10
"""Characters of these settings."""

UNKNOWN: Mapping[str, Any] = {"capabilities": {"postcopy-ram": False}, "parameters": {}}
"""What is restored if the third object is missing or cannot be understood."""


def identity(store: PageStore) -> str:
    """Return 32 hexadecimal digits that identify a state, however its file is compressed or encrypted."""
    return store.digest[:32]


class Marks:
    """The objects in the QEMU of `monitor`. They are secrets, the smallest objects that QEMU has; none is secret.

    `before` are the settings to restore at the end.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._state: str | None = None
        self._to_run = False
        self._has_before = False
        self.before = UNKNOWN

    def leave(self, digest: str, before: Mapping[str, Any], *, runs: bool) -> None:
        """Leave the digest of the state, the settings to restore, and whether the guest is to run. Raises QemuError."""
        self._state = MARK + digest
        self._add(self._state)
        self.before, self._has_before = before, True
        self._add(BEFORE, json.dumps(before))
        if runs:
            self.to_run()

    def find(self) -> str | None:
        """Return the digest that an earlier load left, or None. Raises QemuError."""
        names = [str(row["name"]) for row in self._monitor.execute("qom-list", path="/objects")]
        self._to_run = TO_RUN in names
        self._has_before = BEFORE in names
        if self._has_before:
            with suppress(Misshapen):
                said = self._monitor.execute("qom-get", path=f"/objects/{BEFORE}", property="data")
                self.before = parse(str(said)[:LONGEST], _SETTINGS)
        self._state = next((name for name in names if name.startswith(MARK)), None)
        return None if self._state is None else self._state.removeprefix(MARK)

    @property
    def says_to_run(self) -> bool:
        """Whether the guest is to run."""
        return self._to_run

    def to_run(self) -> None:
        """Note that the guest is to run once the load can continue. Raises QemuError."""
        if not self._to_run:
            self._to_run = True
            self._add(TO_RUN)

    def runs(self) -> None:
        """Remove that note: QEMU runs the guest."""
        if self._to_run:
            self._remove(TO_RUN)
            self._to_run = False

    def remove(self) -> None:
        """Remove all objects: the load is complete, or did not begin."""
        self.runs()
        if self._has_before:
            self._remove(BEFORE)
            self._has_before = False
        if self._state is not None:
            self._remove(self._state)
            self._state = None

    def _add(self, name: str, data: str = "") -> None:
        self._monitor.execute("object-add", qom_type="secret", id=name, data=data)

    def _remove(self, name: str) -> None:
        with suppress(QemuGone, QemuSilent, QemuRefused):  # a name that stays does no harm
            self._monitor.execute("object-del", id=name)
