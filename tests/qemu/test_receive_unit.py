"""The units that are shipped: what they let a guest or a peer that broke out do, and that a guest still comes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.guest import parse_ticks
from tests.qemu.hardened import UID, Confinement, settings
from tests.qemu.harness import Guest, assert_unbroken, statepipe_command, wait_for
from tests.qemu.moving import Running, child_of, waiting

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "systemd" / "statepipe-receive@.service"
SANDBOX = "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

START = 'exec 3<&"$1"; shift; exec "$@"'


def test_the_service_is_little_exposed(tmp_path: Path) -> None:
    """systemd's own rating, from 0 (nothing to be had) to 10: under 4."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = shutil.copy(SERVICE, tmp_path)
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=40", copy]
    done = subprocess.run(words, capture_output=True, text=True)
    if "nrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze judges no files")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_the_service_runs_as_the_user_that_is_made_for_it() -> None:
    unit = settings(SERVICE)
    users = (ROOT / "systemd" / "statepipe.sysusers").read_text().splitlines()
    made = {words[1] for line in users if (words := shlex.split(line, comments=True)) and words[0] == "u"}
    home = next(shlex.split(line)[4] for line in users if line.startswith("u "))
    assert set(unit["User"]) == set(unit["Group"]) == made
    assert [home] == unit["WorkingDirectory"] == [f"/var/lib/{name}" for name in unit["StateDirectory"]]
    assert unit["MemoryMax"] and SANDBOX in SERVICE.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_the_user_s_home_is_there_before_the_service_first_starts(tmp_path: Path) -> None:
    """Its keys are made and pinned there first."""
    (tmp_path / "etc").mkdir()
    for tool, *words in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
        shipped = ROOT / "systemd" / f"statepipe.{tool.removeprefix('systemd-')}"
        subprocess.run([tool, *words, f"--root={tmp_path}", shipped], check=True)
    rows = [row.split(":") for row in (tmp_path / "etc/passwd").read_text().splitlines()]
    uid, home = next((row[2], row[5]) for row in rows if row[0] == "statepipe")
    made = (tmp_path / home.lstrip("/")).stat()
    assert (made.st_uid, made.st_mode & 0o777) == (int(uid), 0o700)


@contextmanager
def place() -> Iterator[Path]:
    """A folder of the service's user, at a path that others may pass."""
    folder = Path(tempfile.mkdtemp(prefix="statepipe-unit-"))
    try:
        folder.chmod(0o755)
        for name in ("state", "run"):
            (folder / name).mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder)


def make_known(one: Path, other: Path) -> None:
    """Keys for two configurations, and each pinned in the other under the loopback's address."""
    for folder in (one, other):
        (folder / "statepipe" / "peers").mkdir(parents=True)
        own = "from statepipe.trust.identity import own_identity; own_identity()"
        subprocess.run([sys.executable, "-P", "-c", own], env={"XDG_CONFIG_HOME": str(folder)}, check=True)
    for folder, peer in ((one, other), (other, one)):
        shutil.copy(peer / "statepipe" / "own-cert.pem", folder / "statepipe" / "peers" / "127.0.0.1.pem")


def give(folder: Path) -> None:
    """All that is in it to the service's user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID)


def service(folder: Path, listener: socket.socket, qemu: Sequence[str]) -> Running:
    """ExecStart= in its confinement; QEMU= says this, in one line."""
    words = settings(SERVICE)["ExecStart"][0].split()
    assert words[0].endswith("/statepipe") and words[-1] == "$QEMU"
    command = [*statepipe_command(), *words[1:-1], *" ".join(qemu).split()]
    home = str(folder / "state")
    variables = {"HOME": home, "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "XDG_RUNTIME_DIR": str(folder / "run")}
    code = [
        *{str(ROOT), sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(qemu[0]))} - {"/usr", "/usr/bin"}
    ]
    it = Confinement(str(SERVICE), home, str(folder / "run"), command, variables, sorted(code, key=len))
    confined = [sys.executable, "-m", "tests.qemu.hardened", json.dumps(asdict(it))]
    apart = ["unshare", "--mount", "--propagation", "private", *confined]
    program = ["bash", "-c", START, "bash", str(listener.fileno()), *apart]
    return Running(program=program, pass_fds=[listener.fileno()], cwd=ROOT)


def rights(pid: int) -> dict[str, str]:
    """The lines of its status in /proc."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can confine as systemd does")
@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze, which lists the calls, is not here"
)
def test_a_guest_comes_to_the_service_as_it_is_confined(tmp_path: Path, qemu72: str) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here")
    with place() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        make_known(folder / "state" / ".config", tmp_path / "config")
        state = folder / "state"
        with Guest(state, qemu=qemu72, dirty=2) as source:
            target = waiting(state, qemu72, source)
            monitors = [word for word in target.command if word.startswith("unix:") or word == "-qmp"]
            words = [word for word in target.command if word not in ("-S", "-incoming", "defer", *monitors)]
            give(state)
            give(folder / "run")
            source.wait_ticks(2)
            with service(folder, listener, [shutil.which(words[0]) or "", *SANDBOX.split(), *words[1:]]) as receiving:
                where = f"tls://127.0.0.1:{listener.getsockname()[1]}"
                known = os.environ | {"XDG_CONFIG_HOME": str(tmp_path / "config")}
                moving = Running("migrate", "--qmp", source.socket, "--quit-source", where, env=known)
                with moving:
                    assert moving.wait() == 0, (moving.said, receiving.said)
                receiving.wait_said("here it is running")
                for pid in (receiving.pid, child_of(receiving.pid)):
                    has = rights(pid)
                    assert has["Uid"].split() == [str(UID)] * 4 and has["CapBnd"] == has["CapEff"] == "0" * 16
                    assert has["NoNewPrivs"] == "1" and has["Seccomp"] == "2"
                wait_for("ticks", lambda: len(target.ticks()) > 3)
                receiving.send(signal.SIGTERM)
                assert receiving.wait() == 0, receiving.said
            assert_unbroken(parse_ticks(source.serial() + target.serial()))
