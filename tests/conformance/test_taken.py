"""What a new QEMU would share with a process that runs, named with its option."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from statepipe.qemu.taken import taken


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Callable[[Path], int]]:
    """`qemu(file)`: a process that is a QEMU by the name of its program, with the file open; its id."""
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / "qemu-stand-in")
    with ExitStack() as stack:

        def start(file: Path) -> int:
            with file.open("a") as out:
                process = stack.enter_context(subprocess.Popen([program, "100"], stdout=out))
            stack.callback(process.kill)
            return process.pid

        yield start


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["-serial", "file:{0}"], "-serial"),
        (["-D", "{0}"], "-D"),
        (["-pidfile", "{0}"], "-pidfile"),
        (["-chardev", "file,id=c,path={0}"], "-chardev"),
        (["-chardev", "ringbuf,id=c,logfile={0},logappend=off"], "-chardev"),
        (["-object", "filter-dump,id=f,netdev=n,file={0}"], "-object filter-dump"),
        (["-object", "memory-backend-file,id=m,size=1M,mem-path={0},share=on"], "-object memory-backend-file"),
    ],
)
def test_a_file_that_another_qemu_writes_is_named(
    tmp_path: Path, qemu: Callable[[Path], int], words: list[str], option: str
) -> None:
    file = tmp_path / "file"
    command = ["qemu", *(word.format(file) for word in words)]
    assert taken(command, "/") == []
    file.touch()
    assert taken(command, "/") == [], "a file that no QEMU has"
    pid = qemu(file)
    said = [f"other QEMUs write its files: {file} ({option}): process {pid}"]
    assert taken(command, "/") == said
    relative = ["qemu", *(word.format("file") for word in words)]
    assert taken(relative, str(tmp_path)) == [said[0].replace(f"{file} ", f"{tmp_path}/file ")]


@pytest.mark.parametrize(
    "words",
    [
        ["-chardev", "file,id=c,path={0},append=on"],
        ["-chardev", "ringbuf,id=c,logfile={0},logappend=on"],
        ["-object", "memory-backend-file,id=m,size=1M,mem-path={0}"],
        ["-mem-path", "{0}"],
        ["-drive", "file={0},format=raw"],
    ],
)
def test_what_two_can_have_is_not_named(tmp_path: Path, qemu: Callable[[Path], int], words: list[str]) -> None:
    qemu(tmp_path / "file")
    assert taken(["qemu", *(word.format(tmp_path / "file") for word in words)], "/") == []


def test_all_is_named_at_once(tmp_path: Path, qemu: Callable[[Path], int]) -> None:
    log, path, config = tmp_path / "log", str(tmp_path / "s"), tmp_path / "config"
    pid = qemu(log)
    with socket.socket(socket.AF_UNIX) as monitor, socket.create_server(("127.0.0.1", 0)) as server:
        monitor.bind(path)
        monitor.listen()
        port = server.getsockname()[1]
        config.write_text(f'[chardev "c"]\n  backend = "file"\n  path = "{log}"\n')
        command = ["qemu", "-qmp", f"unix:{path},server=on", "-netdev", f"user,id=n,hostfwd=tcp::{port}-:22"]
        assert taken([*command, "-readconfig", str(config)], "/") == [
            f"it would replace sockets at which another process listens: {path} (-qmp)",
            f"other processes listen at its ports: TCP *:{port} (-netdev)",
            f"other QEMUs write its files: {log} (-chardev): process {pid}",
        ]


def test_a_tap_that_another_qemu_has_is_named(qemu: Callable[[Path], int]) -> None:
    """What opens /dev/net/tun without asking for an interface has none."""
    if not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("/dev/net/tun cannot be opened here")
    qemu(Path("/dev/net/tun"))
    assert taken(["qemu", "-netdev", "tap,id=n,ifname=tap7"], "/") == []
