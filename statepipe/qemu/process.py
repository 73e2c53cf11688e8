"""QEMU as a process: what can be told of one that runs, and one of our own to start, feed and reap.

What /proc tells of another's process is of two kinds. The kernel's own word: its user and rights, its program
(exe), its folder, the files it has open. And the process's: its command line lies in its own memory, and whoever it
belongs to writes there what he likes, as may a guest that has taken its QEMU over. So a command line is shown, and
compared; only that of a QEMU which could do here all that we can is run anywhere (`demand_equal`).
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from statepipe.errors import QemuError, QemuGone, StatepipeError, UsageError
from statepipe.processes import Process
from statepipe.qemu.commandline import MONITOR, TAKE_JSON, anew, in_words, option_of, parted
from statepipe.qemu.holders import lock_hint
from statepipe.qemu.lastwords import LastWords, last_lines
from statepipe.threads import ENDING
from statepipe.wakeups import polled


@dataclass(frozen=True, slots=True)
class Running:
    """A QEMU process seen from outside: the kernel's word on its program, its folder and the images it has open for
    writing, and those of them that have no name (-snapshot); its own on its command line, empty where that is too long
    to be one."""

    pid: int
    program: str
    command: tuple[str, ...]
    disks: tuple[str, ...]
    folder: str
    temporary: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """The guest's name: the value of -name, without its options."""
        value = self.option("-name")
        return value.split(",")[0].removeprefix("guest=") if value else None

    def option(self, flag: str) -> str | None:
        """What follows `flag` (also in its --flag spelling) on the command line."""
        return option_of(self.command, flag)


def parent_qemu() -> Running | None:
    """The QEMU that started us by exec:, straight or through its shell; None if no ancestor of ours is one.

    Nor is one of another user's, whose exec: went through sudo: its files are not ours to read for it.
    """
    pid = parent_pid()
    return inspect_process(pid) if pid is not None and owner(pid) == os.geteuid() else None


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


def qemu_under(pid: int) -> int:
    """The QEMU that process `pid` is, or has started as a wrapper does; `pid` where none is to be seen."""
    found = [pid]
    for each in found:  # which grows
        if is_qemu(each):
            return each
        with suppress(OSError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
    return pid


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def listening_qemu(pid: int, uid: int) -> bool:
    """Whether process `pid`, which user `uid` had listen at a socket (SO_PEERCRED), is that QEMU still.

    Who listened may have ended, and another process have its number. So it must be of the same user, unless root
    listened: QEMU's -runas gives its rights up only then.
    """
    return uid in (0, owner(pid)) and is_qemu(pid)


def owner(pid: int) -> int | None:
    """The user whose rights it has; None if it is gone."""
    try:
        return int(_rights(pid)["Uid"].split()[1])
    except (OSError, KeyError):
        return None


def _rights(pid: int | str) -> dict[str, str]:
    """proc_pid_status(5). Raises OSError."""
    rows = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}


COMMAND_LIMIT = 128 << 10
"""Bytes of a command line: those of large guests have ten thousand. A process can pretend to any."""


def inspect_process(pid: int) -> Running | None:
    """Program, command line, folder and writable images of process `pid`, or None if it may not be looked at."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read(COMMAND_LIMIT + 1)
        words = os.fsdecode(line).split("\0")[:-1] if len(line) <= COMMAND_LIMIT else []
        program, folder = (os.readlink(f"/proc/{pid}/{name}") for name in ("exe", "cwd"))
        return Running(pid, program, tuple(words), tuple(_writable_images(pid)), folder, tuple(_overlays(pid)))
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


def names_open(pid: int) -> list[str]:
    """The names of what a process has open, as far as it may be seen."""
    try:
        return [name for name, _, _ in _open_files(pid)]
    except OSError:
        return []


def has_open(pid: int, fd: int) -> bool:
    """Whether a process has the pipe or socket open that our descriptor `fd` is an end of, as far as it may be seen."""
    with suppress(OSError):
        ours = os.readlink(f"/proc/self/fd/{fd}")
        return ours.startswith(("pipe:", "socket:")) and any(name == ours for name, _, _ in _open_files(pid))
    return False


def demand_equal(pid: int) -> Running:
    """The QEMU, if its own word on its command line may be run as ours elsewhere.

    Raises QemuError unless it is our user's, is confined no more than we are, and is in our namespaces: then it could
    do here whatever we can, and gains nothing by a false one.
    """
    running = inspect_process(pid)
    if running is None:
        raise QemuError(
            "this QEMU's command line may not be looked at",
            hint=f"run statepipe as QEMU's user, and name QEMU's own socket; or {_SAY_IT}",
        )
    if why := _unequal(pid) or _unstartable(running):
        raise QemuError(f"this QEMU's command line is not started elsewhere: {why}", hint=_SAY_IT)
    return running


_SAY_IT = "say yourself what is started there, with --remote-qemu FILE"


def _unequal(pid: int) -> str | None:
    """Why it may do less than we, or None."""
    try:
        its, our = _rights(pid), _rights("self")
        if set(its["Uid"].split()) != set(our["Uid"].split()):
            return f"it runs as {_user(its['Uid'])}, statepipe as {_user(our['Uid'])}"
        for name in ("mnt", "user", "pid", "net"):
            if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
                return "it runs in a container, or another namespace"
        if not os.path.samefile(f"/proc/{pid}/root", "/"):
            return "it runs in another root folder"
        if any(int(our[name], 16) & ~int(its[name], 16) for name in ("CapEff", "CapBnd")):
            return "it has given up capabilities"
        if _groups(our) - _groups(its) and not int(its["CapEff"], 16) & CAP_SETGID:
            return "it has left groups that statepipe is in"
        for name in ("Seccomp_filters", "Seccomp", "NoNewPrivs"):
            if int(its.get(name, "0")) > int(our.get(name, "0")):
                return "it is in a sandbox"
        if _label(pid) != _label("self"):
            return "it runs under another security label"
    except (OSError, KeyError, ValueError):
        return "its rights cannot be read"
    return None


CAP_SETGID = 1 << 6
"""capabilities(7): whoever has it enters any group."""


def _groups(rights: dict[str, str]) -> set[str]:
    """Those whose files it may use, by number."""
    return {rights["Gid"].split()[1], *rights["Groups"].split()}


def _user(uids: str) -> str:
    number = int(uids.split()[1])
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _label(pid: int | str) -> bytes:
    """AppArmor's or SELinux's word on what it may do; empty where there is neither."""
    try:
        return Path(f"/proc/{pid}/attr/current").read_bytes()
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return b""
        raise


def _unstartable(running: Running) -> str | None:
    """Why its command line would not start the same elsewhere, or None."""
    if running.program.endswith(" (deleted)"):
        return "the program that it runs was removed or replaced since"
    if running.folder.endswith(" (deleted)"):
        return "the folder that it runs in was removed"
    if not running.command:
        return f"it says none, or one of more than {COMMAND_LIMIT >> 10} KiB"
    for name, words in parted(anew(running.command)):
        try:
            plain = [in_words(word) if name in TAKE_JSON else word for word in words]
        except ValueError as error:
            return f"its {' '.join(words)[:80]} is not understood: {error}"
        if any(map(_HANDED.search, plain)):
            return f"it was handed descriptors by who started it ({' '.join(words)[:80]})"
    return None


_HANDED = re.compile(r"(^|[,.])(sock_?)?(vhost)?fds?=\d|/dev/fdset/|/dev/fd/|/proc/self/fd/|^--?add-fd$|^fd:\d")


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


_OVERLAY = re.compile(r"(/.*/vl\.\w{6}) \(deleted\)")
"""What -snapshot writes to (QEMU block.c, get_tmp_filename and create_tmp_file)."""


def _overlays(pid: int) -> list[str]:
    """Raises OSError."""
    found = (_OVERLAY.fullmatch(target) for target, _, fd in _open_files(pid) if _is_read_write(pid, fd))
    return sorted(match[1] for match in found if match)


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
        self._words = None if log is not None else LastWords()
        self.stays_paused = _has_option(command, "-S")
        (self.monitor, theirs), (self.spare, spare) = socket.socketpair(), socket.socketpair()
        with theirs, spare, _opened(log) as said:
            fds = [theirs.fileno(), spare.fileno()]
            its = {0: 0, 1: 1 if said is None else said, 2: 2 if said is None else said} | {fd: fd for fd in fds}
            its |= {} if self._words is None else {2: self._words.fd}
            try:
                words = [*command, *_paused_and_waiting(fds)]
                self._process = Process(words, its, apart=detach, folder=folder)
            except StatepipeError as error:
                self.monitor.close()
                self.spare.close()
                if self._words is not None:
                    self._words.drop()
                raise QemuError(str(error), hint=error.hint) from error
        if self._words is not None:
            try:
                self._words.begin()
            except BaseException:  # it would wait for ever, and nobody know of it
                self.end()
                self.monitor.close()
                self.spare.close()
                raise

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def ending(self) -> int:
        """A descriptor that is readable once it has ended."""
        return self._process.pidfd

    @property
    def ended(self) -> bool:
        """Whether it has; then it is reaped."""
        if self._process.has_ended():
            self._process.reap()
        return self._process.pidfd < 0

    def pass_signals_on(self, numbers: Iterable[int] | None = None) -> None:
        """From now on these are QEMU's: SIGINT, SIGTERM and SIGHUP, but for one that is ignored (nohup)."""
        if numbers is None:
            numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        for number in numbers:
            signal.signal(number, lambda which, frame: self._process.send(which))

    def let_be(self, tell: Callable[[str], object]) -> None:
        """It has its guest and is left to itself: it may outlive us. `tell` hears what cannot be as it should."""
        if self._words is not None:
            self._words.hand_over(tell)

    def wait(self) -> int:
        """Stay until QEMU ends; its exit status, or 128 + the signal that killed it."""
        self.pass_signals_on()
        status = self._process.status()
        return status if status >= 0 else 128 - status

    def end(self) -> None:
        """Make sure that it is gone: its guest must never run."""
        self._process.send(signal.SIGKILL)
        self._process.reap()

    def end_after(self, error: BaseException, when: str) -> None:
        """End it, as `error` prevents what it was started for. Raises QemuError if it had ended before, by itself."""
        status = self._status() if isinstance(error, QemuGone) else None
        self.end()
        if status is not None:
            said = f": {self.last_words}" if self.last_words else ""
            where = self.where_it_spoke or ("" if status else _AS_DAEMON)
            hint = "; ".join(filter(None, [lock_hint(said), where]))
            raise QemuError(f"QEMU ended with status {status} {when}{said}", hint=hint or None) from error

    @property
    def last_words(self) -> str:
        """The last lines that it said, once it has ended; empty where that is not known."""
        if self._log is not None:
            with suppress(OSError):
                return last_lines(Path(self._log).read_bytes().splitlines())
            return ""
        return "" if self._words is None else self._words.last()

    @property
    def where_it_spoke(self) -> str:
        """Where a person reads all that it said; empty where it has said nothing."""
        if self._log is not None:
            return f"all that it said is in {self._log}, on its host"
        return "its own message is above" if self.last_words else ""

    def _status(self) -> int | None:
        """The exit status if it has ended by itself within a second, else None."""
        return self._process.status() if self._process.has_ended(1000) else None


_AS_DAEMON = "one that becomes a daemon (-daemonize) ends so: have whatever starts it leave that out"


def wait_for_one(children: Sequence[Child]) -> None:
    """Until one of them has ended, of which none was reaped yet."""
    polled(*(child.ending for child in children)).poll()


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


def _refuse_incoming(command: Sequence[str]) -> None:
    if _has_option(command, "-incoming"):
        hint = "leave it out: statepipe adds what is needed"
        raise UsageError("the QEMU command has its own -incoming", hint=hint)


def _has_option(command: Sequence[str], flag: str) -> bool:
    """Also as --flag. A value that looks like it counts too: rather one refusal too many."""
    return flag in command or f"-{flag}" in command


def _paused_and_waiting(fds: Sequence[int]) -> list[str]:
    words = ["-S", "-incoming", "defer"]
    for name, fd in ((f"{MONITOR}-{number}", fd) for number, fd in enumerate(fds)):
        words += ["-chardev", f"socket,id={name},fd={fd}", "-mon", f"chardev={name},mode=control"]
    return words
