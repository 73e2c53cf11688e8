"""load FILE -- QEMU…: statepipe starts QEMU, and its guest runs only from a state that was verified whole."""

from __future__ import annotations

import gzip
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.openfiles import open_files
from tests.qemu.harness import Guest, assert_continues, run_statepipe, wait_for
from tests.qemu.loading import (
    Saved,
    end_qemu,
    loaded,
    qemu_command,
    qemu_pid,
    save_guest,
)

QUIT_STATUS = 0


def test_the_guest_goes_on_where_it_was(tmp_path: Path, state: Saved) -> None:
    with loaded(tmp_path, state) as guest:
        guest.wait_ticks(3)
        assert guest.run_state() == "running"
        assert_continues(state.before, guest.serial())
        assert not guest.ended(), "statepipe stays as long as QEMU"
        guest.qmp("quit")
        assert guest.wait() == QUIT_STATUS
        assert guest.stderr() == f"statepipe: load: {state.file} is loaded and verified; the guest is running\n"


def test_a_paused_guest_stays_paused_and_can_go_on(tmp_path: Path, paused72: Saved) -> None:
    with loaded(tmp_path, paused72) as guest:
        assert guest.wait_run_state("paused") == "paused"
        assert guest.serial() == ""
        guest.qmp("cont")
        guest.wait_ticks(3)
        assert_continues(paused72.before, guest.serial())


@pytest.mark.parametrize("flag", ["-S", "--S"])
def test_a_qemu_that_is_told_to_wait_stays_paused(tmp_path: Path, state72: Saved, flag: str) -> None:
    with loaded(tmp_path, state72, args=[flag]) as guest:
        wait_for("the state", lambda: guest.migration()["status"] == "completed")
        wait_for("statepipe at rest", lambda: asleep_as_parent(guest.pid))
        assert guest.run_state() == "paused"
        assert guest.serial() == ""


def asleep_as_parent(pid: int) -> bool:
    """It has nothing open but what it began with: its monitor's loop, its child."""
    return not any(".qevm" in line or "state" in os.path.basename(line) for line in open_files(pid).values())


@pytest.mark.parametrize("form", ["raw", "gz"])
def test_a_stream_of_other_making_is_loaded_with_a_warning(tmp_path: Path, state72: Saved, form: str) -> None:
    stream = state72.stream()
    other = state72.damaged(tmp_path, stream if form == "raw" else gzip.compress(stream, 1))
    with loaded(tmp_path, other) as guest:
        guest.wait_ticks(2)
        assert_continues(state72.before, guest.serial())
        assert "warning: " in guest.stderr() and "not a state file" in guest.stderr()


def test_a_paused_guest_in_a_raw_stream_stays_paused(tmp_path: Path, paused72: Saved) -> None:
    with loaded(tmp_path, paused72.damaged(tmp_path, paused72.stream())) as guest:
        assert guest.wait_run_state("paused") == "paused"
        wait_for("statepipe at rest", lambda: asleep_as_parent(guest.pid))
        assert guest.run_state() == "paused" and guest.serial() == ""


def test_a_state_of_7_2_goes_on_in_a_newer_one_with_its_machine_type(tmp_path: Path, qemu72: str, newer: str) -> None:
    machine = ["-machine", "pc-i440fx-7.2"]
    saved = save_guest(tmp_path, qemu72, args=machine)
    with loaded(tmp_path, saved, qemu=newer, args=machine) as guest:
        guest.wait_ticks(3)
        assert_continues(saved.before, guest.serial())


# --- statepipe as QEMU's parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on_and_qemus_status_is_ours(tmp_path: Path, state72: Saved, number: signal.Signals) -> None:
    with loaded(tmp_path, state72) as guest:
        guest.wait_ticks(1)
        os.kill(guest.pid, number)
        assert guest.wait() == QUIT_STATUS
        assert "terminating on signal" in guest.stderr()
        assert qemu_pid(tmp_path) is None


WITHHOLDS = """
import os, re, socket, sys
own, other = socket.socketpair()
number = int(re.search(r"id=statepipe[^ ]*-0,fd=([0-9]+)", " ".join(sys.argv))[1])
if os.fork():
    os.dup2(own.fileno(), number)
    os.execvp(sys.argv[1], sys.argv[1:])
above = socket.socket(fileno=number)
own.close()
if not os.fork():
    while data := other.recv(65536):
        if not os.path.exists("cont"):
            above.sendall(data)
    above.shutdown(socket.SHUT_RDWR)
    os._exit(0)
while True:
    data, fds, _, _ = socket.recv_fds(above, 65536, 4)
    if not data:
        os._exit(0)
    if b'"cont"' in data:
        open("cont", "w").close()
    socket.send_fds(other, [data], fds)
    for fd in fds:
        os.close(fd)
"""
"""A QEMU whose answer to `cont` never comes, though it does as it was told."""


@pytest.mark.parametrize(("ends_it", "status"), [("statepipe", QUIT_STATUS), ("QEMU", 128 + signal.SIGKILL)])
def test_once_qemu_was_told_to_run_the_guest_an_end_is_its_own(
    tmp_path: Path, state72: Saved, ends_it: str, status: int
) -> None:
    """Also while it has not answered yet: the guest may run by then."""
    program = tmp_path / "withholds"
    program.write_text(f"#!{sys.executable}\nimport sys; sys.argv.insert(1, {state72.qemu!r})\n{WITHHOLDS}")
    program.chmod(0o755)
    with loaded(tmp_path, state72, qemu=str(program)) as guest:
        guest.wait_ticks(1)
        if ends_it == "statepipe":
            os.kill(guest.pid, signal.SIGTERM)
        else:
            os.kill(qemu_pid(tmp_path) or 0, signal.SIGKILL)
        assert guest.wait() == status, guest.stderr()


def test_a_signal_that_nohup_ignores_stays_ignored(tmp_path: Path, state72: Saved) -> None:
    with loaded(tmp_path, state72, wrapper=["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]) as guest:
        guest.wait_ticks(1)
        os.kill(guest.pid, signal.SIGHUP)
        guest.wait_ticks(2)
        assert_continues(state72.before, guest.serial())


def test_a_qemu_that_was_killed_is_told_also_where_our_parent_ignores_childrens_ends(
    tmp_path: Path, state72: Saved
) -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    with loaded(tmp_path, state72, wrapper=[sys.executable, "-c", ignoring]) as guest:
        guest.wait_ticks(1)
        pid = qemu_pid(tmp_path)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert guest.wait() == 128 + signal.SIGKILL
        assert "Traceback" not in guest.stderr()


def test_a_qemu_that_is_killed_gives_128_and_the_signal(tmp_path: Path, state72: Saved) -> None:
    with loaded(tmp_path, state72) as guest:
        guest.wait_ticks(1)
        pid = qemu_pid(tmp_path)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert guest.wait() == 128 + signal.SIGKILL


def test_a_status_of_qemus_is_ours(tmp_path: Path, state72: Saved) -> None:
    wrapper = tmp_path / "qemu"
    wrapper.write_text(f'#!/bin/sh\n"{state72.qemu}" "$@"\nexit 7\n')
    wrapper.chmod(0o755)
    with loaded(tmp_path, state72, qemu=str(wrapper)) as guest:
        guest.wait_ticks(1)
        guest.qmp("quit")
        assert guest.wait() == 7


def test_detached_it_returns_once_the_guest_runs(tmp_path: Path, state: Saved) -> None:
    command = qemu_command(tmp_path, state)
    try:
        done = run_statepipe("load", "--detach", state.file, "--", *command, capture_output=False)
        assert done.returncode == 0
        pid = qemu_pid(tmp_path)
        assert pid is not None and os.getsid(pid) == pid
        serial = tmp_path / "serial"
        wait_for("3 ticks", lambda: serial.read_text().count("\n") >= 3)
        assert_continues(state.before, serial.read_text())
    finally:
        end_qemu(tmp_path)


def test_no_socket_is_taken_from_a_qemu_that_listens_there(tmp_path: Path, state72: Saved, qemu72: str) -> None:
    """It may be the only one that still has the guest."""
    with Guest(tmp_path, qemu=qemu72, dirty=0) as guest:
        command = [*qemu_command(tmp_path, state72), "-qmp", f"unix:{guest.socket},server=on,wait=off"]
        done = run_statepipe("load", state72.file, "--", *command)
        assert done.returncode == 1 and f"another process listens: {guest.socket} (-qmp)" in done.stderr
        assert guest.run_state() == "running", "its monitor answers"
