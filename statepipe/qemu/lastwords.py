"""What a QEMU of ours says on its standard error: passed on as it comes, and the last line kept.

That line is QEMU's own reason for ending, and whoever waits elsewhere, as the host that sends a guest, sees nothing
else of it.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from statepipe.ends.fd import write_all
from statepipe.threads import join, start

LONGEST = 1000
"""Characters of a line that are kept."""

PATIENCE = 1.0
"""Seconds for the last of it once QEMU has ended; a program that it started may hold its standard error longer."""


class LastWords:
    """`fd` is QEMU's, to be closed here once QEMU has it (`begin`)."""

    def __init__(self) -> None:
        self._reading, self.fd = os.pipe2(os.O_CLOEXEC)
        self._last = ""
        self._thread = threading.Thread(target=self._pass_on, name="last words", daemon=True)

    def begin(self) -> None:
        """QEMU has its end."""
        os.close(self.fd)
        try:
            start(self._thread)
        except BaseException:
            os.close(self._reading)
            raise

    def drop(self) -> None:
        """There is no QEMU."""
        os.close(self.fd)
        os.close(self._reading)

    def last(self) -> str:
        """The last line so far, all of it of a QEMU that has ended; empty where it has said nothing."""
        join(self._thread, PATIENCE)
        return self._last

    def _pass_on(self) -> None:
        rest = b""
        with open(self._reading, "rb", buffering=0) as flow:
            while data := flow.read(65536):
                with suppress(OSError):  # whom it is passed on to, may be gone: it is read all the same
                    write_all(2, data)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._note(line)
                rest = rest[: 4 * LONGEST]
        self._note(rest)

    def _note(self, line: bytes) -> None:
        if text := line.decode(errors="replace").strip():
            self._last = text[:LONGEST]
