"""load --lazy and --resume without QEMU's word: a file that does not serve, a monitor that does not answer, none."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from statepipe.errors import IntegrityError, QemuSilent, StatepipeError
from statepipe.lazy.resume import resume_load
from statepipe.lazy.telling import LazyOptions, LazyTelling
from statepipe.pipeline.runtimefolder import open_runtime_folder
from statepipe.threads import beside
from tests import streams
from tests.conformance.running import STATEPIPE, run, started, stop
from tests.statefiles import NO_KEYS, cut, layout, noisy_stream, state_file

STREAM = noisy_stream()
DIGEST = blake3(STREAM).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A state that can be served."""
    path = tmp_path / "state"
    path.write_bytes(state_file(cut(STREAM, 3), index=True))
    return path


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A monitor, at `qmp` in the current folder, that accepts clients and answers nothing."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("qmp")
        listener.listen()
        yield listener


def keepers_socket(digest: str) -> str:
    """Where the keeper of the load of `digest` has the QEMU of `qmp` listen."""
    folder, place = open_runtime_folder()
    os.close(folder)
    return f"{place}/resume-{blake3(os.fsencode(os.path.realpath('qmp'))).hexdigest()[:10]}-{digest[:16]}"


def test_the_rest_of_a_guest_is_not_to_be_loaded_in_another_way(tmp_path: Path) -> None:
    """An ordinary load would put old memory on disks that have changed since."""
    file = tmp_path / "state.gz"
    file.write_bytes(gzip.compress(STREAM))
    done = run("load", "--resume", "--qmp", "nowhere", file)
    assert done.returncode == 6 and b"name the file that the load began with" in done.stderr
    assert b"without --lazy" not in done.stderr and b"--lazy=auto" not in done.stderr


def test_where_no_qemu_can_be_asked_all_memory_is_loaded_first(file: Path) -> None:
    """As QEMU's exec: filter."""
    done = run("load", "--lazy=auto", file)
    assert done.returncode == 0 and done.stdout == STREAM
    assert b"warning: all memory is loaded first: --lazy needs a connection to QEMU in both" in done.stderr


@pytest.mark.usefixtures("silent")
def test_a_silent_qemu_that_waits_for_another_state_is_named_as_one(file: Path) -> None:
    other = keepers_socket("0123456789abcdef")
    Path(other).touch()
    try:
        done = run("load", "--resume", "--qmp", "qmp", file)
    finally:
        os.unlink(other)
    assert done.returncode == 6
    assert b"QEMU may be waiting for another state, whose blake3 begins 0123456789abcdef" in done.stderr


@pytest.mark.usefixtures("silent")
def test_a_silent_qemu_that_listens_by_another_monitor_is_named_with_that(file: Path, runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    monitor = runtime / "load-7.qmp"
    path = runtime / f"resume-{blake3(os.fsencode(monitor)).hexdigest()[:10]}-{DIGEST[:16]}"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as own:
        own.bind(str(monitor))
        listener.bind(str(path))
        done = run("load", "--resume", "--qmp", "qmp", file)
    assert done.returncode == 6
    assert f"give the monitor that its load had: statepipe load --resume --qmp {monitor} FILE".encode() in done.stderr


def test_interrupted_it_says_how_to_continue(file: Path, silent: socket.socket) -> None:
    command = [*STATEPIPE, "load", "--resume", "--throttle", "1.5g", "--qmp", "qmp", str(file)]
    with started(command) as process, silent.accept()[0]:
        status, said = stop(process, signal.SIGINT)
    assert status == 128 + signal.SIGINT
    again = f"statepipe load --resume --qmp {file.parent}/qmp --throttle 1536M {file}"
    assert f"the guest is left as it is; continue with: {again}".encode() in said


@contextmanager
def listening() -> Iterator[socket.socket]:
    """A QEMU that its keeper has listen for the rest of the state."""
    path = keepers_socket(DIGEST)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        try:
            yield listener
        finally:
            os.unlink(path)


def test_a_qemu_that_accepts_nobody_holds_nothing_up(file: Path) -> None:
    """It was stopped, and --resume was tried again and again: the next one hung, and no signal ended it."""
    path = keepers_socket(DIGEST)
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as waiting:
        listener.bind(path)
        listener.listen(1)
        with pytest.raises(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(path)
        done = run("load", "--resume", "--qmp", "qmp", file)
        os.unlink(path)
    assert done.returncode == 6 and b"has not accepted the earlier ones" in done.stderr and b"kill -CONT" in done.stderr


def test_a_connection_that_qemu_closes_is_reported(file: Path, silent: socket.socket) -> None:
    """As QEMU does when another statepipe was faster."""
    with listening() as qemu, started([*STATEPIPE, "load", "--resume", "--qmp", "qmp", str(file)]) as process:
        qemu.accept()[0].close()
        wait_status = process.wait(30)
        said = process.stderr.read() if process.stderr else b""
    assert wait_status == 6
    assert b"QEMU closed the new connection\n" in said and b"statepipe ps" in said


def continues(listener: socket.socket, page: int) -> None:
    """As QEMU does when it is told to: it has no page yet, its guest touches this one, and it reads until the end."""
    with listener.accept()[0] as link:
        link.sendall(lacks_all() + asks("pc.ram", page))
        while link.recv(1 << 16):
            continue


def lacks_all() -> bytes:
    """What QEMU says that has none of the guest's pages."""
    said = b""
    for name, length in streams.BLOCKS:
        bitmap = bytes((length // streams.PAGE + 63) // 64 * 8)
        named = struct.pack(">HHB", 5, 1 + len(name), len(name)) + name.encode()
        said += named + struct.pack(">Q", len(bitmap)) + bitmap + struct.pack(">Q", 0x0123456789ABCDEF)
    return said + struct.pack(">HHI", 6, 4, 1)


def asks(block: str, page: int) -> bytes:
    """A request for one page."""
    return struct.pack(">HHQIB", 3, 13 + len(block), page * streams.PAGE, streams.PAGE, len(block)) + block.encode()


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("is_damaged", [True, False])
def test_what_a_silent_qemu_waits_for_is_told(file: Path, is_damaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guest's processor waits for a page, so its monitor does not answer: a damaged page is the cause, and its
    status is 3."""
    monkeypatch.setattr("statepipe.qemu.connection.GREETING_TIME", 0.5)
    if is_damaged:
        middle = [piece for piece in layout(file.read_bytes()) if piece.content][1]
        with file.open("r+b") as damaged:
            damaged.seek((middle.start + middle.end) // 2)
            damaged.write(b"damage")
    warned: list[str] = []
    tell = LazyTelling(warned.append, *[lambda *told: None] * 4)  # type: ignore[arg-type]
    with (
        listening() as qemu,
        beside("QEMU", lambda: continues(qemu, 2), lambda: None),
        pytest.raises(StatepipeError) as caught,
    ):
        resume_load(str(file), "qmp", NO_KEYS, tell, LazyOptions())
    hint = caught.value.hint or ""
    if not is_damaged:
        assert isinstance(caught.value, QemuSilent) and "no greeting at qmp" in str(caught.value)
        return
    assert isinstance(caught.value, IntegrityError) and caught.value.exit_code == 3
    assert "QEMU does not answer, and its guest may be running, with 0 of 0 MiB of its memory loaded" in hint
    assert "waits for a page that is damaged, at 0x2000 of pc.ram; do not end its QEMU; replace the file" in hint
    assert f"continue with: statepipe load --resume --qmp {file.parent}/qmp {file}" in hint
