"""Start other programs: each starts in a clean state, is ended with everything that it started, and is always reaped.

A program inherits only the descriptors meant for it, no blocked or ignored signals, and gets its own session. So
Ctrl-C reaches only us, and we end programs in the right order; and a program that wants to ask at the terminal fails
instead of being stopped for ever. posix_spawn does all this without copying our memory.
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
"""Milliseconds that a program has to clean up after SIGTERM."""

_OURS = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores, and that every program would inherit as ignored."""


class Unavailable(StatepipeError):
    """A program cannot be started, or does not end in time."""


class Process:
    """A running program. `pidfd` becomes readable when it ends; it is not reaped before `reap`.

    Without pidfds (a kernel before 5.3, a sandbox), `pidfd` is the end of a pipe whose other end a thread closes.

    `descriptors` maps the program's descriptor numbers to ours: 0, 1 and 2 from any of ours, others under the same
    number. A program that is not `apart` stays in our session, where it can ask at the terminal and receives Ctrl-C as
    we do; signals then go to it alone and not to its group. `folder` is its working directory if not ours. Raises
    StatepipeError if it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], descriptors: Mapping[int, int], *, apart: bool = True, folder: str | None = None
    ) -> None:
        self._apart, self._program = apart, command[0]
        with held():  # no signal between its start and our record of it
            try:
                self._pid = _spawn(command if folder is None else _within(folder, command), descriptors, apart=apart)
            except OSError as error:
                raise _not_started(command[0], error.strerror or "it cannot be") from error
            except ValueError as error:  # a NUL inside an argument
                raise _not_started(command[0], str(error)) from error
            self.pidfd = self._end_of_it()

    def _end_of_it(self) -> int:
        """Return a descriptor that becomes readable when the program ends. Ends the program if there can be none."""
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
        """The program's process id."""
        return self._pid

    def has_ended(self, patience: int | None = 0) -> bool:
        """Return whether it ended within that many milliseconds; None waits without limit. True also after `reap`."""
        return self.pidfd < 0 or bool(polled(self.pidfd).poll(patience))

    def send(self, number: int) -> None:
        """Send it a signal; does nothing after it has ended."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                try:
                    signal.pidfd_send_signal(self.pidfd, number)
                except ProcessLookupError:
                    raise
                except OSError:  # a kernel or a sandbox without it; its number is not reused before it is reaped
                    os.kill(self._pid, number)

    def status(self) -> int:
        """Wait until it ends. Return its exit status, or minus the number of the signal that killed it.

        Raises StatepipeError if other code in this process took the status.
        """
        try:
            ending = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError as error:
            what = f"the exit status of {self._program} is unknown: other code in this process has waited for it"
            raise StatepipeError(what, hint="assume that it failed, and start it again") from error
        assert ending is not None
        return ending.si_status if ending.si_code == os.CLD_EXITED else -ending.si_status

    def kill(self) -> None:
        """End it and its whole group: SIGTERM first, and SIGKILL after GRACE or when the program itself has ended.

        The group's number cannot be reused before the program is reaped.
        """
        if self.pidfd >= 0:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # a stopped process would not act on SIGTERM
            polled(self.pidfd).poll(GRACE)
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if self._apart else os.kill)(self._pid, number)

    def reap(self) -> None:
        """Wait until it ends, and reap it; a second call does nothing."""
        if self.pidfd >= 0:
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            os.close(self.pidfd)
            self.pidfd = -1


def output_of(
    command: Sequence[str], within: float, most: int = 1 << 20, *, with_errors: bool = False
) -> tuple[int, bytes]:
    """Run a short program without input. Return its exit status and its standard output.

    Its standard error is dropped, or is a part of the output `with_errors`. Raises Unavailable if it cannot be started,
    takes more than `within` seconds, or writes more than `most` bytes.
    """
    status, (output,) = _run(command, command[0], within, most, [(1, 2) if with_errors else (1,)])
    return status, output


def outputs_of(command: Sequence[str], name: str, within: float, most: int = 1 << 20) -> tuple[int, bytes, bytes]:
    """Do the same, and return its standard error apart. `name` is what messages call the program."""
    status, (output, errors) = _run(command, name, within, most, [(1,), (2,)])
    return status, output, errors


def _run(
    command: Sequence[str], name: str, within: float, most: int, wanted: Sequence[Sequence[int]]
) -> tuple[int, list[bytes]]:
    """Run it, and return its exit status and what it wrote to the descriptors of each group in `wanted`."""
    deadline = time.monotonic() + within
    with ExitStack() as opened:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        opened.callback(os.close, nothing)
        descriptors, written = {0: nothing, 1: nothing, 2: nothing}, dict[int, bytearray]()
        with ExitStack() as until_started:
            for numbers in wanted:
                reading, writing = os.pipe()
                opened.callback(os.close, reading)
                until_started.callback(os.close, writing)
                descriptors |= dict.fromkeys(numbers, writing)
                written[reading] = bytearray()
            process = Process(command, descriptors)
        opened.callback(process.reap)
        opened.callback(process.kill)  # its whole group: its children may still hold the pipe
        poll, left = polled(*written), len(written)
        while left and (ready := poll.poll(max(deadline - time.monotonic(), 0) * 1000)):
            for reading, _ in ready:
                if not (part := os.read(reading, READ_SIZE)):
                    poll.unregister(reading)
                    left -= 1
                written[reading] += part
            if sum(map(len, written.values())) > most:
                raise Unavailable(f"{name} wrote more than {most} bytes")
        if not left and process.has_ended(int(max(deadline - time.monotonic(), 0) * 1000)):
            return process.status(), [bytes(part) for part in written.values()]
        raise Unavailable(f"{name} took more than {within:g} s")


def _waited_for(pid: int) -> int:
    """Return the end of a pipe that a thread closes when the child has ended. Raises OSError, StatepipeError."""
    reading, writing = os.pipe()

    def wait() -> None:
        with suppress(ChildProcessError):  # it was already reaped
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
    """Return a pidfd of any process, which never refers to another process.

    Raises OSError if the process does not exist, StatepipeError if the system has no pidfds.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        raise StatepipeError(
            f"cannot open a handle of process {pid}: pidfd_open: {os.strerror(error.errno)}",
            hint=_NO_PIDFDS,
        ) from error


def hold_if_seen(pid: int) -> int | None:
    """Return a pidfd of the process; None if it is unknown (0), has ended, is not seen from here, or has no pidfd."""
    with suppress(OSError):
        return os.pidfd_open(pid) if pid else None
    return None


def demand_holding() -> None:
    """Raises StatepipeError if the system cannot open a pidfd or send a signal through one."""
    own = hold(os.getpid())
    try:
        signal.pidfd_send_signal(own, 0)
    except OSError as error:
        raise StatepipeError(
            f"cannot signal a process safely: pidfd_send_signal: {os.strerror(error.errno or 0)}", hint=_NO_PIDFDS
        ) from error
    finally:
        os.close(own)


_NO_PIDFDS = "use a kernel of 5.3 or later, and a sandbox that allows this call (Docker's does since 20.10)"


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
    """Return the command line that starts a program in a folder. Raises OSError.

    posix_spawn cannot change the working directory, and all threads share ours. The path is absolute, so that CDPATH
    has no effect.
    """
    place = os.path.abspath(folder)
    if not os.path.isdir(place):
        raise FileNotFoundError(errno.ENOENT, f"No such folder: {place}")
    program = command[0]
    if shutil.which(os.path.join(place, program) if "/" in program else program) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    return ["/bin/sh", "-c", 'cd "$0" && exec "$@"', place, *command]


def _inheritable() -> list[int]:
    """Return the inheritable descriptors that our caller gave us, beyond the first three."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor used to list them
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _not_started(program: str, why: str) -> Unavailable:
    return Unavailable(f"cannot start {program}: {why}", hint=f"is {program} installed, in a folder of your PATH?")


def read_text(path: str, errors: str = "strict") -> str:
    """Return the text of a file such as those in /proc. Raises OSError. Importing pathlib for it would take 8 ms."""
    with open(path, errors=errors, newline="\n") as file:  # a name in it may hold a carriage return
        return file.read()


def read_lines(path: str, errors: str = "strict") -> list[str]:
    """Return the lines of such a file that are not empty. Raises OSError."""
    return lines_in(read_text(path, errors))


def lines_in(text: str) -> list[str]:
    """Return the lines of another program's text that are not empty.

    Only a newline ends one: a name may hold what str.splitlines() also takes for an end, such as U+2028.
    """
    return list(filter(None, text.split("\n")))


def name_of_signal(number: int) -> str:
    """Return the signal's name as in kill -l."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal in the middle has no name
        return f"signal {number}"
