"""migrate and receive at a unix socket: a guest goes into another QEMU of its host, without certificates."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from statepipe.ends.address import parse_address
from statepipe.ends.dial import listening
from statepipe.ends.peercred import demand_user, uid_of
from statepipe.errors import PeerError, UsageError
from tests.qemu.harness import Guest, assert_runs_on, run_statepipe
from tests.qemu.moving import Running, assert_moved, waiting
from tests.strangers import listened_at


def test_a_guest_goes_into_another_qemu_of_its_host(tmp_path: Path, qemu: str) -> None:
    where = f"unix://{tmp_path}/meet"
    with Guest(tmp_path, qemu=qemu, dirty=2) as source, waiting(tmp_path, qemu, source) as target:
        source.wait_ticks(3)
        with Running("receive", where, "--qmp", target.socket) as receiving:
            receiving.wait_said(f"listening at {tmp_path}/meet for a guest")
            looked = run_statepipe("check", "--qmp", source.socket, where)
            assert looked.returncode == 0, looked.stderr
            with Running("migrate", "--qmp", source.socket, "zstd:1", where) as moving:
                assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)
        assert f"the guest runs at {where}: " in moving.said[-2]
        assert_moved(source, target)
        assert source.run_state() == "postmigrate"
    assert not (tmp_path / "meet").exists()


@pytest.mark.parametrize("words", [["--timeout", "60"], [], ["throttle:100M"], ["--peer", "12345"]])
def test_a_listener_of_another_user_s_gets_nothing_and_the_guest_runs_on(
    tmp_path: Path, qemu72: str, words: list[str]
) -> None:
    """Whether a statepipe is demanded there, or one who is silent is taken for a QEMU that waits."""
    where = f"unix://{tmp_path}/meet"
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, listened_at(tmp_path / "meet", 65534) as listener:
        source.wait_ticks(3)
        done = run_statepipe("migrate", "--qmp", source.socket, *words, where)
        assert done.returncode == 5, done.stderr
        assert f"{where}: the other side is nobody, not root" in done.stderr and "--peer 65534" in done.stderr
        with listener.accept()[0] as connection:
            assert connection.recv(1) == b"", "not a byte was sent"
        assert_runs_on(source)


@pytest.mark.parametrize(("uid", "meant"), [(65534, "nobody"), (65534, "65534"), (0, None), (0, "nobody")])
def test_root_and_who_is_meant_are_known(tmp_path: Path, uid: int, meant: str | None) -> None:
    with listened_at(tmp_path / "meet", uid) as listener, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(listener.getsockname())
        assert demand_user(connection, meant) == ("nobody" if uid else "root")


def test_a_receiver_lets_in_the_user_who_is_meant_and_no_other(qemu72: str) -> None:
    if os.geteuid():
        pytest.skip("only root can be another user")
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        where = f"{folder}/meet"
        with Running("receive", "--peer", "65534", f"unix://{where}", "--", qemu72, "-nodefaults") as receiving:
            receiving.wait_said(f"listening at {where} for a guest")
            assert said_to(65534, where) == b"statepipe session"
            assert said_to(12345, where) == b""
            receiving.wait_said("turned away this host: the other side is user 12345, not root")


def said_to(uid: int, path: str) -> bytes:
    """The beginning of what a user hears who connects there."""
    with socket.socket(socket.AF_UNIX) as connection:
        os.seteuid(uid)
        try:
            connection.connect(path)
        finally:
            os.seteuid(0)
        return connection.recv(17)


def test_a_name_that_another_has_by_now_is_left_to_it(tmp_path: Path) -> None:
    address = parse_address(f"unix://{tmp_path}/meet")
    with listening(address, insecure=False):
        (tmp_path / "meet").unlink()
        (tmp_path / "meet").write_text("another's")
    assert (tmp_path / "meet").exists()


def test_the_user_who_has_the_guest_already_is_known(tmp_path: Path) -> None:
    with listened_at(tmp_path / "meet", 65534) as listener, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(listener.getsockname())
        assert demand_user(connection, None, 65534) == "nobody"
        with pytest.raises(PeerError, match="the other side is nobody, not root"):
            demand_user(connection, None, 12345)


def test_a_user_who_is_none_is_told() -> None:
    with pytest.raises(UsageError, match="the user 'nobody-at-all' does not exist here"):
        uid_of("nobody-at-all")
    done = run_statepipe("receive", "--peer", "nobody-at-all", "unix:///tmp/no-such", "--qmp", "/no/such/socket")
    assert done.returncode == 2 and "the user 'nobody-at-all' does not exist here" in done.stderr
