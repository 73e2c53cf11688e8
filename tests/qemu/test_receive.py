"""receive, and what may become of the QEMU that is to have the guest."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest import parse_ticks
from tests.net.relay import Faults, relay
from tests.qemu.harness import Guest, assert_runs_on, assert_unbroken, run_statepipe, wait_for
from tests.qemu.moving import Credentials, Running, mover, receiver


def test_a_qemu_with_a_guest_of_its_own_is_refused_and_unharmed(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, Guest(tmp_path, qemu=qemu72, dirty=2) as other:
        receiving, port = receiver(credentials, "--qmp", other.socket)
        with receiving, mover(credentials, source, port) as moving:
            assert (moving.wait(), receiving.wait()) == (5, 6), (moving.said, receiving.said)
        assert "QEMU is not waiting for an incoming migration (its guest is running)" in receiving.said[-3]
        assert "QEMU is not waiting for an incoming migration (its guest is running)" in moving.said[0]
        assert_runs_on(source)
        assert_runs_on(other)


# --- a QEMU that is started, and fails

NOTED = 'echo $$ >"$0"; exec "$@"'
"""The shell's line that leaves the process id of what it runs in a file."""

HUNG_UP = "import os, time; os.closerange(3, 1000); time.sleep(1000)"
"""A program that lives, and lets go of its monitor."""


def noted(pid: Path, *command: str) -> list[str]:
    return ["sh", "-c", NOTED, str(pid), *command]


def assert_gone(pid: Path) -> None:
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def look(guest: Guest, credentials: Credentials, port: int) -> subprocess.CompletedProcess[str]:
    return run_statepipe("check", "--qmp", guest.socket, *credentials.of("source"), f"tls://127.0.0.1:{port}")


def test_a_qemu_that_takes_its_time_to_start_does_not_put_its_host_s_clock_ahead(
    guest: Guest, tmp_path: Path, credentials: Credentials
) -> None:
    """As one that allocates all of a large guest's memory first."""
    late = 'sleep 3; exec "$0" "$@"'  # no event: the time itself
    receiving, port = receiver(credentials, "--", "sh", "-c", late, *guest.command)
    with receiving:
        looked = look(guest, credentials, port)
    rows = [line.split() for line in looked.stdout.splitlines()]
    assert [row[0] for row in rows if "clock" in row] == ["ok"], looked


def test_a_qemu_that_ends_at_once_is_told_on_both_hosts(guest: Guest, tmp_path: Path, credentials: Credentials) -> None:
    qemu = noted(tmp_path / "pid", guest.command[0], "-no-such-option")
    receiving, port = receiver(credentials, "--", *qemu)
    with receiving:
        looked = look(guest, credentials, port)
        assert receiving.wait() == 6, receiving.said
    reason = "qemu-system-x86_64: -no-such-option: invalid option"
    ended = f"QEMU ended with status 1 before it could take a guest: {reason}"
    assert receiving.said[-3] == f"statepipe: receive: error: {ended}"
    assert receiving.said[-2].startswith("statepipe: hint: its own message is above; start receive again")
    assert "-no-such-option: invalid option" in receiving.said[-4]
    assert looked.returncode == 5 and ended in looked.stderr
    assert_gone(tmp_path / "pid")


def test_what_lets_go_of_its_monitor_is_ended(guest: Guest, tmp_path: Path, credentials: Credentials) -> None:
    receiving, port = receiver(credentials, "--", *noted(tmp_path / "pid", sys.executable, "-c", HUNG_UP))
    with receiving:
        assert look(guest, credentials, port).returncode == 5
        assert receiving.wait() == 6
    assert any("QEMU ended before its monitor answered" in line for line in receiving.said), receiving.said
    assert_gone(tmp_path / "pid")


def test_what_never_answers_is_ended_by_a_signal(guest: Guest, tmp_path: Path, credentials: Credentials) -> None:
    pid = tmp_path / "pid"
    receiving, port = receiver(credentials, "--", *noted(pid, "sh", "-c", "exec sleep 1000"))
    words = ("check", "--qmp", guest.socket, *credentials.of("source"), f"tls://127.0.0.1:{port}")
    with receiving, Running(*words) as looking:
        wait_for("its start", lambda: pid.exists() and pid.read_text())
        receiving.send(signal.SIGTERM)
        assert (receiving.wait(), looking.wait()) == (143, 5), (receiving.said, looking.said)
    assert_gone(pid)


def test_a_qemu_outside_of_our_pid_namespace_is_refused(
    tmp_path: Path, qemu72: str, guest: Guest, credentials: Credentials
) -> None:
    """Its process id is 0 here, which is no process that could be ended."""
    apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("pid namespaces are not allowed here")
    with Guest(tmp_path, qemu=qemu72, image=guest.image, incoming="defer", args=["-S"]) as target:
        receiving, port = receiver(credentials, "--qmp", target.socket, wrapper=apart)
        with receiving:
            assert look(guest, credentials, port).returncode == 5
            assert receiving.wait() == 6
        assert "the process of this QEMU is not known" in receiving.said[-3]
        assert target.run_state() == "inmigrate"


def test_a_monitor_behind_a_relay_is_refused(
    tmp_path: Path, qemu72: str, guest: Guest, credentials: Credentials
) -> None:
    """The kernel names the relay as the process at the other end, and to end that one would be of no use."""
    with Guest(tmp_path, qemu=qemu72, image=guest.image, incoming="defer", args=["-S"]) as target:
        path = target.socket.replace("qmp-2", "relay")
        relay = ["socat", f"UNIX-LISTEN:{path}", f"UNIX-CONNECT:{target.socket}"]
        with subprocess.Popen(relay) as between:
            wait_for("the relay", lambda: os.path.exists(path))
            receiving, port = receiver(credentials, "--qmp", path)
            with receiving:
                assert look(guest, credentials, port).returncode == 5
                assert receiving.wait() == 6
            between.kill()
        assert "the process of this QEMU is not known" in receiving.said[-3]
        assert target.run_state() == "inmigrate"


# --- one guest after the other

SERVED = """#!/bin/sh
[ ! -e "$0.pids" ] || ! kill -0 "$(tail -n 1 "$0.pids")" 2>/dev/null || echo two at once >>"$0.log"
echo $$ >>"$0.pids"
exec "$@" -serial "file:$(cat "$0.image").there" -drive "file=$(cat "$0.image"),format=raw,if=ide"
"""
"""A QEMU whose guest has the disk that is named in a file, and that tells if the one before it still runs."""


def ticks_there(guest: Guest) -> list[tuple[int, int]]:
    return parse_ticks(said_there(guest))


def said_there(guest: Guest) -> str:
    """What the guest has printed over there; the line that it was at may have begun here."""
    path = Path(f"{guest.image}.there")
    return path.read_text() if path.exists() else ""


def served(program: Path) -> list[int]:
    """The QEMUs that it has become, and that still live."""
    pids = Path(f"{program}.pids")
    return [
        int(pid)
        for pid in (pids.read_text().split() if pids.exists() else ())
        if str(program.parent) in command_of(pid)
    ]


def command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended
        return ""


def test_guests_are_served_one_after_the_other(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    """At most one at a time; the next has come already, and waits. Who gives up in between ends nothing."""
    program = tmp_path / "served"
    program.write_text(SERVED)
    program.chmod(0o755)
    image = tmp_path / "served.image"
    first, second = (Guest(tmp_path, qemu=qemu72, dirty=2) for _ in range(2))
    command = [str(program), qemu72, *["-accel", "tcg", "-m", "128", "-display", "none", "-nodefaults"]]
    receiving, port = receiver(credentials, "--serve", "1", "--journal", tmp_path / "journal", "--", *command)
    with receiving, first, second, relay(port, Faults()) as rail:
        try:
            image.write_text(str(first.image))
            first.wait_ticks(2)
            with mover(credentials, first, port, "--rate", "4M") as moving:
                first.wait_transferred(1 << 20)
                moving.send(signal.SIGINT)
                assert moving.wait() == 130, moving.said
            receiving.wait_said("no guest was taken: ")
            with mover(credentials, first, port) as moving:
                assert moving.wait() == 0, (moving.said, receiving.said)
            image.write_text(str(second.image))
            with mover(credentials, second, rail.port) as moving:
                wait_for("what the second has to say", lambda: rail.bytes > 4096)
                seen = len(ticks_there(first))
                wait_for("ticks", lambda: len(ticks_there(first)) > seen + 3)
                os.kill(served(program)[0], signal.SIGTERM)
                assert moving.wait() == 0, (moving.said, receiving.said)
            wait_for("ticks", lambda: len(ticks_there(second)) > 3)
            for guest in (first, second):
                assert_unbroken(parse_ticks(guest.serial() + said_there(guest)))
            receiving.send(signal.SIGTERM)
            assert receiving.wait_said("stopped by SIGTERM")
        finally:
            for pid in served(program):
                os.kill(pid, signal.SIGKILL)
        assert receiving.wait() == 143
    assert not (tmp_path / "served.log").exists()
    assert [f"journal.{number}" for number in (1, 2, 3)] == sorted(path.name for path in tmp_path.glob("journal*"))


def test_who_waits_for_a_guest_says_where(tmp_path: Path, credentials: Credentials) -> None:
    """At a port that was named too: nobody else tells a person that it has begun to wait."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    waits = ("receive", f"tls://127.0.0.1:{port}", *credentials.of("destination"), "--qmp", tmp_path / "no.qmp")
    with Running(*waits) as receiving:
        receiving.wait_said(f"^statepipe: receive: listening at port {port} for a guest$")
