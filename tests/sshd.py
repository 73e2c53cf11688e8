"""A real sshd on the loopback, with keys of its own."""

from __future__ import annotations

import getpass
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import warm
from tests.conformance.running import PATIENCE, STATEPIPE, children, started

ROOT = Path(__file__).parents[1]
DATA = os.urandom(1 << 20) * 24
"""More than the pipes and sockets on the way hold."""

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclass(frozen=True)
class Host:
    """Our sshd: how to reach it, where receivers there have their sockets, and its process id."""

    port: int
    ssh: str
    runtime: Path
    folder: Path
    daemon: int

    def sessions(self) -> list[int]:
        """The processes in which it has somebody logged in, or is about to."""
        return [int(each) for each in children(self.daemon)]

    @property
    def remote(self) -> str:
        return f"env XDG_RUNTIME_DIR={self.runtime} {ROOT}/bin/statepipe"

    @property
    def address(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    def command(self, path: Path, *more: str) -> list[str]:
        where = f"{self.address}{path}"
        options = [] if "--remote-command" in more else ["--remote-command", self.remote]
        return [*STATEPIPE, "send", "--ssh", self.ssh, *options, *more, where]

    def send(self, path: Path, *more: str, data: bytes = DATA) -> subprocess.CompletedProcess[bytes]:
        command = self.command(path, *more)
        return warm.run(command, input=data, capture_output=True, timeout=PATIENCE, start_new_session=True)


def keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def config(folder: Path, key: str) -> Path:
    path = folder / f"{key}.config"
    lines = [f"IdentityFile {folder / key}", "IdentitiesOnly yes", f"UserKnownHostsFile {folder}/known_hosts"]
    path.write_text("\n".join([*lines, "StrictHostKeyChecking yes", "ControlPath none", ""]))
    return path


@contextmanager
def sshd(folder: Path) -> Iterator[Host]:
    """A running one, whose files are in the folder."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd: tools/setup test")
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    for name in ("host", "user", "stranger"):
        keygen(folder / name)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(
            mode=0o755, exist_ok=True
        )  # where sshd's unprivileged part lives, as Debian's unit makes it
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    public = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    (folder / "sshd.config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nMaxStartups 100\n"
    )
    command = [SSHD, "-D", "-e", "-f", str(folder / "sshd.config")]
    with started(command, stdin=subprocess.DEVNULL) as daemon:
        said = b""
        while b"Server listening" not in said:
            assert select.select([daemon.stderr], [], [], PATIENCE)[0]
            line = daemon.stderr.readline()
            assert line, said
            said += line
        yield Host(port, f"ssh -F {config(folder, 'user')}", runtime, folder, daemon.pid)
        end_receivers(runtime / "statepipe")


def end_receivers(folder: Path) -> None:
    """Those whose sender left them before the session began, and who still wait."""
    for path in folder.glob("session-*"):
        with socket.socket(socket.AF_UNIX) as knock:
            try:
                knock.connect(f"{folder}/{path.name}")
            except (ConnectionRefusedError, FileNotFoundError):
                continue
            pid = struct.unpack("3i", knock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)  # we have left: it would wait for what we hand over
        assert select.select([pidfd], [], [], PATIENCE)[0]
        os.close(pidfd)
