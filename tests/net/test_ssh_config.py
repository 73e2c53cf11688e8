"""send ssh:// with an ssh_config that was written for people: what it says of a login does not touch our channel."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from statepipe.ends.address import parse_address
from statepipe.ends.net import Patience
from statepipe.session.options import ConnectionPlan
from statepipe.session.overssh import SshDial
from tests import warm
from tests.conformance.running import PATIENCE, STATEPIPE
from tests.sshd import ROOT, Host

DATA = bytes(range(256)) * 400

FOR_PEOPLE = [
    "RequestTTY force",
    "RemoteCommand /bin/bash -l",
    "StdinNull yes",
    "SessionType none",
    "SessionType subsystem",
    "ForkAfterAuthentication yes",
    "PermitLocalCommand yes\nLocalCommand echo hello",
    "ExitOnForwardFailure yes\nLocalForward 127.0.0.1:{taken} 127.0.0.1:22",
    "ExitOnForwardFailure yes\nDynamicForward 127.0.0.1:{taken}",
    "ExitOnForwardFailure yes\nRemoteForward 127.0.0.1:{taken} 127.0.0.1:22",
]


def sent(host: Host, path: Path, more: str) -> subprocess.CompletedProcess[bytes]:
    """A send with these lines of ssh_config before those that the host needs."""
    own = path.with_name("config")
    own.write_text(f"{more}\n{Path(host.ssh.split()[-1]).read_text()}")
    return host.send(path, "--ssh", f"ssh -F {own}", "--timeout", "20", data=DATA)


@pytest.mark.parametrize("lines", FOR_PEOPLE)
def test_what_ssh_config_says_for_people_is_not_for_a_stream(host: Host, tmp_path: Path, lines: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = sent(host, tmp_path / "out", lines.format(taken=taken.getsockname()[1]))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "out").read_bytes() == DATA


def test_no_session_of_the_user_s_comes_to_hang_on_ours(host: Host, tmp_path: Path) -> None:
    """ssh would go on in the background as the master of a shared connection, with our descriptors."""
    control = tmp_path / "control"
    done = sent(host, tmp_path / "out", f"ControlMaster auto\nControlPersist 60\nControlPath {control}")
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert not control.exists()
    finally:
        if control.exists():
            subprocess.run(["ssh", "-O", "exit", "-S", control, "host"], capture_output=True, timeout=PATIENCE)


def test_every_second_later_ssh_does_without_a_connection_that_is_shared(tmp_path: Path) -> None:
    """One whose network went away unnoticed would hold up them all."""
    ssh, said = tmp_path / "ssh", tmp_path / "said"
    ssh.write_text(f'#!/bin/sh\necho "$*" >> {said}\necho statepipe session {32 * "0"}\nexec cat\n')
    ssh.chmod(0o700)
    with SshDial(ConnectionPlan(parse_address("ssh://host/x"), (), Patience(), ssh=[str(ssh)]), ["recv"]) as dial:
        for _ in range(5):
            dial().close()
    assert ["ControlPath=none" in line for line in said.read_text().splitlines()] == [False, False, True, False, True]


OLDER = """#!/bin/sh
for word; do
    shift
    case $word in StdinNull=*) word=NoSuchOption=no ;; esac
    set -- "$@" "$word"
done
exec {ssh} "$@"
"""
"""An ssh to which one of our settings is not known."""


def test_an_ssh_that_does_not_know_a_setting_passes_over_it(host: Host, tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(OLDER.format(ssh=host.ssh))
    ssh.chmod(0o700)
    done = host.send(tmp_path / "out", "--ssh", str(ssh), data=DATA)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("shell", ["fish", "csh", "tcsh"])
def test_a_file_s_name_is_what_was_said_whatever_shell_is_there(tmp_path: Path, shell: str) -> None:
    ssh, name = tmp_path / "ssh", "a\\\\b!c 'd'"
    ssh.write_text(f'#!/bin/sh\nfor last; do :; done\nexec {shell} -c "$last"\n')  # what sshd does
    ssh.chmod(0o700)
    command = [*STATEPIPE, "send", "--ssh", str(ssh), "--remote-command", f"{ROOT}/bin/statepipe"]
    done = warm.run([*command, f"ssh://h{tmp_path}/{name}"], input=DATA, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / name).read_bytes() == DATA
