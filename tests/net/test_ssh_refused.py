"""send ssh:// to where it cannot go: who refuses, and why, is said; an ssh that hangs is not waited for."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

from tests import warm
from tests.conformance.running import PATIENCE, STATEPIPE
from tests.sshd import ROOT, Host, config
from tests.terminal import at_terminal


def test_a_wrong_key_is_refused(host: Host, tmp_path: Path) -> None:
    done = host.send(tmp_path / "out", "--ssh", f"ssh -F {config(host.folder, 'stranger')}")
    assert done.returncode == 5
    assert b"Permission denied" in done.stderr and b"ssh could not connect to 127.0.0.1" in done.stderr
    assert b"statepipe: hint: see its messages above" in done.stderr
    assert os.listdir(tmp_path) == []


def test_another_host_key_is_refused(host: Host, tmp_path: Path) -> None:
    other = host.folder / "other_hosts"
    other.write_text(f"[127.0.0.1]:{host.port} {(host.folder / 'stranger.pub').read_text()}")
    done = host.send(tmp_path / "out", "--ssh", f"{host.ssh} -o UserKnownHostsFile={other}")
    assert done.returncode == 5
    assert b"IDENTIFICATION HAS CHANGED" in done.stderr and b"ssh could not connect to 127.0.0.1" in done.stderr
    assert os.listdir(tmp_path) == []


def test_nobody_at_that_port_is_said(host: Host, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = replace(host, port=port).send(tmp_path / "out")
    assert done.returncode == 5
    assert b"Connection refused" in done.stderr and b"ssh could not connect to 127.0.0.1" in done.stderr


def test_a_host_that_says_nothing_is_not_waited_for(host: Host, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = replace(host, port=silent.getsockname()[1]).send(tmp_path / "out", "--timeout", "1")
    assert done.returncode == 5 and b"statepipe: send: error: ssh " in done.stderr


def test_no_such_host_is_said(host: Host, tmp_path: Path) -> None:
    command = [*STATEPIPE, "send", "--ssh", host.ssh, f"ssh://nobody.invalid{tmp_path}/out"]
    done = warm.run(command, input=b"x", capture_output=True, timeout=PATIENCE, start_new_session=True)
    assert done.returncode == 5
    assert b"Could not resolve hostname" in done.stderr and b"ssh could not connect to nobody.invalid" in done.stderr


ASKING_SSH = """#!/bin/sh
if mkdir first 2> /dev/null; then
    printf 'passphrase: ' > /dev/tty
    read answer < /dev/tty
    echo 'statepipe session 0123456789abcdef0123456789abcdef'
    exec cat
fi
exec sleep 60
"""

DIALLING_TWICE = """
from statepipe.session.overssh import SshDial
from statepipe.session.options import ConnectionPlan
from statepipe.ends.address import parse_address
from statepipe.ends.net import Patience
from statepipe.errors import PeerError
plan = ConnectionPlan(parse_address("ssh://host/x"), (), Patience(0.001), ssh=["./ssh"])
with SshDial(plan, ["recv"], redial=0.1) as dial:
    dial().close()
    try:
        dial()
    except PeerError as error:
        print(error)
"""


def test_only_the_first_ssh_waits_for_a_person(tmp_path: Path) -> None:
    """It lasts longer than --timeout; the second, which hangs, does not last."""
    (tmp_path / "ssh").write_text(ASKING_SSH)
    (tmp_path / "ssh").chmod(0o700)
    (tmp_path / "twice.py").write_text(DIALLING_TWICE)
    script = f"PYTHONPATH={ROOT} exec {sys.executable} twice.py"
    status, seen = at_terminal(script, [("passphrase: ", "open")], tmp_path)
    assert (status, seen.splitlines()[-1]) == (0, "ssh to host took more than 0.1 s")


def test_no_ssh_is_said(host: Host, tmp_path: Path) -> None:
    done = host.send(tmp_path / "out", "--ssh", "/no/such/ssh")
    assert done.returncode == 1 and b"cannot start /no/such/ssh" in done.stderr


def test_no_statepipe_there_is_said(host: Host, tmp_path: Path) -> None:
    done = host.send(tmp_path / "out", "--remote-command", "no-such-statepipe")
    assert done.returncode == 5
    assert b"the shell on 127.0.0.1 did not find statepipe" in done.stderr and b"--remote-command" in done.stderr


def test_a_shell_that_prints_is_said(host: Host, tmp_path: Path) -> None:
    done = host.send(tmp_path / "out", "--remote-command", f"echo welcome; {host.remote}")
    assert done.returncode == 5 and b"'welcome" in done.stderr and b"start-up file" in done.stderr
    assert os.listdir(tmp_path) == []
