"""Secrets stay secret: a key that others may read is refused with what mends it, and no core of ours holds one."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from tests import agefiles
from tests.conformance.running import started, waiting
from tests.qemu.harness import run_statepipe, statepipe_command, wait_for

SEALED = agefiles.sealed(b"it")
KEY = agefiles.KEY_FILE.read_text()


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    file = tmp_path / "sealed"
    file.write_bytes(SEALED)
    return file


def key_file(folder: Path, mode: int, text: str = KEY) -> Path:
    file = folder / "key"
    file.write_text(text)
    file.chmod(mode)
    return file


def decrypt(sealed: Path, *words: object, **more: object) -> subprocess.CompletedProcess[str]:
    with sealed.open("rb") as given:
        return run_statepipe("decrypt", *words, stdin=given, **more)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602])
def test_an_identity_that_others_may_use_is_refused_with_what_mends_it(sealed: Path, mode: int) -> None:
    """The hint can be typed as it stands, whatever the folder is called."""
    folder = sealed.parent / "it's mine"
    folder.mkdir()
    key = key_file(folder, mode)
    done = decrypt(sealed, "-i", key)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{key} can be read or written by others: its mode is {mode:04o}" in done.stderr
    hint = re.search("^statepipe: hint: (chmod 600 .+)$", done.stderr, re.M)
    assert hint is not None
    subprocess.run(hint[1], shell=True, check=True)
    assert decrypt(sealed, "-i", key).stdout == "it"


def test_a_passphrase_that_others_may_read_is_refused(sealed: Path) -> None:
    done = decrypt(sealed, "--passphrase-file", key_file(sealed.parent, 0o644, "open sesame\n"))
    assert done.returncode == 1 and "hint: chmod 600" in done.stderr


def test_the_group_of_a_file_that_is_roots_is_roots_choice(sealed: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has such files")
    assert decrypt(sealed, "-i", key_file(sealed.parent, 0o640)).stdout == "it"
    key = key_file(sealed.parent, 0o640)
    os.chown(key, 65534, 65534)
    assert decrypt(sealed, "-i", key).returncode == 1


def test_what_systemd_hands_over_is_systemds_to_keep(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_file(sealed.parent, 0o444)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(sealed.parent))
    assert decrypt(sealed, "-i", key).stdout == "it"


def test_a_pipe_and_a_descriptor_pass(sealed: Path) -> None:
    key = key_file(sealed.parent, 0o644)
    with key.open("rb") as file:
        assert decrypt(sealed, "-i", f"/dev/fd/{file.fileno()}", pass_fds=[file.fileno()]).stdout == "it"
    reading, writing = os.pipe()
    os.write(writing, KEY.encode())
    os.close(writing)
    try:
        assert decrypt(sealed, "-i", f"/dev/fd/{reading}", pass_fds=[reading]).stdout == "it"
    finally:
        os.close(reading)


def test_a_plugins_identity_is_no_secret(sealed: Path) -> None:
    done = decrypt(sealed, "-i", key_file(sealed.parent, 0o644, "AGE-PLUGIN-NONE-1QQQQQQQQQQQQ2H7NZZ\n"))
    assert "chmod" not in done.stderr


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_settings_that_others_may_change_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """They say who opens what is saved."""
    monkeypatch.delenv("STATEPIPE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    settings = tmp_path / "statepipe" / "config.toml"
    settings.parent.mkdir()
    settings.write_text(f'recipients = ["{agefiles.RECIPIENT}"]\n')
    settings.chmod(mode)
    done = run_statepipe("encrypt")
    assert done.returncode == 1
    assert f"hint: chmod go-w {settings}" in done.stderr
    settings.chmod(0o644)
    assert run_statepipe("encrypt", text=False).returncode == 0


def test_a_process_that_holds_a_key_leaves_no_core(tmp_path: Path) -> None:
    """Nor may another process of its user look into it: its files in /proc are root's."""

    def allow() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    command = [*WITHOUT_PTRACE, *statepipe_command(), "decrypt", "-i", str(agefiles.KEY_FILE)]
    with started(command, cwd=tmp_path, preexec_fn=allow) as process:
        assert process.stdin and process.stdout
        process.stdin.write(SEALED[:-1])
        wait_for("the key to be read", lambda: waiting(process.stdin) == 0 and not may_be_seen(process.pid))
        process.send_signal(signal.SIGABRT)
        assert process.wait() == -signal.SIGABRT
    assert list(tmp_path.iterdir()) == []


WITHOUT_PTRACE = ["setpriv", "--bounding-set=-sys_ptrace"]
"""Even root then sees no more of a process than its user may (ptrace(2), access mode checking)."""


def may_be_seen(pid: int) -> bool:
    return subprocess.run([*WITHOUT_PTRACE, "readlink", f"/proc/{pid}/exe"], capture_output=True).returncode == 0
