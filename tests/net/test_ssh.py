"""send ssh://: a real sshd on the loopback with keys of its own, whose links are killed in the middle."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from statepipe.ends.address import SSH, Address, parse_address
from statepipe.errors import UsageError
from tests import warm
from tests.conformance.running import PATIENCE, STATEPIPE, started, stop, wait
from tests.sshd import DATA, ROOT, Host
from tests.terminal import at_terminal


@pytest.mark.parametrize("size", [0, 1, len(DATA)])
def test_it_arrives(host: Host, tmp_path: Path, size: int) -> None:
    done = host.send(tmp_path / "it's $HOME", data=DATA[:size])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "it's $HOME").read_bytes() == DATA[:size]
    assert os.listdir(tmp_path) == ["it's $HOME"]


def test_over_several_links(host: Host, tmp_path: Path) -> None:
    assert host.send(tmp_path / "out", "--links", "3").returncode == 0
    assert (tmp_path / "out").read_bytes() == DATA


def started_by(pid: int) -> list[str]:
    """The children of any of its threads."""
    found: list[str] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += path.read_text().split()
    return found


def ssh_of(process: subprocess.Popen[bytes], before: str = "") -> str:
    """The process id of its ssh, once there is one other than `before`."""
    found: list[str] = []

    def there() -> bool:
        found[:] = [each for each in started_by(process.pid) if each != before]
        return bool(found)

    wait(process, there)
    return found[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_ssh_is_redialled_and_the_stream_resumed(host: Host, tmp_path: Path, number: signal.Signals) -> None:
    with started(host.command(tmp_path / "out"), start_new_session=True) as sender:
        before = ""
        for part in (DATA[: 8 << 20], DATA[8 << 20 : 16 << 20]):
            sender.stdin.write(part)  # it takes a first byte only once the session is open
            before = ssh_of(sender, before)
            os.kill(int(before), number)
        ssh_of(sender, before)
        sender.stdin.write(DATA[16 << 20 :])
        sender.stdin.close()
        assert (sender.wait(PATIENCE), sender.stdout.read()) == (0, b"")
    assert (tmp_path / "out").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["out"]


def test_a_killed_session_of_sshd_is_redialled_and_the_stream_resumed(host: Host, tmp_path: Path) -> None:
    with started(host.command(tmp_path / "out"), start_new_session=True) as sender:
        sender.stdin.write(DATA[: 8 << 20])
        before = ssh_of(sender)
        for pid in host.sessions():
            os.kill(pid, signal.SIGKILL)
        ssh_of(sender, before)
        sender.stdin.write(DATA[8 << 20 :])
        sender.stdin.close()
        assert (sender.wait(PATIENCE), sender.stdout.read()) == (0, b"")
    assert (tmp_path / "out").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["out"]


def test_a_receiver_that_is_gone_is_not_waited_for(host: Host, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    remote = f"echo $$ > {pidfile}; exec env XDG_RUNTIME_DIR={host.runtime} {ROOT}/bin/statepipe"
    with started(host.command(tmp_path / "out", "--remote-command", remote), start_new_session=True) as sender:
        sender.stdin.write(DATA)
        os.kill(int(pidfile.read_text()), signal.SIGKILL)
        assert sender.wait(PATIENCE) == 5
        said = sender.stderr.read()
    assert b"there is no session" in said and b"statepipe on 127.0.0.1 ended with status 5" in said, said
    assert os.listdir(tmp_path) == ["pid"]


def test_a_sender_that_is_killed_leaves_no_file(host: Host, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    remote = f"echo $$ > {pidfile}; exec env XDG_RUNTIME_DIR={host.runtime} {ROOT}/bin/statepipe"
    command = host.command(tmp_path / "out", "--retry", "1", "--remote-command", remote)
    with started(command, start_new_session=True) as sender:
        sender.stdin.write(DATA)  # which a window holds: it need not be there yet
        wait(sender, lambda: pidfile.exists() and pidfile.read_text().endswith("\n"))
        receiver = os.pidfd_open(int(pidfile.read_text()))
        sender.kill()
        assert select.select([receiver], [], [], PATIENCE)[0]
        os.close(receiver)
    assert os.listdir(tmp_path) == ["pid"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sender_that_is_stopped_leaves_no_file_and_no_receiver(
    host: Host, tmp_path: Path, number: signal.Signals
) -> None:
    """The receiver hears of it: it does not wait, as it would for --retry, for a link that comes again."""
    pidfile = tmp_path / "pid"
    remote = f"echo $$ > {pidfile}; exec env XDG_RUNTIME_DIR={host.runtime} {ROOT}/bin/statepipe"
    command = host.command(tmp_path / "out", "--retry", "600", "--remote-command", remote)
    with started(command, start_new_session=True) as sender:
        sender.stdin.write(DATA)
        receiver = os.pidfd_open(int(pidfile.read_text()))
        assert stop(sender, number)[0] == 128 + number
        assert select.select([receiver], [], [], PATIENCE)[0]
        os.close(receiver)
    assert os.listdir(tmp_path) == ["pid"]


def test_ctrl_c_at_the_terminal_leaves_no_file_and_no_receiver(host: Host, tmp_path: Path) -> None:
    """It reaches ssh as well, so nothing can be told any more: the receiver gives up after --retry."""
    remote = f"echo $$ > {tmp_path}/pid; exec env XDG_RUNTIME_DIR={host.runtime} {ROOT}/bin/statepipe"
    send = shlex.join(host.command(tmp_path / "out", "--retry", "2", "--remote-command", remote))
    feed = "head -c 8M /dev/zero; echo sent > /dev/tty; exec sleep 60"
    script = f"trap : INT; ({feed}) | PYTHONPATH={ROOT} {send}; echo status $?"
    status, seen = at_terminal(script, [("sent", "\x03")], tmp_path)
    assert (status, seen.splitlines()[-1]) == (0, "status 130")
    with contextlib.suppress(ProcessLookupError):
        receiver = os.pidfd_open(int((tmp_path / "pid").read_text()))
        assert select.select([receiver], [], [], PATIENCE)[0]
        os.close(receiver)
    assert os.listdir(tmp_path) == ["pid"]


def test_a_sender_that_is_stopped_while_ssh_connects_ends(host: Host, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = replace(host, port=silent.getsockname()[1]).command(tmp_path / "out")
        with started(command, start_new_session=True) as sender, silent.accept()[0]:  # ssh is there, and hears nothing
            sender.terminate()
            assert sender.wait(PATIENCE) == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


def test_a_full_disk_there_is_the_senders_failure(host: Host, tmp_path: Path) -> None:
    remote = f"ulimit -f 8192; {host.remote}"
    done = host.send(tmp_path / "out", "--remote-command", remote)
    assert done.returncode == 1
    assert b"statepipe: send: error: ssh://" in done.stderr and b"File too large" in done.stderr, done.stderr
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_told(host: Host, tmp_path: Path) -> None:
    done = host.send(tmp_path / "no" / "out")
    assert done.returncode == 1
    assert b"statepipe: send: error: ssh://" in done.stderr and b"No such file" in done.stderr, done.stderr


def test_no_socket_is_left_there_and_dead_ones_are_taken_away(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "statepipe"
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "session-dead"))
    assert replace(host, runtime=tmp_path).send(tmp_path / "out").returncode == 0
    assert not list(folder.glob("*session*"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://host/vm1", Address(SSH, "host", 0, "/vm1")),
        ("ssh://me@host:2222/a/b c", Address(SSH, "host", 2222, "/a/b c", "me")),
        ("ssh://[::1]:22/x", Address(SSH, "::1", 22, "/x")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "ssh:///x",
        "ssh://-oProxyCommand=x/y",
        "ssh://-l@h/x",
        "ssh://h:x/y",
        "ssh://h/a\nb",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@pytest.mark.parametrize(
    "words",
    [
        ["send", "--bind", "::1", "ssh://h/x"],
        ["send", "ssh://h"],
        ["send", "ssh://h/"],
        ["send", "--tls-creds", "x", "ssh://h/x"],
        ["send", "--ssh", "ssh", "tcp://h:1"],
        ["send", "--ssh", "'", "ssh://h/x"],
        ["recv", "ssh://h/x", "-o", "y"],
        ["recv", "--session-stdio"],
        ["recv", "--session-stdio", "-o", "y", "tls://:1"],
        ["recv", "-o", "y"],
    ],
)
def test_what_does_not_go_together(words: list[str]) -> None:
    done = warm.run([*STATEPIPE, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2, done.stderr
