"""load while something fails: told to stop, killed, a disk that gives errors, a QEMU that takes its time.

Three ways to load, one promise: the guest of a load that did not end well has not run for an instant.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import streams, warm
from tests.qemu.harness import Guest, assert_continues, statepipe_command, wait_for
from tests.qemu.loading import (
    MEMORY,
    Load,
    Saved,
    assert_never_ran,
    end_qemu,
    load_uri,
    qemu_command,
    qemu_pid,
    reach,
    run_qemu,
    slow,
)
from tests.statefiles import state_file

AT_ONCE = 5.0
"""Seconds; what is promised is 1, on a machine that does nothing else."""

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL]
SHARES = [0.0, 0.3, 0.9]

WHEN = [(number, share) for number in SIGNALS for share in SHARES if number is signal.SIGTERM or share == 0.3]
WHEN.append((signal.SIGKILL, 0.9))


@contextmanager
def waiting(folder: Path, saved: Saved) -> Iterator[Guest]:
    """A QEMU that waits, without -S: it would run whatever it took for whole."""
    with Guest(folder, qemu=saved.qemu, memory=MEMORY, image=saved.image, incoming="defer") as guest:
        yield guest


@contextmanager
def started_by_exec(folder: Path, saved: Saved, delay: int = 60) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A QEMU that loads through a slowed statepipe; the pid of that."""
    uri = load_uri(saved, before=f"echo $$ >{folder}/child", wrapper=shlex.join(slow(saved.file, delay)))
    command = [*qemu_command(folder, saved), "-incoming", uri]
    child = folder / "child"
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as qemu:
        try:
            wait_for("its child", lambda: child.exists() and child.read_text().strip())
            yield qemu, int(child.read_text())
        finally:
            qemu.kill()


@pytest.mark.parametrize(("number", "share"), WHEN)
def test_stopped_as_a_filter_qemu_ends(tmp_path: Path, state72: Saved, number: signal.Signals, share: float) -> None:
    with started_by_exec(tmp_path, state72) as (qemu, pid):
        reach(pid, state72.file, share)
        os.kill(pid, number)
        assert qemu.wait(AT_ONCE) == 1
    assert_never_ran(tmp_path)


@pytest.mark.parametrize(("number", "share"), WHEN)
def test_stopped_as_its_parent_qemu_ends(tmp_path: Path, state72: Saved, number: signal.Signals, share: float) -> None:
    with Load(tmp_path, state72, state72.file, "--", *qemu_command(tmp_path, state72)) as load:
        load.reach(share)
        load.signal(number)
        status = load.status(AT_ONCE)
    assert status == (-signal.SIGKILL if number is signal.SIGKILL else 128 + number)
    if number is signal.SIGKILL:
        assert_ends_or_stays_paused(tmp_path)
    else:
        assert f"stopped by {number.name}" in load.stderr()
    assert_never_ran(tmp_path)


def assert_ends_or_stays_paused(folder: Path) -> None:
    """Nobody is left to end a QEMU that had not begun to load: it waits, paused, without its monitor."""
    deadline = time.monotonic() + 3
    while qemu_pid(folder) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (folder / "serial").read_bytes() == b""
    end_qemu(folder)


@pytest.mark.parametrize(("number", "share"), [when for when in WHEN if when[1]])
def test_stopped_while_it_drives_a_waiting_qemu_that_ends(
    tmp_path: Path, state72: Saved, number: signal.Signals, share: float
) -> None:
    with waiting(tmp_path, state72) as guest:
        with Load(tmp_path, state72, "--qmp", guest.socket, state72.file) as load:
            load.reach(share)
            load.signal(number)
            assert load.status(AT_ONCE) == (-signal.SIGKILL if number is signal.SIGKILL else 128 + number)
        guest.wait(AT_ONCE)
        assert guest.serial() == ""


def test_stopped_while_qemu_does_not_answer(tmp_path: Path, state72: Saved) -> None:
    with Load(tmp_path, state72, state72.file, "--", *qemu_command(tmp_path, state72)) as load:
        load.reach(0.3)
        pid = wait_for("QEMU", lambda: qemu_pid(tmp_path))
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        load.signal(signal.SIGTERM)
        assert load.status(AT_ONCE) == 128 + signal.SIGTERM
    assert_never_ran(tmp_path)


@pytest.mark.parametrize("when", [1, 5, 20])
def test_a_disk_that_gives_an_error_never_runs(tmp_path: Path, state72: Saved, when: int) -> None:
    done = run_qemu(tmp_path, state72, injected(state72, f"read:error=EIO:when={when}", tmp_path))
    assert done.returncode == 1
    assert int((tmp_path / "code").read_text()) == 1
    assert f"cannot read {state72.file}: Input/output error" in done.stderr and "kernel's log" in done.stderr
    assert_never_ran(tmp_path)


def test_a_disk_that_gives_an_error_at_its_ends_never_runs(tmp_path: Path, state72: Saved) -> None:
    done = run_qemu(tmp_path, state72, injected(state72, "pread64:error=EIO:when=2", tmp_path))
    assert done.returncode == 1
    assert f"cannot read {state72.file}: Input/output error" in done.stderr
    assert_never_ran(tmp_path)


def injected(saved: Saved, fault: str, folder: Path) -> str:
    """-incoming through strace that injects a fault into system calls on the file, and keeps statepipe's status."""
    file = shlex.quote(str(saved.file))
    strace = f"strace -f -qq -o /dev/null -P {file} -e trace=read,pread64 -e inject={fault}"
    return load_uri(saved, wrapper=strace).replace("; exec", ";", 1) + f"; echo $? >{folder}/code"


def test_interrupted_reads_change_nothing(tmp_path: Path, state72: Saved) -> None:
    uri = injected(state72, "read,pread64:error=EINTR:when=1+3", tmp_path)
    with Guest(tmp_path, qemu=state72.qemu, memory=MEMORY, image=state72.image, incoming=uri) as guest:
        guest.wait_ticks(2)
        assert_continues(state72.before, guest.serial())
    assert int((tmp_path / "code").read_text()) == 0


SHORT_IO = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
static size_t less(size_t n) { return n > 4096 ? 1000 + n % 3000 : n; }
ssize_t read(int fd, void *to, size_t n)
{ return ((ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read"))(fd, to, less(n)); }
ssize_t write(int fd, const void *from, size_t n)
{ return ((ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(fd, from, less(n)); }
"""


def test_short_reads_and_writes_change_nothing(tmp_path: Path, state72: Saved) -> None:
    (tmp_path / "short.c").write_text(SHORT_IO)
    library = tmp_path / "short.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "short.c", "-ldl"], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    uri = load_uri(state72, wrapper=f"env LD_PRELOAD={library}")
    with Guest(tmp_path, qemu=state72.qemu, memory=MEMORY, image=state72.image, incoming=uri) as guest:
        guest.wait_ticks(2)
        assert_continues(state72.before, guest.serial())


def test_a_slow_disk_changes_nothing(tmp_path: Path, state72: Saved) -> None:
    with waiting(tmp_path, state72) as guest:
        with Load(tmp_path, state72, "--qmp", guest.socket, state72.file, delay=40) as load:
            assert load.status() == 0, load.stderr()
        guest.wait_ticks(2)
        assert_continues(state72.before, guest.serial())


def test_a_qemu_that_stands_still_for_a_while_changes_nothing(tmp_path: Path, state72: Saved) -> None:
    with waiting(tmp_path, state72) as guest:
        with Load(tmp_path, state72, "--qmp", guest.socket, state72.file, delay=20) as load:
            load.reach(0.2)
            os.kill(guest.pid, signal.SIGSTOP)
            try:
                wait_for("statepipe at a stand", lambda: stands_still(load.pid))
            finally:
                os.kill(guest.pid, signal.SIGCONT)
            assert load.status() == 0, load.stderr()
        guest.wait_ticks(2)
        assert_continues(state72.before, guest.serial())


def test_a_slow_reader_does_not_make_it_keep_more(tmp_path: Path) -> None:
    """A state of 400 MB and a reader that takes 1 MB of it and then nothing."""
    page = streams.record(0x08, 1, None, bytes(streams.PAGE))
    rounds = [streams.ram(streams.record(0x08, 1, "pc.ram", bytes(streams.PAGE)), *[page] * 255)] * 400
    end = streams.ram(kind=3) + streams.devices() + b"\0" + streams.vmdesc(*streams.DEVICES)
    parts = [streams.setup(), *rounds, end]
    file = tmp_path / "state"
    file.write_bytes(state_file(parts))
    with warm.Popen([*statepipe_command(), "load", file], stdout=subprocess.PIPE) as load:
        assert load.stdout is not None
        left = sum(map(len, parts)) - len(load.stdout.read(1 << 20))
        wait_for("statepipe at a stand", lambda: stands_still(load.pid))
        assert resident(load.pid) < 150 << 10
        while part := load.stdout.read(1 << 20):
            left -= len(part)
        assert load.wait() == 0 and left == 0


def stands_still(pid: int) -> bool:
    """It sleeps, and uses no time while we look."""
    before = cpu_time(pid)
    time.sleep(0.2)
    return before == cpu_time(pid)


def cpu_time(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]


def resident(pid: int) -> int:
    """The most memory it ever had, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.parametrize("reader", ["true", "head -c 100000 >/dev/null"])
def test_a_reader_that_goes_away_is_told_quietly(state72: Saved, reader: str) -> None:
    script = f"{{ {command(state72)}; echo $? >&2; }} | {reader}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stderr == "141\n"


@pytest.mark.parametrize(
    ("redirection", "reason"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")]
)
def test_no_place_to_write_is_a_failure(state72: Saved, redirection: str, reason: str) -> None:
    done = subprocess.run(["sh", "-c", f"{command(state72)} {redirection}"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"cannot write standard output: {reason}" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&-"])
def test_nobody_to_tell_is_no_failure(state72: Saved, redirection: str) -> None:
    done = subprocess.run(["sh", "-c", f"{command(state72)} {redirection}"], capture_output=True, timeout=30)
    assert done.returncode == 0
    assert done.stdout == state72.stream()


def command(saved: Saved) -> str:
    return load_uri(saved).removeprefix("exec::; exec ")


def test_load_and_qemu_killed_together_nothing_runs(tmp_path: Path, state72: Saved) -> None:
    with Load(tmp_path, state72, state72.file, "--", *qemu_command(tmp_path, state72)) as load:
        load.reach(0.4)
        load.signal(signal.SIGKILL)
        end_qemu(tmp_path)
        load.status()
    assert_never_ran(tmp_path)


def test_a_qemu_killed_while_it_loads_ends_its_filter(tmp_path: Path, state72: Saved) -> None:
    with started_by_exec(tmp_path, state72) as (qemu, pid):
        reach(pid, state72.file, 0.3)
        qemu.kill()
        wait_for("end of the filter", lambda: not Path(f"/proc/{pid}").exists(), AT_ONCE)
    assert_never_ran(tmp_path)


def test_a_terminal_is_refused(state72: Saved) -> None:
    """Somebody tries it by hand."""
    ours, theirs = os.openpty()
    try:
        words = shlex.split(command(state72))
        done = warm.run(words, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=30)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert "standard output is a terminal" in done.stderr and "-incoming" in done.stderr
