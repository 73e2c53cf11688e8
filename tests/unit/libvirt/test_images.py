"""Where libvirt keeps the managed saves of a connection."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from statepipe.errors import StatepipeError, UsageError
from statepipe.libvirt import images
from statepipe.libvirt.images import managed_save


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("VIRSH_DEFAULT_CONNECT_URI", "LIBVIRT_DEFAULT_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    return tmp_path


def saved(folder: Path, name: str = "web1") -> str:
    folder.mkdir(parents=True)
    (folder / f"{name}.save").touch()
    return str(folder / f"{name}.save")


def test_a_users_are_below_the_configuration(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(home / ".config/libvirt/qemu/save")
    assert managed_save("web1", "qemu:///session") == path
    assert managed_save("web1", "qemu:///session?socket=/run/x") == path
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "else"))
    other = saved(home / "else/libvirt/qemu/save")
    assert managed_save("web1", "qemu:///session") == other


def test_without_a_uri_it_is_virshs_choice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(home / ".config/libvirt/qemu/save")
    monkeypatch.setattr(images, "SYSTEM_FOLDER", str(home / "system"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert managed_save("web1") == path
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    system = saved(home / "system")
    assert managed_save("web1") == system
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///session")
    assert managed_save("web1") == path
    monkeypatch.setenv("VIRSH_DEFAULT_CONNECT_URI", "qemu:///system")
    assert managed_save("web1") == system


def test_for_a_domain_without_one_the_right_commands_are_told(home: Path) -> None:
    with pytest.raises(
        StatepipeError, match=r"web1 has no managed save: there is no /.*/qemu/save/web1\.save"
    ) as caught:
        managed_save("web1", "qemu:///session")
    hint = str(caught.value.hint)
    assert hint.startswith(
        "virsh --connect=qemu:///session list --all --with-managed-save shows which domains have one"
    )
    assert "statepipe save --domain web1 NEW" in hint and "--connect URI" in hint


def test_what_may_not_be_looked_into_is_not_called_missing(home: Path) -> None:
    (home / ".config").write_text("a file where a folder should be")
    with pytest.raises(StatepipeError, match="cannot look for"):
        managed_save("web1", "qemu:///session")


@pytest.mark.parametrize("name", ["", "../web1", "a\0b", "/etc/passwd"])
def test_what_cannot_be_a_name_is_none(name: str) -> None:
    with pytest.raises(UsageError, match="no domain can have the name"):
        managed_save(name, "qemu:///session")


@pytest.mark.parametrize("uri", ["qemu+ssh://host/system", "xen:///system", "qemu:///embed?root=/x", "myalias"])
def test_other_connections_are_refused(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        managed_save("web1", uri)
    assert caught.value.hint is not None
