"""What ssh:// starts on the other host: only what one who may has said."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_runs_on, run_statepipe, wait_for
from tests.qemu.moving import Running
from tests.qemu.test_migrate_ssh import Arrived, words
from tests.sshd import Host, sshd

NOBODY = 65534

BIOS = ["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"]
"""Where a QEMU that is not in its own place finds it."""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every user may write in."""
    with tempfile.TemporaryDirectory(prefix="open-") as name:
        os.chmod(name, 0o777)
        yield Path(name)


class Recorder:
    """In the place of ssh: keeps what it was to run over there, and fails."""

    def __init__(self, folder: Path) -> None:
        self._file, self.program = folder / "asked", folder / "ssh"
        self.program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {self._file}\nexit 255\n')
        self.program.chmod(0o755)

    def told(self) -> str | None:
        """The last line it was given, None if it was not started."""
        return self._file.read_text().splitlines()[-1] if self._file.exists() else None


def ask(verb: str, guest: Guest, ssh: Recorder, *more: object) -> subprocess.CompletedProcess[str]:
    return run_statepipe(verb, "--qmp", guest.socket, "--ssh", ssh.program, *more, "ssh://root@there")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's QEMU takes root to start")
@pytest.mark.parametrize("verb", ["check", "migrate"])
def test_another_user_s_word_starts_nothing_there(open_folder: Path, tmp_path: Path, qemu72: str, verb: str) -> None:
    ssh = Recorder(tmp_path)
    nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    guest = Guest(open_folder, qemu=qemu72, wrapper=nobody, dirty=0)
    os.chmod(os.path.dirname(guest.socket), 0o777)
    for path in open_folder.iterdir():
        path.chmod(0o666)
    with guest:
        done = ask(verb, guest, ssh)
        assert done.returncode == 6 and ssh.told() is None, done
        assert "it runs as nobody, statepipe as root" in done.stderr and "--remote-qemu FILE" in done.stderr
        assert_runs_on(guest)


def test_a_sandboxed_one_s_word_starts_nothing_there(tmp_path: Path, qemu72: str) -> None:
    """Over there it would be out of its sandbox."""
    ssh = Recorder(tmp_path)
    with Guest(tmp_path, qemu=qemu72, dirty=0, args=["-sandbox", "on"]) as guest:
        done = ask("check", guest, ssh)
    assert done.returncode == 6 and "it is in a sandbox" in done.stderr and ssh.told() is None


def test_one_whose_program_is_gone_is_not_started_there(tmp_path: Path, qemu72: str) -> None:
    ssh, program = Recorder(tmp_path), tmp_path / "qemu-copy"
    shutil.copy(qemu72, program)
    modules = [f"QEMU_MODULE_DIR={path}" for path in Path("/usr/lib").glob("*/qemu")]  # found beside the program, else
    with Guest(tmp_path, qemu=str(program), dirty=0, wrapper=["env", *modules], args=BIOS) as guest:
        program.unlink()
        done = ask("check", guest, ssh)
    assert done.returncode == 6 and "was removed or replaced" in done.stderr and ssh.told() is None


def test_one_that_was_handed_descriptors_is_not_started_there(tmp_path: Path, qemu72: str) -> None:
    """There the numbers stand for something else."""
    ssh, wrapper = Recorder(tmp_path), ["sh", "-c", 'exec "$@" 9</dev/null', "-"]
    with Guest(tmp_path, qemu=qemu72, dirty=0, wrapper=wrapper, args=["-add-fd", "fd=9,set=1"]) as guest:
        done = ask("check", guest, ssh)
    assert done.returncode == 6 and "handed descriptors" in done.stderr and ssh.told() is None


def test_the_program_there_is_the_one_that_runs_here_whatever_it_calls_itself(tmp_path: Path, qemu72: str) -> None:
    ssh, wrapper = Recorder(tmp_path), ["bash", "-c", 'exec -a /bin/other "$@"', "-"]
    with Guest(tmp_path, qemu=qemu72, dirty=0, wrapper=wrapper) as guest:
        assert ask("check", guest, ssh).returncode == 5
    told = shlex.split(ssh.told() or "")
    assert told[told.index("--") + 1] == os.path.realpath(qemu72)
    assert "/bin/other" not in told


@pytest.mark.parametrize(
    ("text", "mode", "status", "said"),
    [
        ("qemu-system-x86_64 -m 1", 0o666, 1, "others can write"),
        ("qemu-system-x86_64 -m 1", 0o620, 1, "others can write"),
        ("qemu-system-x86_64 -name 'a", 0o600, 2, "no closing quotation"),
        ("# nothing\n", 0o600, 2, "no command line"),
        ("x" * 200_000, 0o600, 1, "it is not a QEMU command line"),
        (None, 0, 1, "No such file"),
    ],
)
def test_a_file_that_says_nothing_or_is_not_ours_alone_starts_nothing(
    tmp_path: Path, text: str | None, mode: int, status: int, said: str
) -> None:
    ssh, file = Recorder(tmp_path), tmp_path / "qemu.conf"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    words = ["--qmp", tmp_path / "none", "--ssh", ssh.program, "--remote-qemu", file]
    done = run_statepipe("check", *words, "ssh://root@there")
    assert done.returncode == status and said in done.stderr and ssh.told() is None, done


def test_a_command_line_for_there_has_no_place_elsewhere(tmp_path: Path) -> None:
    for verb, uri in (("check", "tls://there"), ("migrate", "tls://there"), ("migrate", "exec:cat")):
        done = run_statepipe(verb, "--qmp", tmp_path / "none", "--remote-qemu", tmp_path / "f", uri)
        assert done.returncode == 2 and "--remote-qemu FILE is for ssh:// only" in done.stderr, done


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def test_the_administrator_s_command_line_takes_any_guest(tmp_path: Path, qemu72: str, host: Host) -> None:
    with (
        Guest(tmp_path, qemu=qemu72, dirty=0, args=["-sandbox", "on", "-name", "it's \\ mine"]) as source,
        Arrived(source) as there,
    ):
        source.wait_ticks(2)
        file = tmp_path / "vm.qemu"
        command = [*source.command[:-4], "-S", "-name", "it's \\ mine"]
        lines = "\n".join(map(shlex.quote, command))
        file.write_text(f"# what runs over there\n{lines}\n")
        file.chmod(0o600)
        common = [*words(host, source, tmp_path), "--remote-qemu", file, host.address]
        looked = run_statepipe("check", *common)
        assert looked.returncode == 0, looked
        wait_for("the end of who only looked", lambda: not there.pids())
        with Running("migrate", *common) as moving:
            assert moving.wait() == 0, moving.said
        assert len(there.pids()) == 1 and source.run_state() == "postmigrate"
        told = Path(f"/proc/{there.pids()[0]}/cmdline").read_bytes().decode().split("\0")
        assert "it's \\ mine" in told and "-sandbox" not in told
