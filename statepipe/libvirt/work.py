"""virsh at work: it waits for a job of libvirt's, beside which we hand over the guest's state."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Self

from statepipe.libvirt.virsh import LibvirtError, Virsh, failure
from statepipe.processes import Process
from statepipe.wakeups import READ_SIZE, polled

SAID_LIMIT = 64 << 10
"""Bytes of virsh's messages that are kept, the last ones: libvirt's reason, which may contain the last lines of a
QEMU. What stands before it is what LIBVIRT_DEBUG makes virsh write."""

LATEST = 600.0
"""Seconds in which libvirt begins what it was asked for, or reports the end of it. It takes it less than one, but it
may have to wait for the guest's disks, for a lock or for a hook."""

TURN = 100
"""Milliseconds between two calls of what is to be done while virsh has not ended."""


class AtWork:
    """A virsh with these words. Leaving the context ends it, but not the job: that is libvirt's. Raises
    StatepipeError."""

    def __init__(self, virsh: Virsh, *words: str) -> None:
        self._said = bytearray()
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._reading, writing = os.pipe()
        try:
            self._process = Process(virsh.command(*words), {0: nothing, 1: writing, 2: writing})
        except BaseException:
            os.close(self._reading)
            raise
        finally:
            os.close(nothing)
            os.close(writing)

    @property
    def ended(self) -> int:
        """A descriptor that is readable once virsh has ended."""
        return self._process.pidfd

    def has_ended(self, within: float | None = None, meanwhile: Callable[[], object] = lambda: None) -> bool:
        """Wait until virsh has ended, for so many seconds at most (None: without limit), and call `meanwhile` again and
        again. Return whether it has."""
        deadline = None if within is None else time.monotonic() + within
        poll = polled(self._reading, self._process.pidfd)
        while deadline is None or time.monotonic() < deadline:
            meanwhile()
            ready = {fd for fd, _ in poll.poll(TURN)}
            if self._reading in ready:  # also if nobody waits for it: virsh must not wait for room in a pipe
                part = os.read(self._reading, READ_SIZE)
                self._said += part
                del self._said[:-SAID_LIMIT]
                if not part:
                    poll.unregister(self._reading)
            elif self._process.pidfd in ready:
                return True
        return self._process.has_ended()

    def reason(self) -> LibvirtError | None:
        """Return why libvirt did not do it, once virsh has ended; None if it did."""
        status = self._process.status()
        if status < 0:
            return LibvirtError(f"virsh was ended by signal {-status}")
        return failure(self._said.decode(errors="replace")) if status else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.reap()
        os.close(self._reading)
