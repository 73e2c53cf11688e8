"""The listener: who may ask, what comes back, and that no client and no folder does it any harm."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from statepipe.ends.peercred import is_ours
from statepipe.errors import StatepipeError
from statepipe.pipeline.jobsocket import CLIENTS, REQUEST_LIMIT, JobSocket
from statepipe.pipeline.runtimefolder import open_folder, runtime_folder


class Work:
    """Something that can be asked."""

    def __init__(self) -> None:
        self.rate: int | None = 1
        self.cancelled = threading.Event()
        self.told: dict[str, Any] = {"bytes_in": 7}

    def status(self) -> dict[str, Any]:
        return self.told

    def set_rate(self, rate: int | None) -> None:
        if rate == 13:
            raise StatepipeError("not this one", hint="another")
        self.rate = rate

    def cancel(self) -> None:
        self.cancelled.set()


@contextmanager
def listening(work: Work) -> Iterator[JobSocket]:
    listener = JobSocket(work)
    try:
        yield listener
    finally:
        listener.close()


def client(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")  # waits where the queue is full; with a timeout not
    finally:
        os.close(folder)
    connection.settimeout(30)
    return connection


def ask(path: Path, request: bytes) -> Any:
    with client(path) as connection:
        connection.sendall(request)
        return json.loads(b"".join(iter(lambda: connection.recv(4096), b"")))


@pytest.fixture
def me(runtime: Path) -> Path:
    return runtime / str(os.getpid())


def test_a_status(me: Path) -> None:
    with listening(Work()):
        assert ask(me, b'{"do": "status"}\n') == {"ok": {"bytes_in": 7}}


def test_a_request_in_pieces(me: Path) -> None:
    with listening(Work()), client(me) as connection:
        for byte in b'{"do": "status"}\n':
            connection.sendall(bytes([byte]))
        assert json.loads(connection.recv(4096)) == {"ok": {"bytes_in": 7}}


@pytest.mark.parametrize("rate", [1, 200 << 20, None])
def test_a_rate(me: Path, rate: int | None) -> None:
    work = Work()
    with listening(work):
        assert ask(me, json.dumps({"do": "rate", "rate": rate}).encode() + b"\n") == {"ok": None}
    assert work.rate == rate


def test_a_refusal_comes_back_with_its_hint(me: Path) -> None:
    with listening(Work()):
        assert ask(me, b'{"do": "rate", "rate": 13}\n') == {"error": "not this one", "hint": "another"}


def test_cancel_is_answered_and_the_connection_stays(me: Path) -> None:
    work = Work()
    with listening(work), client(me) as connection:
        connection.sendall(b'{"do": "cancel"}\n')
        assert json.loads(connection.recv(4096)) == {"ok": "ending"}
        assert work.cancelled.is_set()
        kept = [fd for fd in map(int, os.listdir("/proc/self/fd")) if is_other_end(fd, connection)]
        assert len(kept) == 1, "its end would not be the process's end"
        os.close(kept[0])
        assert connection.recv(1) == b""


def is_other_end(fd: int, connection: socket.socket) -> bool:
    """A connected socket that has the name which `connection` is connected to."""
    try:
        with socket.socket(fileno=os.dup(fd)) as other:
            other.getpeername()
            return fd != connection.fileno() and other.getsockname() == connection.getpeername()
    except OSError:
        return False


GARBAGE = [
    b"\n",
    b"hello\n",
    b"[]\n",
    b"{}\n",
    b'{"do": "format"}\n',
    b'{"do": "rate"}\n',
    b'{"do": "rate", "rate": 0}\n',
    b'{"do": "rate", "rate": true}\n',
    b'{"do": "rate", "rate": -1}\n',
    b'{"do": "rate", "rate": 1e3}\n',
    b'{"do": "rate", "rate": 99999999999999999999}\n',
    b"[" * 4000 + b"\n",
    b"\xff\xfe\n",
]


@pytest.mark.parametrize("request_", GARBAGE)
def test_what_is_no_request_is_told_so(me: Path, request_: bytes) -> None:
    work = Work()
    with listening(work):
        assert ask(me, request_)["error"] == "this is not a request of statepipe's"
        assert ask(me, b'{"do": "status"}\n')["ok"]
    assert work.rate == 1 and not work.cancelled.is_set()


def test_a_line_without_an_end_is_not_kept(me: Path) -> None:
    with listening(Work()) as listener:
        with client(me) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1 << 20):
                connection.sendall(bytes(REQUEST_LIMIT))
        assert ask(me, b'{"do": "status"}\n')["ok"]
        assert not listener._clients


def test_silent_clients_do_not_keep_others_waiting_for_long(me: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statepipe.pipeline.jobsocket.REQUEST_TIME", 0.5)
    with listening(Work()):
        silent = [client(me) for _ in range(CLIENTS + 3)]
        assert ask(me, b'{"do": "status"}\n')["ok"]
        for each in silent:
            assert each.recv(1) == b""
            each.close()


def test_clients_that_leave_at_every_moment(me: Path) -> None:
    with listening(Work()) as listener:
        for part in (b"", b"{", b'{"do": "status"}', b'{"do": "status"}\n'):
            for _ in range(20):
                connection = client(me)
                connection.sendall(part)
                connection.close()
        assert ask(me, b'{"do": "status"}\n')["ok"]
        assert not listener._clients


def test_an_answer_that_nobody_takes(me: Path) -> None:
    work = Work()
    work.told = {"long": "x" * (4 << 20)}
    with listening(work), client(me) as connection:
        connection.sendall(b'{"do": "status"}\n')
        while connection.recv(1 << 20):
            continue
        work.told = {"short": 1}
        assert ask(me, b'{"do": "status"}\n') == {"ok": {"short": 1}}


def test_our_own_user_is_let_in() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_ours(ours)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_shown_the_door(runtime: Path, me: Path) -> None:
    work = Work()
    with listening(work):
        for path in (me, runtime, runtime.parent, runtime.parent.parent):
            os.chmod(path, 0o777)
        folder = os.open(runtime, os.O_PATH)
        code = f"""
import os, socket
os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
s.settimeout(30)
s.connect("/proc/self/fd/{folder}/{me.name}")
try:
    s.sendall(b'{{"do": "cancel"}}\\n')
    print(s.recv(100))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, pass_fds=(folder,), timeout=60)
        os.close(folder)
        assert (done.stdout, done.stderr) == (b"b''\n", b"")
        assert ask(me, b'{"do": "status"}\n')["ok"]
    assert not work.cancelled.is_set()


def test_nothing_is_left_of_it(runtime: Path) -> None:
    before = threading.enumerate(), sorted(os.listdir("/proc/self/fd"))
    with listening(Work()):
        assert os.listdir(runtime) == [str(os.getpid())]
        assert stat.S_IMODE(os.stat(runtime).st_mode) == 0o700
    assert os.listdir(runtime) == []
    assert (threading.enumerate(), sorted(os.listdir("/proc/self/fd"))) == before


def test_the_thread_hears_no_signal(me: Path) -> None:
    with listening(Work()) as listener:
        assert listener._thread.ident
        path = f"/proc/self/task/{listener._thread.native_id}/status"
        blocked = next(line for line in Path(path).read_text().splitlines() if line.startswith("SigBlk"))
        assert int(blocked.split()[1], 16) & 1 << signal.SIGTERM - 1


# --- names


def test_a_name_that_a_killed_process_left_is_taken_over(runtime: Path, me: Path) -> None:
    os.close(open_folder(str(runtime)))
    folder = os.open(runtime, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"/proc/self/fd/{folder}/{me.name}")
    os.close(folder)
    with listening(Work()) as listener:
        assert listener.name == me.name
        assert ask(me, b'{"do": "status"}\n')["ok"]


def test_a_name_that_is_in_use_is_another_process_of_the_same_id(runtime: Path) -> None:
    pid = os.getpid()
    with listening(Work()) as first, listening(Work()) as second, listening(Work()) as third:
        assert [first.name, second.name, third.name] == [str(pid), f"{pid}-2", f"{pid}-3"]
        assert ask(runtime / third.name, b'{"do": "status"}\n')["ok"]
    assert os.listdir(runtime) == []


def test_something_else_of_that_name_stays(runtime: Path, me: Path) -> None:
    """A file refuses a connection, as a socket that was left over does; it is not ours to take away."""
    os.close(open_folder(str(runtime)))
    me.write_text("not a socket")
    with listening(Work()) as listener:
        assert listener.name == f"{me.name}-2"
    assert me.read_text() == "not a socket"


def test_a_name_that_is_taken_away_while_it_listens(runtime: Path, me: Path) -> None:
    with listening(Work()):
        me.unlink()
        me.write_text("somebody else's")
    assert me.read_text() == "somebody else's"
    me.unlink()
    with listening(Work()):
        me.unlink()
        runtime.rmdir()


# --- the folder


def test_the_variable_names_the_folder(runtime: Path) -> None:
    assert runtime_folder() == str(runtime)


@pytest.mark.parametrize("value", ["", "relative", "/nowhere/at/all"])
def test_without_the_variable_each_user_has_a_place(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    assert runtime_folder() == ("/run/statepipe" if os.geteuid() == 0 else f"/tmp/statepipe-{os.geteuid()}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_not_used(runtime: Path) -> None:
    runtime.mkdir()
    os.chown(runtime, 65534, -1)
    with pytest.raises(PermissionError, match="belongs to user 65534"):
        JobSocket(Work())
    os.chown(runtime.parent, 65534, -1)
    assert runtime_folder() == "/run/statepipe"


def test_a_link_is_not_followed(runtime: Path, tmp_path: Path) -> None:
    runtime.symlink_to(tmp_path)
    with pytest.raises(OSError):
        JobSocket(Work())
    assert os.listdir(tmp_path) == []


def test_a_folder_that_others_may_enter_is_closed(runtime: Path) -> None:
    runtime.mkdir()
    runtime.chmod(0o755)
    with listening(Work()):
        assert stat.S_IMODE(os.stat(runtime).st_mode) == 0o700


def test_a_folder_that_cannot_be_made_leaves_nothing_open(runtime: Path) -> None:
    runtime.write_text("a file")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        JobSocket(Work())
    assert sorted(os.listdir("/proc/self/fd")) == before
