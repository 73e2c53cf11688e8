"""Who listens at a unix socket, and what becomes of its name while it does."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.harness import wait_for
from tests.qemu.moving import Running, statepipe_command
from tests.refusing import refusing
from tests.strangers import listened_at

WAITING = {
    "recv": lambda path, folder: ["recv", "-o", f"{folder}/received", f"unix://{path}"],
    "recv to a pipe": lambda path, folder: ["recv", f"unix://{path}"],
    "receive": lambda path, folder: ["receive", "--qmp", "/nowhere", f"unix://{path}"],
    "serve": lambda path, folder: ["receive", "--serve", "1", f"unix://{path}", "--", "/nowhere"],
    "tunnel": lambda path, folder: ["tunnel", f"unix://{path}", "ssh://nowhere.invalid/socket"],
}
"""All that listen at one."""


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    """As another program takes the name for itself."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{path}.new")
        os.rename(f"{path}.new", path)


def remove_folder(path: Path) -> None:
    path.parent.rename(f"{path.parent}.old")


@pytest.mark.parametrize("verb", WAITING)
@pytest.mark.parametrize(
    ("lose", "told"), [(remove, "its name was removed"), (replace, "another file has its name now")]
)
def test_who_waits_at_a_name_that_was_lost_says_so_and_ends(
    tmp_path: Path, verb: str, lose: Callable[[Path], None], told: str
) -> None:
    path = tmp_path / "in"
    with Running(*WAITING[verb](path, tmp_path)) as waits:
        wait_for("the socket", path.exists)
        lose(path)
        assert waits.wait() == 5, waits.said
        assert f"error: the socket {path} can no longer be reached: {told}" in waits.said[-3], waits.said
        assert path.exists() == (lose is replace)  # what is another's stays
    assert not (tmp_path / "received").exists()


def test_a_folder_that_was_taken_away_takes_the_name_with_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "in"
    path.parent.mkdir()
    with Running("recv", f"unix://{path}") as waits:
        wait_for("the socket", path.exists)
        remove_folder(path)
        assert waits.wait() == 5 and "its name was removed" in waits.said[-3], waits.said


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_where_a_file_can_have_no_second_name_it_listens_all_the_same(tmp_path: Path, error: int) -> None:
    path = tmp_path / "in"
    with Running("recv", "-o", tmp_path / "f", f"unix://{path}", wrapper=refusing(error, "linkat")) as waits:
        wait_for("the socket", path.exists)
        assert path.stat().st_mode & 0o777 == 0o600
        sending = [*statepipe_command(), "send", "--retry", "30", f"unix://{path}"]
        assert subprocess.run(sending, input=b"data", timeout=60).returncode == 0
        assert waits.wait() == 0, waits.said
    assert (tmp_path / "f").read_bytes() == b"data"
    assert os.listdir(tmp_path) == ["f"]


def test_a_name_that_another_listens_at_is_refused_there_too(tmp_path: Path) -> None:
    path = tmp_path / "in"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with Running("recv", f"unix://{path}", wrapper=refusing(errno.EPERM, "linkat")) as waits:
            assert waits.wait() == 5
        assert "Address already in use" in waits.said[0], waits.said


@pytest.mark.parametrize(
    ("uid", "told"), [(65534, "another user, nobody, listens at unix://{0} and reads all that is sent there"), (0, "")]
)
def test_a_stranger_who_listens_is_told_of(tmp_path: Path, uid: int, told: str) -> None:
    path = tmp_path / "in"
    with listened_at(path, uid) as listener:
        sending = [*statepipe_command(), "send", f"unix://{path}"]
        with subprocess.Popen(sending, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            listener.accept()[0].close()
            assert process.wait(60) == 0 and process.stderr is not None
            warned = [line for line in process.stderr if "listens at" in line]
        assert warned == ([f"statepipe: send: warning: {told.format(path)}\n"] if told else [])
