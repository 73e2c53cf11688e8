"""What another statepipe needs to continue a lazy load: a monitor to find QEMU, and the keeper, so that QEMU answers.

A QEMU that we start gets two more monitors: one at a socket in the runtime folder, and one for the keeper (keeper.py).
A QEMU that waits has a monitor at a socket already, and the keeper shares our connection to it. After an interruption,
QEMU listens at a socket whose name contains digests of that monitor's address and of the state, so that nobody sends
another state there.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress

from blake3 import blake3

from statepipe.errors import QemuSilent, StatepipeError
from statepipe.lazy import keeper
from statepipe.objectstore.scheme import is_address
from statepipe.pipeline.runtimefolder import open_runtime_folder
from statepipe.processes import GRACE, Process, hold_if_seen
from statepipe.qemu.commandline import OWN_MONITOR
from statepipe.qemu.process import is_qemu, owner, qemu_under
from statepipe.telling import Tell
from statepipe.threads import held
from statepipe.typed import TYPE_CHECKING

if TYPE_CHECKING:  # it takes 25 ms, in which a QEMU can start
    from statepipe.qemu.monitor import Monitor

PATIENCE = 10.0
"""Seconds that the keeper has to negotiate. It takes 20 ms, most of them Python's start."""

LONGEST = 107
"""Bytes of a unix socket's path (unix(7))."""

_OWN = re.compile(r"load-[0-9]+\.qmp")
"""The name of an own monitor's socket in the runtime folder."""


_LEFT = re.compile(r"load-[0-9]+\.qmp|resume-[0-9a-f]{10}-[0-9a-f]{16}")
"""The names of all sockets of lazy loads there."""


def resume_command(path: str, address: str, words: Sequence[str]) -> str:
    """Return the command that continues the load of the state at `path` into the QEMU at `address`, with these words
    before its name. It may be typed in another folder."""
    if os.path.lexists(address):  # it is not tcp:… or the like
        address = os.path.abspath(address)
    named = path if is_address(path) else os.path.abspath(path)
    return shlex.join(["statepipe", "load", "--resume", "--qmp", address, *words, named])


def _place(name: str) -> str:
    """Return the path of a socket in the runtime folder. Raises OSError."""
    folder, place = open_runtime_folder()
    os.close(folder)
    path = os.path.join(place, name)
    if len(os.fsencode(path)) > LONGEST or "," in path:
        raise OSError(0, f"no socket can be at {path}")
    return path


def sweep() -> None:
    """Remove the sockets in the runtime folder whose QEMU was killed, and could not remove them."""
    with suppress(OSError):
        folder = os.path.dirname(_place(""))
        for name in filter(_LEFT.fullmatch, os.listdir(folder)):
            if _has_no_owner(path := os.path.join(folder, name)):
                os.unlink(path)


def _has_no_owner(path: str) -> bool:
    """Return whether the socket at `path` is what a process has left that was killed.

    A live one must not be connected to: QEMU would take that for the connection that it waits for. So a socket of
    another type is tried, for which the kernel reports EPROTOTYPE, and ECONNREFUSED if the socket has no owner.
    """
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:  # it has an owner, or is gone
        pass
    return False


class OwnMonitor:
    """One more monitor for a QEMU that is started, at a socket that outlives us.

    `words` are for QEMU's command line. Without a place for a socket they are empty, and `warn` is called.
    """

    def __init__(self, warn: Tell) -> None:
        self.words: list[str] = []
        self.address = "SOCKET"
        sweep()
        try:
            number = os.getpid()
            while os.path.lexists(path := _place(f"load-{number}.qmp")):  # QEMU would take it from a load that waits
                number = int.from_bytes(os.urandom(4), "big")
            self.address = path
        except OSError as error:
            warn(f"the load cannot be continued if statepipe is killed before all memory is loaded: {error.strerror}")
            return
        self.words = ["-chardev", f"socket,id={OWN_MONITOR},path={self.address},server=on,wait=off"]
        self.words += ["-qmp", f"chardev:{OWN_MONITOR}"]

    def remove(self) -> None:
        """Remove the socket's name, and that of a QEMU that was ended while it listened."""
        if self.words:
            with suppress(OSError):  # it was never made, or QEMU has removed it
                os.unlink(self.address)
        sweep()


_DOUBT = "if statepipe is killed while memory is loaded, perhaps nothing can continue the load"


class Keeping:
    """Starts the keeper of one load, and talks to it. `monitor` is its connection to QEMU; if `shared`, also ours."""

    def __init__(self, monitor: socket.socket, address: str, digest: str, warn: Tell, *, shared: bool) -> None:
        self._warn, self._is_own = warn, not shared
        self._control, theirs = socket.socketpair()
        self._process: Process | None = None
        how = "shared" if shared else "own"
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            with theirs:
                words = [sys.executable, "-I", "-S", keeper.__file__, str(monitor.fileno())]
                words += [str(theirs.fileno()), _place(_name(address) + digest[:16]), how]
                fds = (monitor.fileno(), theirs.fileno())
                self._process = Process(words, dict.fromkeys(range(3), nothing) | {fd: fd for fd in fds})
        except (StatepipeError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            warn(f"{_DOUBT}: {why}")
        finally:
            os.close(nothing)

    @classmethod
    def beside(cls, monitor: Monitor, address: str, digest: str, warn: Tell) -> Keeping | None:
        """Return one that takes over our own connection to the monitor at `address` when we end.

        Return None for a QEMU that has a keeper since it was started.
        """
        if _is_own(address):
            return None
        with monitor.duplicate() as second:
            return cls(second, address, digest, warn, shared=True)

    def will_load(self, pid: int) -> None:
        """QEMU is to load devices: if we end before `may_run` is called, the keeper kills it. `pid` is QEMU, a program
        that has started it, or 0: then it is not killed."""
        pid = qemu_under(pid)
        if self._process is not None and (user := owner(pid)) not in (None, 0, os.geteuid()):
            self._warn(f"{_DOUBT}: QEMU runs as user {user}, and can make no socket in our runtime folder")
        if (pidfd := hold_if_seen(pid)) is not None:
            if is_qemu(pid):  # asked last: another process may have its number since
                with suppress(OSError):  # there is no keeper
                    socket.send_fds(self._control, [b"K"], [pidfd])
            os.close(pidfd)

    def may_run(self) -> None:
        """QEMU is to run the guest: from now on, it is not ended."""
        with suppress(OSError):
            self._control.sendall(b"R")

    def await_ready(self) -> None:
        """Wait until the keeper of a started QEMU has negotiated. Once the guest runs, QEMU may not answer that."""
        if self._process is not None and self._is_own:
            self._control.settimeout(PATIENCE)
            try:
                ready = self._control.recv(1)
            except OSError:
                ready = b""
            if not ready:
                self._warn(_DOUBT)

    def done(self) -> None:
        """End the keeper: all memory is loaded, and nothing is left to continue."""
        with suppress(OSError):  # it has ended, with QEMU
            self._control.sendall(b".")
        if self._process is not None:
            if not self._process.has_ended(GRACE):  # somebody has stopped it
                self._process.kill()
            self._process.reap()

    def close(self) -> None:
        """Disconnect from the keeper. Unless `done` was called, it then makes QEMU listen, or ends it."""
        self._control.close()


def _is_own(address: str) -> bool:
    """Whether a load has given this monitor to the QEMU that it started."""
    folder, name = os.path.split(address)
    with suppress(OSError):
        return folder == os.path.dirname(_place("")) and _OWN.fullmatch(name) is not None
    return False


def gone(place: str | tuple[str, int]) -> str | None:
    """Return a hint if the QEMU whose monitor was at `place` has ended, or the socket of an own monitor was removed.

    It is a socket's path, or a host and a port, of which nothing is known.
    """
    if not isinstance(place, str):
        return None
    if _is_own(place) and not os.path.lexists(place):
        return "a load removes this socket once all memory is loaded, or QEMU has ended: nothing is left to continue"
    if _has_no_owner(place):
        again = "load the state again, which says if a guest has changed its disks since the save"
        return f"the QEMU that listened at this socket has ended, so nothing is left to continue: {again}"
    return None


def _name(address: str) -> str:
    return f"resume-{blake3(os.fsencode(os.path.realpath(address))).hexdigest()[:10]}-"


def find_listening(address: str, digest: str, first: bytes) -> socket.socket | None:
    """Connect to the QEMU whose monitor is at `address` where its keeper has it listen for the state `digest`.

    `first`, which is short, is written in one step with that, which no signal interrupts. Return None if QEMU does not
    listen. Raises QemuSilent if it does, and accepts nobody: then a connection would wait without an end.
    """
    link = socket.socket(socket.AF_UNIX)
    try:
        with held():
            link.setblocking(False)
            link.connect(_place(_name(address) + digest[:16]))
            link.setblocking(True)
            with suppress(OSError):  # whoever reads from it finds it closed
                link.sendall(first)
    except BlockingIOError as error:  # two are waiting already
        link.close()
        what = "QEMU listens for a new connection, and has not accepted the earlier ones"
        hint = "if QEMU was stopped, let it go on: kill -CONT PID; see also: statepipe ps"
        raise QemuSilent(what, hint=hint) from error
    except OSError:  # QEMU does not listen, or has ended
        link.close()
        return None
    return link


def other_state(address: str, digest: str) -> str | None:
    """Return a hint if the QEMU whose monitor is at `address` was to listen for another state than `digest`."""
    beginning = _name(address)
    with suppress(OSError):
        for name in os.listdir(os.path.dirname(_place(""))):
            if name.startswith(beginning) and not digest.startswith(found := name.removeprefix(beginning)):
                return f"QEMU may be waiting for another state, whose blake3 begins {found}"
    return None


def same_state(digest: str) -> str | None:
    """Return a hint if some QEMU listens for the state `digest`: perhaps the one meant, by its other monitor. There may
    be several, clones of one guest."""
    found = [place for place, begins in interrupted() if digest.startswith(begins)]
    if not found:
        return None
    command = f"statepipe load --resume --qmp {shlex.quote(found[0])} FILE"
    return f"a QEMU waits for this state; give the monitor that its load had: {command}"


def interrupted() -> list[tuple[str, str]]:
    """Return what says that a QEMU waits for the rest of a guest's memory: the address of its monitor, or SOCKET if it
    is not one that we gave it, and the first digits of the state's digest."""
    sweep()
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(os.path.dirname(_place("")))
    own = {_name(path): path for path in map(_place, filter(_OWN.fullmatch, names))}
    left = (name.rpartition("-") for name in sorted(names) if _LEFT.fullmatch(name) and not _OWN.fullmatch(name))
    return [(own.get(f"{beginning}-", "SOCKET"), digest) for beginning, _, digest in left]


def demand_same(found: str, digest: str) -> None:
    """Raises StatepipeError unless `found`, of the state that QEMU waits for, is the beginning of `digest`."""
    if not digest.startswith(found):
        raise StatepipeError(
            "QEMU waits for the memory of another state",
            hint=f"give the one whose blake3 begins {found}: statepipe inspect FILE shows it",
        )
