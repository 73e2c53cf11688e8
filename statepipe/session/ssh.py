"""A link inside ssh: the system's ssh as a child, its standard input and output the connection.

ssh's own configuration, agent and known hosts apply, and it has judged who is there before a byte passes. It may ask at
the terminal where we have one; without, it is told to fail rather than to ask. What it has to say goes to our standard
error.

The statepipe at the other end first says a line, `statepipe session NAME`: so a password that takes a minute is not
taken for a dead link, and what a shell's start-up files print not for a stream. NAME is where later links find it.
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
"""Bytes of a session's name, random: nobody guesses one, and no two are alike."""

LINE_LIMIT = 200
"""Bytes of a first line that are read: ours has fifty."""

PARTING = 1.0
"""Seconds that an ssh has to hand over our last words and end by itself, before it is ended."""

NOT_CONNECTED, NOT_FOUND = 255, 127
"""What ssh ends with when it failed itself (ssh(1)), and a shell that did not find a program (POSIX)."""

_LINE = re.compile(rb"statepipe session ([0-9a-f]{%d})\n" % (2 * NAME_SIZE))


def first_line(name: str) -> bytes:
    """What a receiver says before all else."""
    return f"statepipe session {name}\n".encode()


OURS = (
    "IgnoreUnknown=*",
    *("RemoteCommand=none", "PermitLocalCommand=no", "ClearAllForwardings=yes", "ControlMaster=no"),
    *("StdinNull=no", "SessionType=default", "ForkAfterAuthentication=no"),
)
"""What ssh_config may say for people and not for a program's channel, as scp has it: another command there, or one here
that prints; forwards, whose ports are taken where an ssh of the user's runs; an input that is /dev/null, or an ssh that
goes into the background; and that other sessions share this connection, and end with it. The last three came with
OpenSSH 8.7: an older ssh is to ignore them, and not to end. It ignores all that it does not know, as it takes the first
IgnoreUnknown that there is, and the user may have one."""


APART = "ControlPath=none"
"""Has an ssh connect by itself, and not through a connection that another one shares."""


def ssh_command(
    address: Address, ssh: Sequence[str], remote: str, *, asks: bool, within: float | None, apart: bool = False
) -> list[str]:
    """The command line that runs `remote`, a line for the shell there. To connect may take `within` seconds."""
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
    """Whether ssh could ask somebody."""
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        return True
    return False


class Ssh:
    """A running ssh whose other end has not spoken yet. Raises StatepipeError if it cannot be started."""

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
        """Wait for the first line: the session's name, and the link. Raises PeerError, and the process is gone then."""
        try:
            name = self._name(seconds, stop)
        except BaseException:
            os.close(self._reading)
            os.close(self._writing)
            self._process.kill()
            self._process.reap()
            raise
        shown = str(self._address)
        return name, PipeTransport(self._reading, self._writing, shown, shown, partial(_end, self._process))

    def _name(self, seconds: float | None, stop: Bell) -> str:
        line = self._line(seconds, stop)
        if found := _LINE.fullmatch(line):
            return found[1].decode()
        if line:
            raise PeerError(
                f"what {self._address.host} says first is not statepipe's: {line.decode(errors='replace')!r:.80}",
                hint="does a start-up file of the shell there print something?",
            )
        raise self._silent_end()

    def _line(self, seconds: float | None, stop: Bell) -> bytes:
        """The first line, byte by byte: what follows is the link's. Empty at the end. Raises PeerError."""
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
        """Why nobody spoke."""
        host = self._address.host
        _wait(self._process)
        status = self._process.status()
        if status == NOT_CONNECTED:
            return PeerError(f"ssh could not connect to {host}", hint=f"its own words are above; try: ssh {host} true")
        if status == NOT_FOUND:
            hint = "install it there, or say where it is with --remote-command"
            return PeerError(f"there is no statepipe on {host} that a shell there finds", hint=hint)
        if status < 0:
            return PeerError(f"ssh to {host} was ended by signal {-status}")
        return Refused(f"statepipe on {host} ended with status {status}", hint="look at what it says")


class Refused(Violation):
    """The program at the other end ended by itself, and would again."""


def _wait(process: Process) -> None:
    """Until it has ended; one that does not is ended."""
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    if not poll.poll(PARTING * 1000):
        process.kill()


def _end(process: Process) -> None:
    """Its input has ended: it hands over what it has, and goes."""
    _wait(process)
    process.reap()
