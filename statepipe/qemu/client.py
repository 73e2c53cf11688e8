"""qemu.qmp's client, bounded: what it reads has a length and a shape, and no event is kept."""

from __future__ import annotations

import asyncio

from qemu.qmp import QMPClient, Runstate
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message

from statepipe.qemu.answers import FIRST, LONGEST, MESSAGE
from statepipe.shapes import Misshapen, parse

FIRST_WORDS = 200
"""Bytes of what came first that are kept, to tell what answers where no QMP monitor does."""


class Client(QMPClient):
    """A QMPClient that bounds what it reads and holds it against its shape, and that keeps no event: it tells that
    some came (`changed`). `misfit` is what was wrong with what came last, `first_line` what came first.

    `broken_off` is how the first migration that began since `expect_migration` ended, if it failed or was cancelled.
    """

    def __init__(self) -> None:
        super().__init__("statepipe", LONGEST)
        self.misfit: Misshapen | None = None
        self.first_line = b""
        self.changed = asyncio.Event()
        self.broken_off: str | None = None
        self._has_begun = False

    def _cb_inbound(self, msg: Message) -> Message:
        return msg  # nor is each written out for a log that nobody keeps

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    async def _do_recv(self) -> Message:
        """What comes next. The client knows no event until it is connected, but QEMU may be quicker with one than with
        its greeting or the answer to qmp_capabilities."""
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
        if "event" in msg:
            if msg["event"] == "MIGRATION":
                self._note(msg.get("data"))
            if msg["event"] in ("MIGRATION", "RESUME"):
                self.changed.set()
        else:
            await super()._on_message(msg)

    def expect_migration(self) -> None:
        """QEMU is about to be told to migrate: what it said of earlier migrations does not count."""
        self.broken_off, self._has_begun = None, False

    def _note(self, data: object) -> None:
        """An earlier migration of another client's may still end before ours begins."""
        status = data.get("status") if isinstance(data, dict) else None
        if status == "setup" and not self._has_begun:
            self.broken_off, self._has_begun = None, True
        elif status in ("failed", "cancelled") and self.broken_off is None:
            self.broken_off = status
