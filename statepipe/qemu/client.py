"""qemu.qmp's client with limits: it checks the length and shape of each message, and keeps no events."""

from __future__ import annotations

import asyncio

from qemu.qmp import QMPClient, Runstate
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message

from statepipe.qemu.answers import FIRST, LONGEST, MESSAGE
from statepipe.shapes import Misshapen, parse

FIRST_WORDS = 200
"""Bytes of the first message that are kept, to recognize a program that does not speak QMP."""


class Client(QMPClient):
    """A QMPClient that checks each message, and keeps no event: it sets `changed` when one arrives.

    `misfit` is what was wrong with the last message, `first_line` the beginning of the first one. `broken_off` is the
    status of the first migration that began after `expect_migration`, if it failed or was cancelled.
    """

    def __init__(self) -> None:
        super().__init__("statepipe", LONGEST)
        self.misfit: Misshapen | None = None
        self.first_line = b""
        self.changed = asyncio.Event()
        self.broken_off: str | None = None
        self._has_begun = False

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
            status = data.get("status") if isinstance(data, dict) else None
            if status == "setup" and not self._has_begun:  # before that, another client's migration may still end
                self.broken_off, self._has_begun = None, True
            elif status in ("failed", "cancelled") and self.broken_off is None:
                self.broken_off = status
        if msg["event"] in ("MIGRATION", "RESUME"):
            self.changed.set()

    def expect_migration(self) -> None:
        """Forget the events of earlier migrations: QEMU is about to be told to migrate."""
        self.broken_off, self._has_begun = None, False
