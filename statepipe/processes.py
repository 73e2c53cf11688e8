"""Start other programs: each starts clean, is ended together with all that it started, and is always reaped.

A program gets its descriptors and no other of ours, no signal of ours blocked or ignored, and a session of its own:
a Ctrl-C is for us, who end it in our order, and one that would ask at the terminal fails instead of being stopped by
it for ever. posix_spawn does all of it without copying our memory.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

from statepipe.errors import StatepipeError
from statepipe.threads import held, start
from statepipe.wakeups import READ_SIZE, polled

GRACE = 2000
"""Milliseconds that a program has to put its things in order when it is asked to end (SIGTERM)."""

_OURS = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores for itself, and would have every program ignore."""


class Unavailable(StatepipeError):
    """A program that cannot be started, or does not end in time."""


class Process:
    """A running program. `pidfd` is readable once it has ended; it is not reaped before `end`.

    Where there are no pidfds (a kernel before 5.3, a sandbox), that is the end of a pipe whose other a thread closes.

    `descriptors` are those the program has, by their numbers in it: 0, 1 and 2 from any of ours, others under the
    numbers they have here. One that is not `apart` stays in our session, where it may ask at the terminal and hears
    a Ctrl-C as we do; only it is signalled then. `folder` is where it starts, if not here. Raises StatepipeError if it
    cannot be started.
    """

    def __init__(
        self, command: Sequence[str], descriptors: Mapping[int, int], *, apart: bool = True, folder: str | None = None
    ) -> None:
        self._apart, self._program = apart, command[0]
        with held():  # between its start and our knowing it, nothing comes
            try:
                self._pid = _spawn(command if folder is None else _within(folder, command), descriptors, apart=apart)
            except OSError as error:
                raise _not_started(command[0], error.strerror or "it cannot be") from error
            except ValueError as error:  # a NUL within an argument
                raise _not_started(command[0], str(error)) from error
            self.pidfd = self._end_of_it()

    def _end_of_it(self) -> int:
        """What is readable once it has ended. It does not run on where there can be no such thing."""
        try:
            try:
                return os.pidfd_open(self._pid)
            except OSError:
                return _waited_for(self._pid)
        except BaseException as error:
            self._signal(signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            if isinstance(error, OSError):
                raise _not_started(self._program, error.strerror or "it cannot be waited for") from error
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

    def has_ended(self, patience: int | None = 0) -> bool:
        """Whether it has ended, within so many milliseconds; None waits until it has. Also true once it is reaped."""
        return self.pidfd < 0 or bool(polled(self.pidfd).poll(patience))

    def send(self, number: int) -> None:
        """Send it a signal; one that has ended hears nothing."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                try:
                    signal.pidfd_send_signal(self.pidfd, number)
                except ProcessLookupError:
                    raise
                except OSError:  # a kernel or a sandbox without it; until it is reaped, its number is not another's
                    os.kill(self._pid, number)

    def status(self) -> int:
        """Wait until it has ended. Its exit status, or minus the number of the signal that killed it.

        Raises StatepipeError where somebody else was told it, and so we never will be.
        """
        try:
            ending = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError as error:
            what = (
                f"{self._program} has ended, and it is not known how: something else in this process has waited for it"
            )
            raise StatepipeError(what, hint="take what it did as failed, and start it again") from error
        assert ending is not None
        return ending.si_status if ending.si_code == os.CLD_EXITED else -ending.si_status

    def kill(self) -> None:
        """End it and its whole group: asked first, and killed GRACE later, or as soon as the program itself is gone.

        Until it is reaped, the group's number cannot be another's.
        """
        if self.pidfd >= 0:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # who was stopped would never hear it
            polled(self.pidfd).poll(GRACE)
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if self._apart else os.kill)(self._pid, number)

    def reap(self) -> None:
        """Wait until it has ended, and forget it; a second time does nothing."""
        if self.pidfd >= 0:
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            os.close(self.pidfd)
            self.pidfd = -1


def output_of(command: Sequence[str], within: float) -> tuple[int, bytes]:
    """Run a short program that has nothing to read. Return its exit status and what it wrote to standard output.

    Its standard error is dropped. Raises Unavailable if it cannot be started or takes more than `within` seconds.
    """
    written, deadline = bytearray(), time.monotonic() + within
    with ExitStack() as opened:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        opened.callback(os.close, nothing)
        reading, writing = os.pipe()
        opened.callback(os.close, reading)
        try:
            process = Process(command, {0: nothing, 1: writing, 2: nothing})
        finally:
            os.close(writing)
        opened.callback(process.reap)
        opened.callback(process.kill)  # its whole group: what it started may still hold the pipe
        while polled(reading).poll(max(deadline - time.monotonic(), 0) * 1000):
            if not (part := os.read(reading, READ_SIZE)):
                return process.status(), bytes(written)
            written += part
        raise Unavailable(f"{command[0]} took more than {within:g} s")


def _waited_for(pid: int) -> int:
    """The end of a pipe, which a thread ends as soon as the child has ended. Raises OSError, StatepipeError."""
    reading, writing = os.pipe()

    def wait() -> None:
        with suppress(ChildProcessError):  # it was reaped first
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.close(writing)

    try:
        start(threading.Thread(target=wait, name="end of a program", daemon=True))
    except BaseException:
        os.close(reading)
        os.close(writing)
        raise
    return reading


def hold(pid: int) -> int:
    """A pidfd of a process that need be no child of ours: what it stands for is never another process.

    Raises OSError where there is no such process, StatepipeError where there are no pidfds.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        raise StatepipeError(
            f"process {pid} cannot be held on to: pidfd_open: {os.strerror(error.errno)}",
            hint=_NO_PIDFDS,
        ) from error


def demand_holding() -> None:
    """Raises StatepipeError where processes cannot be held on to, or not be ended by what holds them."""
    own = hold(os.getpid())
    try:
        signal.pidfd_send_signal(own, 0)
    except OSError as error:
        raise StatepipeError(
            f"no process can be ended for sure: pidfd_send_signal: {os.strerror(error.errno or 0)}", hint=_NO_PIDFDS
        ) from error
    finally:
        os.close(own)


_NO_PIDFDS = "a sandbox refuses that call, as Docker's did before 20.10, or the kernel is older than 5.3"


def _spawn(command: Sequence[str], descriptors: Mapping[int, int], *, apart: bool) -> int:
    taken = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in descriptors.items()]
    closed = [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd not in descriptors]
    return os.posix_spawnp(
        command[0],
        list(command),
        os.environ,
        file_actions=[*closed, *taken],
        setsid=apart,
        setsigmask=(),
        setsigdef=_OURS,
    )


def _within(folder: str, command: Sequence[str]) -> list[str]:
    """The command line that starts it there. Raises OSError.

    posix_spawn cannot change the folder, and our own is every thread's. Absolute, so that CDPATH means nothing.
    """
    place = os.path.abspath(folder)
    if not os.path.isdir(place):
        raise FileNotFoundError(errno.ENOENT, f"No such folder: {place}")
    program = command[0]
    if shutil.which(os.path.join(place, program) if "/" in program else program) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    return ["/bin/sh", "-c", 'cd "$0" && exec "$@"', place, *command]


def _inheritable() -> list[int]:
    """What we were given by whoever started us, beyond the first three, and would hand on."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that listed them
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _not_started(program: str, why: str) -> Unavailable:
    return Unavailable(f"cannot start {program}: {why}", hint=f"is {program} installed, in a folder of your PATH?")


def name_of_signal(number: int) -> str:
    """As kill -l has it."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal in the middle has no name
        return f"signal {number}"
