"""statepipe as a process, without what its imports cost at each start: forked from a server that has made them.

`Popen` and `run` are those of subprocess. Where a command line starts with statepipe itself, the server of this
process (this file, run as a program) forks, and the child becomes that statepipe: a process of its own and a child of
ours, with its own arguments, environment, folder and descriptors. It is waited for, killed and watched as any other.
Only what /proc keeps of a program's start (`cmdline`, `environ`) is the server's.

All else starts as always: a command that begins with another program (a shell, strace), an option of Popen that the
server does not know, or any command once this process differs from what it was when the server began: in its limits,
its user, its signals. `fresh=True` asks for the same, where a test is about the start itself or about what /proc keeps.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import os
import pickle
import pkgutil
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HURRIED = str(ROOT / "tests" / "hurried.py")
WAYS = {
    (sys.executable, "-m", "statepipe"): "statepipe.start:entry",
    (sys.executable, "-P", "-m", "statepipe"): "statepipe.start:entry",
    (sys.executable, "-P", HURRIED): "tests.hurried:main",
}
"""How a command line begins that the server can be, and what runs then."""

CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
CLONE_PARENT, CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000
PR_GET_TID_ADDRESS = 40
LARGEST = 200_000
"""Bytes of a request: a command line, an environment. A Unix socket takes some more in one piece."""
PATIENCE = 60
"""Seconds that the server has for an answer, which takes it some milliseconds."""
MOST = 64
"""Descriptors that one gets."""
HIGH = 256
"""No test gives a descriptor this number or a higher one."""

AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_", "OPENSSL_", "SSL_", "TZ")
"""Environment variables that a program or its libraries read as they start."""


@dataclass
class Request:
    """What a statepipe is started with. `numbers` are those its descriptors get, which come beside this."""

    way: str
    words: list[str]
    arguments: list[str]
    environment: dict[bytes, bytes]
    folder: str
    numbers: list[int]
    session: bool


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen, by way of the server where that can be; the descriptor `closed` is closed in the program."""

    def __init__(self, args: Sequence[Any], *, fresh: bool = False, closed: int | None = None, **options: Any) -> None:
        self._fresh, self._closed = fresh, closed
        super().__init__(args, **options)

    def _execute_child(self, args: Any, *rest: Any) -> None:  # it has no other place where a process begins
        given = Start(self._closed, args, *rest)
        request = None if self._fresh else given.request()
        if request is None or (pid := _fork(request, given.descriptors())) is None:
            closing = [] if self._closed is None else ["sh", "-c", f'exec "$@" {self._closed}>&-', "sh"]
            super()._execute_child([*closing, *args] if closing else args, *rest)
            return
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(*given.pipes)


def run(args: Sequence[Any], *, input: Any = None, timeout: float | None = None, **options: Any) -> Any:
    """subprocess.run, by way of the server where that can be."""
    check = options.pop("check", False)
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(args, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


@dataclass
class Start:
    """What subprocess.Popen is about to start, in the order in which it gives that to itself; first what we add."""

    closed: int | None
    args: Any
    executable: Any
    preexec_fn: Any
    close_fds: bool
    pass_fds: Sequence[int]
    cwd: Any
    env: Mapping[Any, Any] | None
    startupinfo: Any
    creationflags: int
    shell: bool
    p2cread: int
    p2cwrite: int
    c2pread: int
    c2pwrite: int
    errread: int
    errwrite: int
    restore_signals: bool
    gid: Any
    gids: Any
    uid: Any
    umask: int
    start_new_session: bool
    process_group: int = -1

    @property
    def pipes(self) -> tuple[int, ...]:
        """Both ends of the three."""
        return self.p2cread, self.p2cwrite, self.c2pread, self.c2pwrite, self.errread, self.errwrite

    def descriptors(self) -> dict[int, int]:
        """The number of each in the new process, and ours of the same."""
        standard = {0: self.p2cread, 1: self.c2pwrite, 2: self.errwrite}
        given = {n: n if fd == -1 else fd for n, fd in standard.items()} | {fd: fd for fd in self.pass_fds}
        return {number: fd for number, fd in given.items() if number != self.closed}

    def request(self) -> Request | None:
        """The same for the server; None where it is not for the server."""
        special = (self.executable, self.preexec_fn, self.gid, self.gids, self.uid)
        if self.shell or not self.close_fds or self.umask != -1 or self.process_group != -1 or any(special):
            return None
        if isinstance(self.args, str | bytes | os.PathLike) or not self.restore_signals:
            return None
        words = [os.fsdecode(word) for word in self.args]
        folder = os.getcwd() if self.cwd is None else os.path.abspath(os.fsdecode(self.cwd))
        if not os.access(folder, os.X_OK) or "\0" in "".join(words):
            return None
        environment = os.environb if self.env is None else self.env
        encoded = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        for way, entry in WAYS.items():
            if tuple(words[: len(way)]) == way:
                numbers = list(self.descriptors())
                return Request(entry, words, words[len(way) :], encoded, folder, numbers, self.start_new_session)
        return None


def _likeness() -> tuple[object, ...]:
    """What a process hands on to those it starts and the server has from its own start: user, mask, limits."""
    handed = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "Cap", "NoNewPrivs", "Seccomp", "Cpus_allowed:")
    with open("/proc/thread-self/status") as file:
        status = [line for line in file if line.startswith(handed)]
    limits = [resource.getrlimit(number) for number in range(resource.RLIMIT_NOFILE + 1)]
    spaces = [os.readlink(f"/proc/thread-self/ns/{name}") for name in ("net", "mnt", "pid", "user")]
    return status, limits, spaces, os.getsid(0), os.getpgid(0), os.nice(0)


def _at_start(environment: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in environment.items() if os.fsdecode(name).startswith(AT_START)}


class Server:
    """The process that forks. One at a time: each worker of the tests has its own."""

    def __init__(self) -> None:
        self.likeness = _likeness()
        self.environment = _at_start(os.environb)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            self._process = subprocess.Popen(  # no test's mark in its environment: tests look for who is left by that
                command, cwd=ROOT, env=self.environment, pass_fds=[theirs.fileno()], **nothing
            )
        self._channel.settimeout(PATIENCE)
        assert self._channel.recv(1) == b"!", "the server did not come up"

    def fork(self, request: bytes, descriptors: Sequence[int]) -> int:
        """The pid of the process, which is a child of ours."""
        socket.send_fds(self._channel, [request], descriptors)
        answer = self._channel.recv(16)
        assert answer, "the server is gone"
        return int(answer)

    def end(self) -> None:
        """It sees that nobody will ask any more."""
        self._channel.close()
        self._process.wait()


_lock = threading.Lock()
_servers: dict[int, Server | None] = {}
"""The server of this process, by its pid: what is forked from us makes its own. None where there can be none."""


def _fork(request: Request, descriptors: Mapping[int, int]) -> int | None:
    """The pid; None where it is to be started as always."""
    sent = pickle.dumps(request)
    with _lock:
        if os.getpid() not in _servers:
            _servers[os.getpid()] = _begun()
        server = _servers[os.getpid()]
        if server is None or len(sent) > LARGEST or len(descriptors) > MOST:
            return None
        if server.likeness != _likeness() or server.environment != _at_start(request.environment):
            return None
        if max(descriptors) >= HIGH or not all(map(_is_open, descriptors.values())):
            return None
        return server.fork(sent, list(descriptors.values()))


def _begun() -> Server | None:
    if CLONE is None or _tid_address() is None:
        return None
    server = Server()
    atexit.register(server.end)
    return server


def _is_open(fd: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(fd)
        return True
    return False


def _tid_address() -> int | None:
    """Where libc keeps this thread's number, which the kernel writes there in a new process. None if it won't tell."""
    found = ctypes.c_void_p()
    if ctypes.CDLL(None).prctl(PR_GET_TID_ADDRESS, ctypes.byref(found), 0, 0, 0):
        return None
    return found.value


def _sibling() -> int:
    """As os.fork, but the new process is a child of our parent's, as we are."""
    python = ctypes.pythonapi
    flags = CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
    tid = ctypes.c_void_p(_tid_address())
    call = ctypes.PyDLL(None).syscall  # with the GIL held, as os.fork has it
    call.restype = ctypes.c_long
    none = ctypes.c_void_p(None)
    order = (none, none, tid, none) if platform.machine() == "x86_64" else (none, none, none, tid)
    python.PyOS_BeforeFork()
    pid: int = call(ctypes.c_long(CLONE), ctypes.c_long(flags), *order)
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    assert pid >= 0, "the server could not fork"
    return pid


def _become(request: Request, descriptors: Sequence[int]) -> None:
    """Be in everything as if just started with that."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH) for fd in descriptors]
    os.closerange(0, HIGH)
    for fd, number in zip(high, request.numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    if request.session:
        os.setsid()
    os.chdir(request.folder)
    os.environb.clear()
    os.environb.update(request.environment)
    sys.argv[1:] = request.arguments
    sys.argv[0] = request.words[-len(request.arguments) - 1]
    sys.orig_argv[:] = request.words
    if "-P" not in request.words[:2]:
        sys.path.insert(0, request.folder)
    sys.stdin, sys.stdout, sys.stderr = (_stream(fd) if fd in request.numbers else None for fd in range(3))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # now it is heard as it is by who just started


def _stream(fd: int) -> Any:
    """As Python makes its own of one that is open."""
    if fd == 2:
        return open(fd, "w", errors="backslashreplace", buffering=1, closefd=False)
    return open(fd, "r" if fd == 0 else "w", closefd=False)


def _import_all() -> None:
    import statepipe

    for module in pkgutil.walk_packages(statepipe.__path__, "statepipe."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    for name in ("tests.hurried", "tests.warm"):
        import_module(name)


def _serve(channel: socket.socket) -> Callable[[], None]:
    """Fork for each request. Returns in the new processes alone, with what they are to run."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, LARGEST, MOST)
        if not message:
            os._exit(0)
        if _sibling() == 0:
            break
        for fd in descriptors:
            os.close(fd)
    with channel:
        request = pickle.loads(message)
        _become(request, descriptors)
        module, _, function = request.way.partition(":")
        entry: Callable[[], None] = getattr(import_module(module), function)
        channel.send(b"%d" % os.getpid())  # only now: who has started a program finds its descriptors in place
    return entry


def _start() -> Callable[[], None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a Ctrl-C is for the tests: they end us
    sys.path.insert(0, str(ROOT))
    _import_all()
    gc.collect()
    gc.freeze()  # else each child would write to all of it, and so copy it
    channel = socket.socket(fileno=fcntl.fcntl(int(sys.argv[1]), fcntl.F_DUPFD_CLOEXEC, HIGH))
    os.close(int(sys.argv[1]))
    channel.send(b"!")
    return _serve(channel)


if __name__ == "__main__":
    _start()()
