"""The sockets at the near end of a tunnel for libvirt."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from statepipe.errors import StatepipeError
from statepipe.tunnel import libvirt
from statepipe.tunnel.libvirthost import SESSION, SYSTEM, Host


@pytest.fixture
def folder() -> Iterator[Path]:
    """One whose path leaves room for names."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_a_socket_is_its_user_s_alone(folder: Path) -> None:
    host = Host(SESSION, "/none", (), 54321, 54321)
    with libvirt._listener(host, f"{folder}/memory"):
        status = (folder / "memory").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())
    assert not (folder / "memory").exists()


def test_root_gives_qemu_the_sockets_but_not_that_of_the_daemon(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    host = Host(SYSTEM, "/none", (), 54321, 12345)
    with libvirt._listener(host, f"{folder}/memory"), libvirt._listener(host, f"{folder}/libvirtd"):
        status = (folder / "memory").stat()
        assert (status.st_uid, status.st_gid) == (54321, 12345)
        assert (folder / "libvirtd").stat().st_uid == 0


def test_a_folder_that_is_gone_is_told(folder: Path) -> None:
    host = Host(SESSION, "/none", (), 0, 0)
    path = f"{folder}/none/memory"
    with pytest.raises(StatepipeError, match=f"cannot listen at {path}: No such file"), libvirt._listener(host, path):
        pass


def test_an_error_while_it_listens_is_not_its_own(folder: Path) -> None:
    host = Host(SESSION, "/none", (), 0, 0)
    with pytest.raises(PermissionError), libvirt._listener(host, f"{folder}/memory"):
        raise PermissionError("elsewhere")
