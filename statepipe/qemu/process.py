"""QEMU as a process: what can be learned about a running one, and a child of ours to start, feed and reap.

/proc has two kinds of facts about a foreign process. The kernel provides its user and rights, its program (exe), its
folder and its open files. The process itself provides its command line: it lies in the memory of the process, so its
owner, or a guest that has taken QEMU over, can write anything there. Therefore a command line is displayed and
compared, but run elsewhere only if its QEMU could do here all that we can (`demand_equal`).
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
from contextlib import ExitStack, suppress
from typing import NamedTuple

from statepipe.errors import QemuError, QemuGone, StatepipeError, UsageError
from statepipe.processes import Process, read_lines, read_text
from statepipe.qemu.commandline import MONITOR, TAKE_JSON, anew, in_words, option_of, parted, split
from statepipe.qemu.holders import lock_hint
from statepipe.qemu.lastwords import LastWords, last_lines
from statepipe.threads import ENDING
from statepipe.wakeups import polled


class Running(NamedTuple):
    """A QEMU process seen from outside.

    The kernel provides the program, the folder, the images that are open for writing, and those of them without a name
    (-snapshot). QEMU itself provides the command line, which is empty if it is too long to be one.
    """

    pid: int
    program: str
    command: tuple[str, ...]
    disks: tuple[str, ...]
    folder: str
    temporary: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """The guest's name: the word `guest` of -name, or its first word without a key."""
        first, *rest = split(self.option("-name") or "")
        words = [first if "=" in first else f"guest={first}", *rest]
        return next((word.removeprefix("guest=") for word in words if word.startswith("guest=")), None) or None

    def option(self, flag: str) -> str | None:
        """Return the word after `flag` (also spelled --flag) on the command line."""
        return option_of(self.command, flag)


def parent_qemu() -> Running | None:
    """Return the QEMU that started us by exec:, directly or through its shell; None if there is none.

    A QEMU of another user, whose exec: went through sudo, does not count: we must not read its files for it.
    """
    pid = parent_pid()
    return inspect_process(pid) if pid is not None and owner(pid) == os.geteuid() else None


def parent_pid() -> int | None:
    """Return the process id of the QEMU that started us, of any user."""
    pid = os.getppid()
    if is_qemu(pid):
        return pid
    try:
        pid = int(read_text(f"/proc/{pid}/stat", "replace").rpartition(")")[2].split()[1])
    except OSError:
        return None
    return pid if is_qemu(pid) else None


def is_qemu(pid: int) -> bool:
    """Return whether that process is a QEMU, or one of its tools; False if we may not look."""
    return _program(pid).startswith("qemu")


def _program(pid: int) -> str:
    """Return the name of the process's program; empty if it has ended, or we may not look."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).lstrip(".")  # NixOS: .qemu-system-x86_64-wrapped
    except OSError:
        return ""


_TOOL = re.compile(r"qemu-(nbd|storage-daemon|img|io|ga|pr-helper|bridge-helper)\b")


def qemu_under(pid: int) -> int:
    """Return `pid` if it is a QEMU, else a QEMU among its descendants (it is a wrapper), else `pid`.

    A wrapper may have started tools of QEMU, too, for example for a disk.
    """
    found = [pid]
    for each in found:  # which grows
        if is_qemu(each) and not _TOOL.match(_program(each)):
            return each
        with suppress(OSError):
            found += map(int, read_text(f"/proc/{each}/task/{each}/children").split())
    return pid


def listening_qemu(pid: int, uid: int) -> bool:
    """Return whether process `pid`, which SO_PEERCRED names with user `uid` as the listener, still is a QEMU.

    The listener may have ended, and another process may have its number now. So the user must be the same, unless it
    was root: then QEMU may have changed its user later (-runas).
    """
    return uid in (0, owner(pid)) and is_qemu(pid)


def owner(pid: int) -> int | None:
    """Return the process's effective user; None if it has ended."""
    try:
        return int(_rights(pid)["Uid"].split()[1])
    except (OSError, KeyError):
        return None


def _rights(pid: int | str) -> dict[str, str]:
    """Return the rows of proc_pid_status(5). Raises OSError."""
    rows = read_lines(f"/proc/{pid}/status", "replace")
    return {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}


DYING = 5000
"""Milliseconds to wait for the end of a QEMU whose monitor has closed. A large one closes its monitor first, and takes
a second or two to free its memory."""

COMMAND_LIMIT = 128 << 10
"""Bytes of a command line at most: those of large guests have ten thousand, and a process can fake any length."""

_OVERLAY = re.compile(r"(/.*/vl\.\w{6}) \(deleted\)")
"""The file that -snapshot writes to (QEMU block.c, get_tmp_filename and create_tmp_file)."""


def inspect_process(pid: int) -> Running | None:
    """Return what is known about process `pid`, or None if we may not look.

    Images are files and block devices that are open read-write: QEMU opens logs and serial files write-only, and files
    with guest memory stay mapped.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read(COMMAND_LIMIT + 1)
        program, folder = (os.readlink(f"/proc/{pid}/{name}") for name in ("exe", "cwd"))
        mapped = read_text(f"/proc/{pid}/maps", "surrogateescape")
        written = []
        for target, mode, fd in _open_files(pid):
            rows = read_lines(f"/proc/{pid}/fdinfo/{fd}", "replace")
            flags = next((int(row.split()[1], 8) for row in rows if row.startswith("flags:")), os.O_RDONLY)
            if flags & os.O_ACCMODE == os.O_RDWR:
                written.append((target, mode))
    except OSError:
        return None
    words = os.fsdecode(line).split("\0")[:-1] if len(line) <= COMMAND_LIMIT else []
    disks = {target for target, mode in written if _is_image(target, mode) and f" {target}\n" not in mapped}
    overlays = sorted(match[1] for target, _ in written if (match := _OVERLAY.fullmatch(target)))
    return Running(pid, program, tuple(words), tuple(sorted(disks)), folder, tuple(overlays))


def open_images() -> list[str] | None:
    """Return every file and block device that the QEMU which started us has open, some of them read-only; None if no
    QEMU started us, or we may not look."""
    pid = parent_pid()
    if pid is None:
        return None
    try:
        return [target for target, mode, _ in _open_files(pid) if _is_image(target, mode)]
    except OSError:
        return None


def _open_files(pid: int) -> Iterator[tuple[str, int, str]]:
    """Yield name, mode and descriptor of each open file. Raises OSError."""
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(entry.path), os.stat(entry.path).st_mode, entry.name
        except FileNotFoundError:  # closed meanwhile
            continue


def _is_image(target: str, mode: int) -> bool:
    return target.startswith("/") and os.path.exists(target) and (stat.S_ISREG(mode) or stat.S_ISBLK(mode))


def names_open(pid: int) -> list[str]:
    """Return the names of the process's open files; nothing if we may not look."""
    try:
        return [name for name, _, _ in _open_files(pid)]
    except OSError:
        return []


def files_open(pid: int) -> list[os.stat_result]:
    """Return the status of each regular file and block device that the process has open; nothing if we may not look."""
    found = []
    with suppress(OSError):
        for _, mode, fd in _open_files(pid):
            if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                with suppress(FileNotFoundError):  # closed meanwhile
                    found.append(os.stat(f"/proc/{pid}/fd/{fd}"))
    return found


def has_open(pid: int, fd: int) -> bool:
    """Return whether the process has an end of the same pipe or socket open as our descriptor `fd`."""
    with suppress(OSError):
        ours = os.readlink(f"/proc/self/fd/{fd}")
        return ours.startswith(("pipe:", "socket:")) and ours in names_open(pid)
    return False


_SAY_IT = "give the remote command line with --remote-qemu FILE"


def demand_equal(pid: int) -> Running:
    """Return the QEMU if its command line may be run with our rights on another host.

    Raises QemuError unless it has our user, is confined no more than we are, and is in our namespaces: then it can do
    here whatever we can, and gains nothing by a false command line.
    """
    running = inspect_process(pid)
    if running is None:
        raise QemuError(
            "statepipe may not read this QEMU's command line",
            hint=f"run statepipe as QEMU's user, and give QEMU's own socket; or {_SAY_IT}",
        )
    if why := _unequal(pid) or _unstartable(running):
        raise QemuError(f"cannot start this QEMU's command line on the other host: {why}", hint=_SAY_IT)
    return running


def _unequal(pid: int) -> str | None:
    """Return why it has fewer rights than we, or None."""
    try:
        its, our = _rights(pid), _rights("self")
        if set(its["Uid"].split()) != set(our["Uid"].split()):
            users = [_user(int(each["Uid"].split()[1])) for each in (its, our)]
            return f"it runs as {users[0]}, statepipe as {users[1]}"
        for name in ("mnt", "user", "pid", "net"):
            if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
                return "it runs in a container, or another namespace"
        if not os.path.samefile(f"/proc/{pid}/root", "/"):
            return "it runs in another root folder"
        if any(int(our[name], 16) & ~int(its[name], 16) for name in ("CapEff", "CapBnd")):
            return "it has given up capabilities"
        groups = [{each["Gid"].split()[1], *each["Groups"].split()} for each in (our, its)]
        if groups[0] - groups[1] and not int(its["CapEff"], 16) & CAP_SETGID:
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
"""capabilities(7): a process with it can enter any group."""


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _label(pid: int | str) -> bytes:
    """Return the label of AppArmor or SELinux; empty without either."""
    try:
        with open(f"/proc/{pid}/attr/current", "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return b""
        raise


_HANDED = re.compile(r"(^|[,.])(sock_?)?(vhost)?fds?=\d|/dev/fdset/|/dev/fd/|/proc/self/fd/|^--?add-fd$|^fd:\d")


def _unstartable(running: Running) -> str | None:
    """Return why its command line would not start the same QEMU elsewhere, or None."""
    if running.program.endswith(" (deleted)"):
        return "its program was removed or replaced since it started"
    if running.folder.endswith(" (deleted)"):
        return "its folder was removed"
    if not running.command:
        return f"it is empty, or longer than {COMMAND_LIMIT >> 10} KiB"
    for name, words in parted(anew(running.command)):
        shown = " ".join(words)[:80]
        try:
            plain = [in_words(word) if name in TAKE_JSON else word for word in words]
        except ValueError as error:
            return f"statepipe does not understand {shown}: {error}"
        if any(map(_HANDED.search, plain)):
            return f"its parent handed descriptors to it ({shown})"
    return None


class Child:
    """A QEMU started paused, waiting for an incoming migration, with monitors for us.

    `monitor` is our end of its monitor's socket, `spare` that of a second one, for a process that outlives us; a pair
    `spare`, ours and QEMU's, is for a process that has it already. `folder` is its working folder, `log` a file for its
    messages. Raises QemuError if it cannot be started, UsageError for a
    command with -incoming.
    """

    def __init__(
        self,
        command: Sequence[str],
        detach: bool,
        folder: str | None = None,
        log: str | None = None,
        spare: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:
        if _has_option(command, "-incoming"):
            raise UsageError("the QEMU command has its own -incoming", hint="leave it out: statepipe adds it")
        self._log = log
        self._words = None if log is not None else LastWords()
        self.stays_paused = _has_option(command, "-S")
        (self.monitor, theirs), (self.spare, its_spare) = socket.socketpair(), spare or socket.socketpair()
        with theirs, its_spare, ExitStack() as opened:
            fds = {0: 0, 1: 1, 2: 2 if self._words is None else self._words.fd}
            if log is not None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                said = os.open(log, flags, 0o600)
                opened.callback(os.close, said)
                fds |= {1: said, 2: said}
            words = [*command, "-S", "-incoming", "defer"]
            # Not -mon, of which QEMU 11.1 warns; its successor, -object monitor-qmp, is new in that version.
            for name, fd in ((f"{MONITOR}-0", theirs.fileno()), (f"{MONITOR}-1", its_spare.fileno())):
                words += ["-chardev", f"socket,id={name},fd={fd}", "-qmp", f"chardev:{name}"]
                fds[fd] = fd
            try:
                self._process = Process(words, fds, apart=detach, folder=folder)
            except StatepipeError as error:
                self.monitor.close()
                self.spare.close()
                if self._words is not None:
                    self._words.drop()
                raise QemuError(str(error), hint=error.hint) from error
        if self._words is not None:
            try:
                self._words.begin()
            except BaseException:  # nothing would know about this QEMU, which would wait for ever
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
        """A descriptor that is readable once QEMU has ended."""
        return self._process.pidfd

    @property
    def ended(self) -> bool:
        """Whether QEMU has ended; then it is reaped."""
        if self._process.has_ended():
            self._process.reap()
        return self._process.pidfd < 0

    def pass_signals_on(self, numbers: Iterable[int] | None = None) -> None:
        """Forward these signals to QEMU from now on; by default SIGINT, SIGTERM and SIGHUP, unless ignored (nohup)."""
        if numbers is None:
            numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        for number in numbers:
            signal.signal(number, lambda which, frame: self._process.send(which))

    def let_be(self, tell: Callable[[str], object]) -> None:
        """Prepare QEMU, which has its guest, to outlive us. `tell` receives a warning if its messages will be lost."""
        if self._words is not None:
            self._words.hand_over(tell)

    def wait(self) -> int:
        """Wait until QEMU ends; return its exit status, or 128 + the signal that killed it."""
        self.pass_signals_on()
        status = self._process.status()
        return status if status >= 0 else 128 - status

    def end(self) -> None:
        """Kill and reap it: its guest must never run."""
        self._process.send(signal.SIGKILL)
        self._process.reap()

    def end_after(self, error: BaseException, when: str) -> None:
        """End it, because `error` prevents what it was started for. Raises QemuError if it had ended by itself."""
        ended = isinstance(error, QemuGone) and self._process.has_ended(1000)
        status = self._process.status() if ended else None
        self.end()
        if status is not None:
            said = f": {self.last_words}" if self.last_words else ""
            where = self.where_it_spoke or ("" if status else _AS_DAEMON)
            hint = "; ".join(filter(None, [lock_hint(said), where]))
            raise QemuError(f"QEMU ended with status {status} {when}{said}", hint=hint or None) from error

    @property
    def last_words(self) -> str:
        """The last lines of its messages, once it has ended; empty if unknown."""
        if self._log is not None:
            with suppress(OSError), open(self._log, "rb") as file:
                return last_lines(file.read().splitlines())
            return ""
        return "" if self._words is None else self._words.last()

    @property
    def where_it_spoke(self) -> str:
        """Where the user finds all its messages; empty if there are none."""
        if self._log is not None:
            return f"its messages are in {self._log}, on its host"
        return "its own message is above" if self.last_words else ""


_AS_DAEMON = "a QEMU that becomes a daemon (-daemonize) ends like this: remove that option"


def wait_for_one(children: Sequence[Child]) -> None:
    """Wait until one of the children, none of which is reaped, has ended."""
    polled(*(child.ending for child in children)).poll()


def _has_option(command: Sequence[str], flag: str) -> bool:
    """Return whether `flag` or --flag is on the command line, even as a value: a needless refusal is harmless."""
    return flag in command or f"-{flag}" in command
