"""Which process is believed to be a domain's QEMU. A shell that is called qemu stands for it, and for one that lies."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from statepipe.libvirt import process as module
from statepipe.libvirt.process import qemu_of

UUID = "3fbf76b1-f6fe-43d6-bf76-cd41371924dc"
SESSION, SYSTEM = "qemu:///session", "qemu:///system"
NOBODY = 65534

Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(uuid, user=…)`: a program qemu-x with this UUID on its command line; its process id."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place.chmod(0o755)  # for another user
        program = place / "qemu-x"
        shutil.copy(shutil.which("dash") or "/bin/sh", program)

        def starting(uuid: str = UUID, user: int | None = None) -> int:
            words = ["-c", "echo .; read x", "x", "-uuid", uuid]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            started = subprocess.Popen([program, *words], user=user, **pipes)  # type: ignore[call-overload]
            process: subprocess.Popen[bytes] = stack.enter_context(started)
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == b".\n"
            return process.pid

        yield starting


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of /run/libvirt/qemu."""
    if os.geteuid() != 0:
        pytest.skip("only root makes root's files")
    found = tmp_path / "run"
    found.mkdir(mode=0o755)
    monkeypatch.setattr(module, "FOLDER", str(found))
    return found


def found_at(uri: str, name: str = "vm1") -> int | None:
    running = qemu_of(uri, name, UUID)
    return None if running is None else running.pid


def test_a_user_s_libvirt_has_the_user_s_processes(start: Start) -> None:
    pid = start()
    assert found_at(SESSION) == found_at(f"{SESSION}?socket=/x") == pid


@pytest.mark.parametrize("uri", [SYSTEM, "qemu:///embed?root=/x", "test:///default", "None", "x"])
def test_another_connection_has_not(start: Start, uri: str, folder: Path) -> None:
    start()
    assert found_at(uri) is None


def test_another_user_s_process_is_not_believed(start: Start, folder: Path) -> None:
    start(user=NOBODY)
    assert found_at(SESSION) is None and found_at(SYSTEM) is None
    pid = start()
    assert found_at(SESSION) == pid


@pytest.mark.parametrize("name", ["vm1", "a 'b' <c> &\"d\"", "\u2028"])
def test_the_system_s_libvirt_names_it_in_its_pid_file(start: Start, folder: Path, name: str) -> None:
    start(user=NOBODY)
    pid = start(user=NOBODY)
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for file in (name, escaped.replace("'", "&apos;").replace('"', "&quot;")):
        (folder / f"{file}.pid").write_text(f"{pid}")
        assert found_at(SYSTEM, name) == pid
        (folder / f"{file}.pid").unlink()


def test_a_number_that_another_process_has_by_now_is_not_believed(start: Start, folder: Path) -> None:
    (folder / "vm1.pid").write_text(f"{start('another')}\n")
    assert found_at(SYSTEM) is None
    (folder / "vm1.pid").write_text(f"{os.getpid()}\n")
    assert found_at(SYSTEM) is None


SPOILT: dict[str, Callable[[Path], object]] = {
    "the folder is a user's": lambda file: os.chown(file.parent, NOBODY, -1),
    "others can write into the folder": lambda file: file.parent.chmod(0o777),
    "the file is a user's": lambda file: os.chown(file, NOBODY, -1),
    "a group can write the file": lambda file: file.chmod(0o664),
    "it is a link": lambda file: file.symlink_to(file.rename(file.with_name("other"))),
    "it has no number": lambda file: file.write_text("x"),
    "it is gone": Path.unlink,
}


def test_the_folder_may_be_that_of_the_user_who_runs_qemu(start: Start, folder: Path) -> None:
    """As libvirt 12 has it."""
    pid = start(user=NOBODY)
    (folder / "vm1.pid").write_text(str(pid))
    os.chown(folder, NOBODY, -1)
    assert found_at(SYSTEM) == pid


@pytest.mark.parametrize("how", SPOILT)
def test_a_pid_file_that_others_can_write_is_not_believed(start: Start, folder: Path, how: str) -> None:
    file = folder / "vm1.pid"
    file.write_text(str(start()))
    assert found_at(SYSTEM) is not None
    SPOILT[how](file)
    assert found_at(SYSTEM) is None
