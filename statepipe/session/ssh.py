"""A link through ssh: the system's ssh as a child, its standard input and output the connection.

ssh's own configuration, agent and known hosts apply, and it has authenticated the other host before a byte passes. It
may ask at the terminal if we have one; otherwise it is told to fail instead. Its messages go to our standard error.

The statepipe at the other end first sends a line, `statepipe session NAME`. So a password that takes a minute is not
mistaken for a dead link, nor the output of a shell's start-up files for a stream. NAME is where later links find it.
"""

from __future__ import annotations

import math
import os
import re
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from statepipe.ends.address import Address
from statepipe.ends.net import Stopped
from statepipe.errors import PeerError
from statepipe.processes import Process
from statepipe.session.pipelink import PipeTransport
from statepipe.session.protocol.frames import Violation
from statepipe.wakeups import Bell, polled

NAME_SIZE = 16
"""Random bytes of a session's name: nobody can guess one, and no two are the same."""

LINE_LIMIT = 200
"""Bytes that are read of a first line; ours has fifty."""

PARTING = 1.0
"""Seconds in which an ssh may deliver our last bytes and end by itself, before it is killed."""

NOT_CONNECTED, NOT_FOUND = 255, 127
"""The exit status of an ssh that failed itself (ssh(1)), and of a shell that did not find a program (POSIX)."""

_LINE = re.compile(rb"statepipe session ([0-9a-f]{%d})\n" % (2 * NAME_SIZE))


def first_line(name: str) -> bytes:
    """Return what a receiver sends first."""
    return f"statepipe session {name}\n".encode()


OURS = (
    "IgnoreUnknown=*",
    *("RemoteCommand=none", "PermitLocalCommand=no", "ClearAllForwardings=yes", "ControlMaster=no"),
    *("StdinNull=no", "SessionType=default", "ForkAfterAuthentication=no"),
)
"""Overrides for settings of ssh_config that are for people and break a program's channel, as in scp: another remote
command, or a local one that prints; forwards, whose ports another ssh of the user may occupy; an input from /dev/null,
or an ssh in the background; and a connection that is shared with other sessions, which would end with it. The last
three are new in OpenSSH 8.7, and an older ssh must ignore them. It ignores everything that it does not know, because
ssh uses the first IgnoreUnknown, and the user may have one."""

APART = "ControlPath=none"
"""Makes an ssh connect by itself, not through a shared connection."""


def ssh_command(
    address: Address, ssh: Sequence[str], remote: str, *, asks: bool, within: float | None, apart: bool = False
) -> list[str]:
    """Return the command line that runs `remote` in the shell there. Connecting may take `within` seconds."""
    options = (*OURS, APART) if apart else OURS
    command = [*ssh, "-T", "-x", "-a", *(word for option in options for word in ("-o", option))]
    if within is not None:
        command += ["-o", f"ConnectTimeout={math.ceil(within)}"]
    if not asks:
        command += ["-o", "BatchMode=yes"]
    if address.port:
        command += ["-p", str(address.port)]
    if address.user:
        command += ["-l", address.user]
    return [*command, "--", address.host, remote]


def has_terminal() -> bool:
    """Return whether ssh could ask a person."""
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        return True
    return False


class Ssh:
    """A running ssh that has sent nothing yet. Raises StatepipeError if it cannot be started."""

    def __init__(self, command: Sequence[str], address: Address, *, asks: bool) -> None:
        self._address = address
        there, self._writing = os.pipe()
        self._reading, here = os.pipe()
        try:
            self._process = Process(command, {0: there, 1: here, 2: 2}, apart=not asks)
        except BaseException:
            os.close(self._reading)
            os.close(self._writing)
            raise
        finally:
            os.close(there)
            os.close(here)

    def greeted(self, seconds: float | None, stop: Bell) -> tuple[str, PipeTransport]:
        """Wait for the first line; return the session's name and the link. Before it raises PeerError, it ends ssh."""
        try:
            line = self._line(seconds, stop)
            if (found := _LINE.fullmatch(line)) is None:
                raise (
                    self._silent_end()
                    if not line
                    else PeerError(
                        f"{self._address.host} sent something else before statepipe's first line: "
                        f"{line.decode(errors='replace')!r:.80}",
                        hint="check whether a start-up file of the shell there prints something",
                    )
                )
        except BaseException:
            os.close(self._reading)
            os.close(self._writing)
            self._process.kill()
            self._process.reap()
            raise
        shown = str(self._address)
        return found[1].decode(), PipeTransport(
            self._reading, self._writing, shown, shown, partial(_end, self._process)
        )

    def _line(self, seconds: float | None, stop: Bell) -> bytes:
        """Read the first line byte by byte: the next bytes belong to the link. Empty at the end. Raises PeerError."""
        line, poll = bytearray(), polled(self._reading, stop.fd)
        deadline = None if seconds is None else time.monotonic() + seconds
        while not line.endswith(b"\n") and len(line) < LINE_LIMIT:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            ready = poll.poll(None if left is None else left * 1000)
            if any(fd == stop.fd for fd, _ in ready):
                raise Stopped
            if not ready:
                raise PeerError(f"ssh to {self._address.host} took more than {seconds:g} s")
            if not (byte := os.read(self._reading, 1)):
                break
            line += byte
        return bytes(line)

    def _silent_end(self) -> PeerError:
        """Return why nothing was sent."""
        host = self._address.host
        _wait(self._process)
        status = self._process.status()
        if status == NOT_CONNECTED:
            return PeerError(f"ssh could not connect to {host}", hint=f"see its messages above; try: ssh {host} true")
        if status == NOT_FOUND:
            hint = "install it there, or name it with --remote-command"
            return PeerError(f"the shell on {host} did not find statepipe", hint=hint)
        if status < 0:
            return PeerError(f"ssh to {host} was ended by signal {-status}")
        return Refused(f"statepipe on {host} ended with status {status}", hint="see its messages above")


class Refused(Violation):
    """The program at the other end has ended, and would do so again."""


def _wait(process: Process) -> None:
    """Wait until it has ended; kill it if that takes too long."""
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    if not poll.poll(PARTING * 1000):
        process.kill()


def _end(process: Process) -> None:
    """End an ssh whose input has ended, once it has delivered what it has."""
    _wait(process)
    process.reap()
