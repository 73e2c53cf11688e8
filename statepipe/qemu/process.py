"""QEMU as a process: what can be told of one that runs, and one of our own to start, feed and reap."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from statepipe.errors import QemuError, QemuGone, UsageError
from statepipe.pipes import polled

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command."""


@dataclass(frozen=True, slots=True)
class Running:
    """A QEMU process seen from outside: its command line and folder, and the images it has open for writing."""

    pid: int
    command: tuple[str, ...]
    disks: tuple[str, ...]
    folder: str

    @property
    def name(self) -> str | None:
        """The guest's name: the value of -name, without its options."""
        value = self.option("-name")
        return value.split(",")[0].removeprefix("guest=") if value else None

    def option(self, flag: str) -> str | None:
        """What follows `flag` (also in its --flag spelling) on the command line."""
        for word, value in zip(self.command, self.command[1:], strict=False):
            if word in (flag, "-" + flag):
                return value
        return None


def parent_qemu() -> Running | None:
    """The QEMU that started us by exec:, straight or through its shell; None if no ancestor of ours is one."""
    pid = parent_pid()
    return None if pid is None else inspect_process(pid)


def parent_pid() -> int | None:
    """The process id of that QEMU."""
    pid = os.getppid()
    for _ in range(2):
        if is_qemu(pid):
            return pid
        pid = _parent(pid)
    return None


def is_qemu(pid: int) -> bool:
    """Whether that process is a QEMU, as far as it may be looked at."""
    try:
        name = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        return name.lstrip(".").startswith("qemu")  # NixOS has it wrapped, as .qemu-system-x86_64-wrapped
    except OSError:  # gone, or not ours to look at: then it is not known to be one
        return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def inspect_process(pid: int) -> Running | None:
    """Command line and writable images of process `pid`, or None if it may not be looked at."""
    try:
        command = tuple(Path(f"/proc/{pid}/cmdline").read_text(errors="surrogateescape").split("\0")[:-1])
        return Running(pid, command, tuple(_writable_images(pid)), os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def open_images() -> list[str] | None:
    """Every file and block device that the QEMU which started us has open; None if that was none, or may not be seen.

    A QEMU that waits for a guest has its images open, some of them only for reading.
    """
    pid = parent_pid()
    if pid is None:
        return None
    try:
        return [target for target, mode, _ in _open_files(pid) if _is_image(target, mode)]
    except OSError:
        return None


def _open_files(pid: int) -> Iterator[tuple[str, int, str]]:
    """What it has open: the name, the mode, the descriptor. Raises OSError."""
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(entry.path), os.stat(entry.path).st_mode, entry.name
        except FileNotFoundError:  # closed meanwhile
            continue


def _writable_images(pid: int) -> list[str]:
    """Files and block devices open read-write: QEMU opens logs and serial files write-only, and RAM files stay
    mapped. Raises OSError."""
    mapped = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")
    found = (
        target
        for target, mode, fd in _open_files(pid)
        if _is_image(target, mode) and _is_read_write(pid, fd) and f" {target}\n" not in mapped
    )
    return sorted(set(found))


def _is_image(target: str, mode: int) -> bool:
    return target.startswith("/") and os.path.exists(target) and (stat.S_ISREG(mode) or stat.S_ISBLK(mode))


def _is_read_write(pid: int, fd: str) -> bool:
    for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE == os.O_RDWR
    return False


class Child:
    """A QEMU started paused, waiting for an incoming migration, with a monitor of ours.

    `monitor` is our end of its monitor's socket, `spare` that of a second one, for who outlives us. `folder` is where
    it is started, `log` the file that takes what it has to say. Raises QemuError if it cannot be started.
    """

    def __init__(self, command: Sequence[str], detach: bool, folder: str | None = None, log: str | None = None) -> None:
        _refuse_incoming(command)
        self._log = log
        self.stays_paused = _has_option(command, "-S")
        (self.monitor, theirs), (self.spare, spare) = socket.socketpair(), socket.socketpair()
        with theirs, spare, _opened(log) as said:
            fds = [theirs.fileno(), spare.fileno()]
            try:
                self._process = subprocess.Popen(
                    [*command, *_paused_and_waiting(fds)],
                    pass_fds=fds,
                    stdout=said,
                    stderr=said,
                    cwd=folder,
                    start_new_session=detach,
                    preexec_fn=_hear_signals,
                )
            except OSError as error:
                self.monitor.close()
                self.spare.close()
                raise QemuError(f"cannot start {command[0]}: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has; then it is reaped."""
        return self._process.poll() is not None

    def pass_signals_on(self) -> None:
        """From now on SIGINT, SIGTERM and SIGHUP are QEMU's; one that was ignored (nohup) stays ignored."""
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda which, frame: self._process.send_signal(which))

    def wait(self) -> int:
        """Stay until QEMU ends; its exit status, or 128 + the signal that killed it."""
        self.pass_signals_on()
        status = self._process.wait()
        return status if status >= 0 else 128 - status

    def end(self) -> None:
        """Make sure that it is gone: its guest must never run."""
        self._process.kill()
        self._process.wait()

    def end_after(self, error: BaseException, when: str) -> None:
        """End it, as `error` prevents what it was started for. Raises QemuError if it had ended before, by itself."""
        status = self._status() if isinstance(error, QemuGone) else None
        self.end()
        if status is not None:
            said, hint = _last_words(self._log)
            raise QemuError(f"QEMU ended with status {status} {when}{said}", hint=hint) from error

    def _status(self) -> int | None:
        """The exit status if it has ended by itself within a second, else None."""
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            return None


def wait_for_one(children: Sequence[Child]) -> None:
    """Until one of them has ended, of which none was reaped yet."""
    with ExitStack() as opened:
        pidfds = []
        for child in children:
            pidfds.append(os.pidfd_open(child.pid))
            opened.callback(os.close, pidfds[-1])
        polled(*pidfds).poll()


def _last_words(log: str | None) -> tuple[str, str]:
    """The last line that it said, to go on with, and where to read all: without a log, on our standard error."""
    if log is None:
        return "", "its own message is above"
    lines = Path(log).read_text(errors="replace").splitlines()
    return (f": {lines[-1]}" if lines else ""), f"all that it said is in {log}, on its host"


@contextmanager
def _opened(log: str | None) -> Iterator[int | None]:
    """A descriptor to write the log to; None where there is none."""
    if log is None:
        yield None
        return
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def anew(command: Sequence[str]) -> list[str]:
    """The command line that starts another such QEMU, to wait for this one's guest.

    Without how this one got its own guest, the monitors that statepipe gave it, and what would hide it from us.
    """
    words = [word for word in command if word not in ("-S", "--S", "-daemonize", "--daemonize")]
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if "-" + word.lstrip("-") in ("-incoming", "-chardev", "-mon"):
            value = next(rest, "")
            if word.endswith("-incoming") or f"={_MONITOR}-" in value:
                continue
            kept += [word, value]
        else:
            kept.append(word)
    return kept


_MONITOR = "statepipe-monitor"


def _refuse_incoming(command: Sequence[str]) -> None:
    if _has_option(command, "-incoming"):
        raise UsageError(
            "the QEMU command has its own -incoming", hint="leave it out: statepipe load adds what is needed"
        )


def _has_option(command: Sequence[str], flag: str) -> bool:
    """QEMU takes its options with one dash or two."""
    return flag in command or f"-{flag}" in command


def _hear_signals() -> None:
    """In QEMU, before it is one: our own hold on signals is not for it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _paused_and_waiting(fds: Sequence[int]) -> list[str]:
    words = ["-S", "-incoming", "defer"]
    for number, fd in enumerate(fds):
        name = f"{_MONITOR}-{number}"
        words += ["-chardev", f"socket,id={name},fd={fd}", "-mon", f"chardev={name},mode=control"]
    return words
