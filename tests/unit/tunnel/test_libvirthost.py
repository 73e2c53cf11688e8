"""This host's libvirt: which folder, which user, which sockets; and what is refused there."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from statepipe.ends.address import PATH_LIMIT
from statepipe.errors import PeerError, StatepipeError, UsageError
from statepipe.tunnel import libvirthost
from statepipe.tunnel.libvirthost import (
    LOOKED_AT,
    SESSION,
    SYSTEM,
    Host,
    check_domain,
    connect_daemon,
    connect_qemu,
    labelled,
    own_folder,
    this_host,
    virsh_line,
)

IDENT = "0123abcd"


def host(folder: Path, *, kind: str = SESSION, user: int | None = None) -> Host:
    daemons = (f"{folder}/virtqemud-sock", f"{folder}/libvirt-sock")
    return Host(kind, f"{folder}/tunnels", daemons, os.geteuid() if user is None else user, os.getegid())


@contextmanager
def listening(path: Path | str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield listener


# --- which one it is


def test_a_user_has_a_daemon_and_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # of another user: not for what we make
    found = this_host(None, None)
    assert found.kind == SESSION and found.folder == "/tmp/statepipe-12345/libvirt"
    assert found.daemons == (f"{tmp_path}/libvirt/virtqemud-sock", f"{tmp_path}/libvirt/libvirt-sock")
    assert this_host("/run/x-1.y", "/s").folder == "/run/x-1.y" and this_host(None, "/s").daemons == ("/s",)


def test_root_has_the_system_s_and_its_qemus_have_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(libvirthost, "QEMU_FOLDER", str(tmp_path))
    found = this_host(None, None)
    assert (found.kind, found.folder) == (SYSTEM, "/run/libvirt/qemu/statepipe")
    assert found.daemons == ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")
    assert (found.user, found.group) == (tmp_path.stat().st_uid, tmp_path.stat().st_gid)
    monkeypatch.setattr(libvirthost, "QEMU_FOLDER", f"{tmp_path}/none")
    with pytest.raises(StatepipeError, match=r"QEMU driver has never run here: .*/none: No such file"):
        this_host(None, None)


@pytest.mark.parametrize("folder", ["", "x", "/", "/a/", "/a//b", "/a b", "/a?b", "/a%20", "/ä"])
def test_a_folder_that_no_uri_can_contain_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be the folder of the sockets"):
        this_host(folder, "/socket")


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "a\0b"])
def test_a_guest_s_name_is_part_of_a_file_s_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a guest's name"):
        check_domain(name)


def test_the_paths_are_those_that_apparmor_allows(tmp_path: Path) -> None:
    paths = Host(SYSTEM, "/run/libvirt/qemu/statepipe", (), 0, 0).paths(IDENT, "web1")
    assert paths.memory == f"/run/libvirt/qemu/statepipe/{IDENT}/memory.tunnelmigrate.dest.web1"
    assert paths.disks == f"/run/libvirt/qemu/statepipe/{IDENT}/disks.tunnelmigrate.dest.web1"


def test_a_path_that_is_too_long_is_refused() -> None:
    lone = Host(SYSTEM, "/run/s", (), 0, 0)
    room = PATH_LIMIT - len(lone.paths(IDENT, "").memory)
    assert len(lone.paths(IDENT, "x" * room).memory) == PATH_LIMIT
    with pytest.raises(UsageError, match="paths would have 108 bytes, and 107 are possible"):
        lone.paths(IDENT, "x" * (room + 1))
    with pytest.raises(UsageError, match="paths would have 109 bytes"):
        lone.paths(IDENT, "x" * room + "ä")


def test_the_line_survives_a_shell_and_a_uri() -> None:
    where = Host(SYSTEM, "/run/s", (), 0, 0)
    words = shlex.split(virsh_line(where, "a b&c", where.paths(IDENT, "a b&c")))
    assert words[:7] == ["virsh", "-c", "qemu:///system", "migrate", "--live", "--domain", "a b&c"]
    assert words[8] == f"qemu+unix:///system?socket=/run/s/{IDENT}/libvirtd"
    assert words[10].endswith("/memory.tunnelmigrate.dest.a%20b%26c")


# --- the folder


def test_the_folder_of_a_tunnel_goes_with_its_sockets(tmp_path: Path) -> None:
    with own_folder(host(tmp_path), IDENT, listens=True) as fd:
        own = tmp_path / "tunnels" / IDENT
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert (own.stat().st_dev, own.stat().st_ino) == (os.fstat(fd).st_dev, os.fstat(fd).st_ino)
        with listening(own / "memory"):
            pass
    assert os.listdir(tmp_path / "tunnels") == []


def test_a_users_first_statepipe_makes_the_folder_that_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with own_folder(host(tmp_path)._replace(folder=f"{tmp_path}/statepipe/libvirt"), IDENT, listens=True):
        assert stat.S_IMODE((tmp_path / "statepipe").stat().st_mode) == 0o700
        assert os.listdir(tmp_path / "statepipe" / "libvirt") == [IDENT]


def test_what_is_not_ours_in_it_is_left(tmp_path: Path) -> None:
    with own_folder(host(tmp_path), IDENT, listens=True):
        (tmp_path / "tunnels" / IDENT / "file").touch()
    assert os.listdir(tmp_path / "tunnels" / IDENT) == ["file"]


def test_a_folder_that_was_filled_is_not_searched_for_ever(tmp_path: Path) -> None:
    with own_folder(host(tmp_path), IDENT, listens=True):
        for number in range(LOOKED_AT + 10):
            with listening(tmp_path / "tunnels" / IDENT / f"{number}"):
                pass
    assert len(os.listdir(tmp_path / "tunnels" / IDENT)) == 10


def test_qemu_s_user_can_reach_the_sockets_of_root_and_list_nothing(tmp_path: Path) -> None:
    with own_folder(host(tmp_path, kind=SYSTEM), IDENT, listens=False):
        assert stat.S_IMODE((tmp_path / "tunnels").stat().st_mode) == 0o711
        assert stat.S_IMODE((tmp_path / "tunnels" / IDENT).stat().st_mode) == 0o711


def test_the_folder_of_a_killed_tunnel_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = tmp_path / "tunnels" / "deadbeef"
    with ExitStack() as stack:
        stack.enter_context(own_folder(host(tmp_path), IDENT, listens=True))
        killed.mkdir()
        with listening(killed / "memory"):
            pass
        (tmp_path / "tunnels" / "other").mkdir()
        stack.enter_context(own_folder(host(tmp_path), "00000001", listens=True))
        assert sorted(os.listdir(tmp_path / "tunnels")) == ["00000001", IDENT, "other"]


def test_two_ends_in_one_folder_are_told_so(tmp_path: Path) -> None:
    with (
        own_folder(host(tmp_path), IDENT, listens=True),
        pytest.raises(StatepipeError, match=r"has its folder in .* already") as raised,
        own_folder(host(tmp_path), IDENT, listens=False),
    ):
        pass
    assert "on different hosts" in str(raised.value.hint)
    assert os.listdir(tmp_path / "tunnels") == []


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tunnels").mkdir()
    (tmp_path / "tunnels").chmod(0o777)
    with pytest.raises(StatepipeError, match="others can write it"), own_folder(host(tmp_path), IDENT, listens=True):
        pass


def test_a_folder_s_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "tunnels").symlink_to(tmp_path / "else")
    with (
        pytest.raises(StatepipeError, match="cannot make a folder in"),
        own_folder(host(tmp_path), IDENT, listens=True),
    ):
        pass


def test_where_there_is_no_libvirt_the_folder_cannot_be_made(tmp_path: Path) -> None:
    with (
        pytest.raises(StatepipeError, match=r"cannot make a folder in .*/none/tunnels: No such file"),
        own_folder(host(tmp_path / "none"), IDENT, listens=True),
    ):
        pass


# --- its sockets


def test_the_daemon_is_the_first_that_answers(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"no libvirt daemon answers: .*virtqemud-sock: No such file.*, .*libvirt-sock"):
        connect_daemon(host(tmp_path))
    with listening(tmp_path / "virtqemud-sock"):
        pass  # one that was killed
    with listening(tmp_path / "libvirt-sock"):
        path, connection = connect_daemon(host(tmp_path))
        connection.close()
    assert path == f"{tmp_path}/libvirt-sock"
    with pytest.raises(PeerError, match="virtqemud-sock: Connection refused"):
        connect_daemon(host(tmp_path))


def test_a_daemon_s_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    where = host(tmp_path)._replace(daemons=("/" + "x" * 200,))
    with pytest.raises(PeerError, match="File name too long"):
        connect_daemon(where)


def refused(where: Host, folder: Path, number: int | None = None) -> str:
    fd = os.open(folder, os.O_RDONLY)
    try:
        with pytest.raises(PeerError) as raised:
            connect_qemu(where, fd, f"{folder}/memory")
    finally:
        os.close(fd)
    if number is not None:
        assert str(raised.value) == f"no QEMU listens at {folder}/memory: {os.strerror(number)}"
    return str(raised.value)


def test_a_qemu_that_listens_is_reached(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with listening(tmp_path / "memory") as listener, connect_qemu(host(tmp_path), fd, f"{tmp_path}/memory") as ours:
            ours.sendall(b"here")
            with listener.accept()[0] as theirs:
                assert theirs.recv(4) == b"here"
    finally:
        os.close(fd)


def test_nobody_and_one_who_has_left_are_told(tmp_path: Path) -> None:
    refused(host(tmp_path), tmp_path, errno.ENOENT)
    with listening(tmp_path / "memory"):
        pass
    refused(host(tmp_path), tmp_path, errno.ECONNREFUSED)


def test_neither_a_link_nor_a_file_leads_elsewhere(tmp_path: Path) -> None:
    """The folder is QEMU's: it could lead us to the socket of root's daemon."""
    with listening(tmp_path / "daemon"):
        (tmp_path / "memory").symlink_to(tmp_path / "daemon")
        refused(host(tmp_path), tmp_path, errno.ENOTSOCK)
    (tmp_path / "memory").unlink()
    (tmp_path / "memory").touch()
    refused(host(tmp_path), tmp_path, errno.ENOTSOCK)


def test_another_user_who_listens_is_not_qemu(tmp_path: Path) -> None:
    with listening(tmp_path / "memory"):
        assert "listens at" in refused(host(tmp_path, user=54321), tmp_path)


# --- SELinux


def test_sockets_get_their_label_where_selinux_is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirthost, "_SELINUX", str(tmp_path))
    attribute = tmp_path / "sockcreate"
    monkeypatch.setattr(libvirthost, "_SOCKETS", str(attribute))
    with labelled():
        assert attribute.read_bytes() == b"system_u:system_r:svirt_socket_t:s0"
    assert attribute.read_bytes() == b""
    monkeypatch.setattr(libvirthost, "_SOCKETS", str(tmp_path / "none" / "x"))
    with pytest.raises(StatepipeError, match="SELinux does not let us label sockets"), labelled():
        pass


def test_a_label_that_the_policy_does_not_know_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirthost, "_SELINUX", str(tmp_path))
    monkeypatch.setattr(libvirthost, "_SOCKETS", "/proc/self/oom_score_adj")  # it answers EINVAL to any text
    with labelled():
        pass


def test_without_selinux_nothing_is_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirthost, "_SELINUX", str(tmp_path / "none"))
    monkeypatch.setattr(libvirthost, "_SOCKETS", str(tmp_path / "none" / "x"))
    with labelled():
        pass
