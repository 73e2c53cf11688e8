"""check changes nothing: not the running guest's log, nor its sockets, where both hosts see them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_runs_on, run_statepipe
from tests.qemu.moving import Credentials, mover, receiver


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return Credentials(tmp_path / "pki")


def test_a_guest_keeps_its_log_and_its_monitors_whoever_looks_or_would_take_it(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    """The other host sees the same folder, and was given the guest's own command line."""
    with Guest(tmp_path, qemu=qemu72, dirty=0) as guest:
        guest.wait_ticks(2)
        before = guest.serial()
        receiving, port = receiver(credentials, "--", *guest.command)
        with receiving:
            where = ["--qmp", guest.socket, *credentials.of("source"), f"tls://127.0.0.1:{port}"]
            done = run_statepipe("check", *where)
            assert done.returncode == 1, done.stderr
            fails = [line for line in done.stdout.splitlines() if line.startswith("fail")]
            assert {line.split()[1] for line in fails} == {"-serial", "-qmp"} and len(fails) == 3, done.stdout
            with mover(credentials, guest, port) as moving:
                assert moving.wait() != 0
                moving.wait_said("would empty or take away what is in use")
            assert receiving.wait() != 0
        assert_runs_on(guest, 1)
        assert guest.serial().startswith(before)
        assert run_statepipe("resolve", "--qmp", guest.socket).returncode == 0, "its monitor is there"


def test_a_look_makes_nothing(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    """Neither the files nor the sockets of the QEMU that would take the guest."""
    there = tmp_path / "there"
    there.mkdir()
    with Guest(tmp_path, qemu=qemu72, dirty=0) as guest:
        command = [*guest.command[: guest.command.index("-serial")], *guest.command[guest.command.index("-drive") :]]
        command = [word for word in command if word != "-qmp" and not word.startswith("unix:")]
        command += ["-serial", f"file:{there}/log", "-qmp", f"unix:{there}/qmp,server=on,wait=off"]
        receiving, port = receiver(credentials, "--", *command, "-pidfile", there / "pid")
        with receiving:
            where = ["--qmp", guest.socket, *credentials.of("source"), f"tls://127.0.0.1:{port}"]
            done = run_statepipe("check", *where)
    assert done.returncode == 0, done.stdout
    assert not list(there.iterdir())


def test_options_that_a_wrapper_gives_to_qemu_are_compared(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    """The receiver's command line names only a script: what QEMU itself was started with is what counts."""
    there = tmp_path / "there"
    there.mkdir()
    with Guest(tmp_path, qemu=qemu72, dirty=0) as guest:
        command = list(guest.command)
        for option in ("-serial", "-qmp"):
            while option in command:
                at = command.index(option)
                del command[at : at + 2]
        script = there / "start-guest"
        script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} -serial file:{there}/log -smp 1 "$@"\n')
        script.chmod(0o755)
        receiving, port = receiver(credentials, "--", script)
        with receiving:
            where = ["--qmp", guest.socket, *credentials.of("source"), f"tls://127.0.0.1:{port}"]
            done = run_statepipe("check", *where)
    assert done.returncode == 0, done.stdout
    found = next(line for line in done.stdout.splitlines() if "command line" in line)
    assert found.split("command line")[1].strip() == "only there: -smp 1", done.stdout
