"""qemu.qmp's client with limits: it checks the length and shape of each message, and keeps no events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from qemu.qmp import QMPClient, Runstate
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message

from statepipe.qemu.answers import FIRST, LONGEST, MESSAGE
from statepipe.qemu.runstates import FINAL
from statepipe.shapes import Misshapen, parse

FIRST_WORDS = 200
"""Bytes of the first message that are kept, to recognize a program that does not speak QMP."""


class Client(QMPClient):
    """A QMPClient that checks each message, and keeps no event: it sets `changed` when one arrives, and `settled` when
    it says that a migration has ended.

    `misfit` is what was wrong with the last message, `first_line` the beginning of the first one. `broken_off` is the
    status of the first migration that began after `expect_migration`, if it failed or was cancelled, and `is_loaded`
    says that it completed. `heard` is called at once with each status of that migration, and with STOP and RESUME.
    """

    def __init__(self) -> None:
        super().__init__("statepipe", LONGEST)
        self.misfit: Misshapen | None = None
        self.first_line = b""
        self.changed, self.settled = asyncio.Event(), asyncio.Event()
        self.heard: Callable[[str], object] = lambda what: None
        self.broken_off: str | None = None
        self.is_loaded = False
        self._is_expected = self._has_begun = False

    def _cb_inbound(self, msg: Message) -> Message:
        return msg  # qemu.qmp would format each message for a log that does not exist

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    async def _do_recv(self) -> Message:
        """Return the next message. The client cannot handle an event before it is connected, but QEMU may send one
        before its greeting or before the answer to qmp_capabilities: such events are dropped."""
        while "event" in (message := await self._message()) and self.runstate is Runstate.CONNECTING:
            continue
        return message

    async def _message(self) -> Message:
        try:
            line = await self._readline()
        except ValueError:
            self.misfit = Misshapen(f"it is longer than {LONGEST >> 20} MiB")
            raise ProtocolError(str(self.misfit)) from self.misfit
        self.first_line = self.first_line or line[:FIRST_WORDS]
        try:
            return Message(parse(line, MESSAGE if self._greeting else FIRST))
        except Misshapen as error:
            self.misfit = error
            raise ProtocolError(str(error)) from error

    async def _on_message(self, msg: Message) -> None:
        if "event" not in msg:
            await super()._on_message(msg)
            return
        if msg["event"] == "MIGRATION":
            data = msg.get("data")
            self._on_status(data.get("status") if isinstance(data, dict) else None)
        elif msg["event"] in ("STOP", "RESUME"):
            self.heard(str(msg["event"]))
        if msg["event"] in ("MIGRATION", "RESUME"):
            self.changed.set()

    def _on_status(self, status: object) -> None:
        if status == "setup" and not self._has_begun:  # before that, another client's migration may still end
            self.broken_off, self._has_begun = None, True
        elif status in ("failed", "cancelled") and self.broken_off is None:
            self.broken_off = str(status)
        if self._is_expected and self._has_begun and self.broken_off is None and isinstance(status, str):
            self.is_loaded = self.is_loaded or status == "completed"
            self.heard(status)
        if status in FINAL:
            self.settled.set()

    def expect_migration(self, *, incoming: bool = False) -> None:
        """Forget the events of earlier migrations: QEMU is about to be told to migrate. One that waits for an
        `incoming` guest has had no other, and may not report that it begins."""
        self.broken_off, self.is_loaded = None, False
        self._is_expected, self._has_begun = True, incoming
